"""Use of experts on the page of a comparison: names, bars and alarms."""

from pathlib import Path
from typing import Any

import pytest
from outcomes import outcome_of
from pydantic import TypeAdapter

from models.experts import Gates
from models.network import NetworkConfig, build_network
from pipeline.config.load import load_config
from pipeline.report.comparison_page import comparison_page
from pipeline.studies.candidates import tower_names
from pipeline.studies.comparison import ComparisonPlan, Outcome
from pipeline.studies.gains import gate_use, is_collapsed, model_rows

ROOT = Path(__file__).parents[1]
PLAN = ComparisonPlan(name="test", models=("ple",), train_days=("2026-01-01",), test_days=("2026-01-02",))


def _used(setting: dict[str, Any], towers: tuple[str, ...] = ("ctr", "vcr"), mean: float = 0.5) -> Outcome:
    """Return an outcome in which every gate gives the same mean to all columns."""
    network = build_network(TypeAdapter(NetworkConfig).validate_python(setting), 3, towers)
    modules = {name: module for name, module in network.named_modules() if isinstance(module, Gates)}
    use = {
        name: {part: [[mean] * module.num_experts for _ in range(module.num_gates)] for part in ("mean", "deviation")}
        for name, module in modules.items()
    }
    return outcome_of(setting["kind"], 1, 0.7, 0.1, setting=setting, expert_use=use, towers=towers)


LEVEL = {"expert_layers": [4], "num_experts_per_task": 1, "num_shared_experts": 1}


def test_collapsed_experts_are_named() -> None:
    """Catches an expert that nobody uses and no alarm, of exactly 0 too; and one for what a gate may not choose."""
    outcome = _used({"kind": "ple", "levels": [LEVEL, LEVEL]})
    outcome.expert_use["levels.0.gates"]["mean"] = [[0.995, 0.0, 0.005], [0.0, 1.0, 0.0], [0.2, 0.3, 0.5]]
    page = comparison_page([outcome], model_rows([outcome]), {"ctr": "binary", "vcr": "regression"}, PLAN)
    (section,) = [section for section in page.sections if section.name == "experts-0"]
    assert list(section.alarms) == [
        "The shared expert 0 has collapsed in the gate of task ctr, level 1: its weight is 0.005000 of 1.",
        "The shared expert 0 has collapsed in the gate of task vcr, level 1: its weight is 0.000 of 1.",
    ]
    used = gate_use(outcome)[1]
    assert (used.experts, used.means) == (("expert 0 of task vcr", "shared expert 0"), (1.0, 0.0))  # both are drawn
    drawn = [(row["name"], row["mean"], row["collapsed"]) for row in section.charts[1].rows]
    assert drawn == [("own expert of vcr", 1.0, False), ("shared expert 0", 0.0, True)]


def test_each_of_many_experts_has_a_small_share() -> None:
    """Catches an alarm for every one of 512 experts that a gate uses evenly, and none for those that it leaves out."""
    assert not is_collapsed(1 / 512, 512)
    assert is_collapsed(0.05 / 512, 512)
    assert is_collapsed(0.0, 2)
    assert is_collapsed(0.0099, 2)
    assert not is_collapsed(0.01, 2)
    assert not is_collapsed(1.0, 1)


@pytest.mark.parametrize(
    ("setting", "gates", "experts"),
    [
        (
            {"kind": "ple", "levels": [LEVEL, LEVEL]},
            ["gate of task ctr, level 1", "gate of task vcr, level 1", "shared gate, level 1"],
            ["expert 0 of task ctr", "shared expert 0"],
        ),
        ({"kind": "cgc"} | LEVEL, ["gate of task ctr, level 1"], ["expert 0 of task ctr", "shared expert 0"]),
        (
            {"kind": "ml_mmoe", "levels": [{"num_experts": 2, "expert_layers": [4]}] * 2},
            ["gate for shared expert 0, level 2", "gate for shared expert 1, level 2", "gate of task ctr, level 2"],
            ["shared expert 0", "shared expert 1"],
        ),
        (
            {"kind": "omoe", "num_experts": 3, "expert_layers": [4]},
            ["gate of all tasks, level 1"],
            ["shared expert 0", "shared expert 1", "shared expert 2"],
        ),
    ],
    ids=["ple", "cgc", "ml_mmoe", "omoe"],
)
def test_gates_and_experts_have_the_names_of_the_layout(setting: Any, gates: list[str], experts: list[str]) -> None:
    """Catches "expert 0", whose reader has to count columns, and gates of tasks named as those of experts."""
    used = gate_use(_used(setting))
    assert [one.gate for one in used][: len(gates)] == gates
    assert list(used[0].experts) == experts
    assert all(len(one.experts) == len(one.means) == len(one.deviations) for one in used)


def test_gates_are_those_of_the_towers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches gates with the name of a task whose probability is composed of other towers': it has none."""
    monkeypatch.chdir(ROOT)
    composed = load_config("jobs/configs/aliccp.yaml")
    assert composed.log_schema.task_names == ["ctr", "cvr", "ctcvr"]
    assert tower_names(composed) == ["ctr", "cvr"]
    used = gate_use(_used({"kind": "cgc"} | LEVEL, towers=("ctr", "cvr")))
    assert [one.gate for one in used] == ["gate of task ctr, level 1", "gate of task cvr, level 1"]
