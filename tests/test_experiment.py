"""Experiments: the shipped ones can be carried out, what cannot is refused in one line, gains over cases by hand."""

import contextlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from outcomes import outcome_of

from features.errors import ConfigError
from pipeline.lineage.line import Line
from pipeline.report.experiment import experiment_markdown, write_experiment
from pipeline.storage.files import Storage
from pipeline.studies import experiment
from pipeline.studies.candidates import with_tasks
from pipeline.studies.comparison import Comparison
from pipeline.studies.experiment import CaseResult, ExperimentConfig, cases_of, load_experiment, mean_gains
from pipeline.studies.gains import model_rows
from pipeline.trainer.train_days import HeldLine, check_alike

ROOT = Path(__file__).parents[1]
SHIPPED = sorted((ROOT / "jobs/configs/experiments").glob("*.yaml"))


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_experiments_can_be_carried_out(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a file that a renamed key or task has left behind: all of it is checked but the logs."""
    monkeypatch.chdir(ROOT)
    cases = cases_of(load_experiment(str(path)))
    assert cases
    for case in cases:
        comparison = Comparison(case.config, case.plan)
        models = comparison.variants(case.config.seed)
        lines = [HeldLine(model.config, Line.of(model.config.root, model.name), "run") for model in models]
        check_alike(case.read, lines, case.plan.train_days)


EXPERIMENT: dict[str, Any] = {
    "name": "e",
    "config": "jobs/configs/demo.yaml",
    "models": ["single", "ple"],
    "train_days": "2026-11-01..2026-11-02",
    "test_days": "2026-11-03",
    "seeds": 2,
    "cases": [{"name": "a", "tasks": ["ctr", "vcr"]}, {"name": "b", "set": ["seed=9"], "models": ["ple"], "seeds": 1}],
}


def test_cases_are_the_base_with_their_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a case that takes another one's settings, or whose own are stronger than the command's."""
    monkeypatch.chdir(ROOT)
    first, second = cases_of(ExperimentConfig.model_validate(EXPERIMENT))
    assert (first.config.log_schema.task_names, first.plan.models) == (["ctr", "vcr"], ("single", "ple"))
    assert (first.config.seed, second.config.seed, second.plan.models) == (1, 9, ("ple",))
    assert (first.plan.seeds, second.plan.seeds) == (2, 1)
    assert first.plan.test_days == ("2026-11-03",)
    shared = EXPERIMENT | {"set": ["seed=5", "workers.num=1"]}
    seeds = [(case.config.seed, case.config.workers.num) for case in cases_of(ExperimentConfig.model_validate(shared))]
    assert seeds == [(5, 1), (9, 1)]
    (only,) = cases_of(ExperimentConfig.model_validate(EXPERIMENT), ["seed=4"], ["b"])
    assert (only.name, only.config.seed) == ("b", 4)


def test_cases_with_the_same_rows_are_trained_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a start of workers for each of many small cases, and rows of another seed or with other labels."""
    monkeypatch.chdir(ROOT)
    calls: list[tuple[int, list[str], list[str]]] = []

    def measured(self: Any, variants: Any, test_days: Any) -> list[Any]:
        assert list(test_days) == ["2026-11-03"]
        (seed,) = {variant.config.seed for variant in variants}
        calls.append((seed, self._config.log_schema.task_names, [variant.name for variant in variants]))
        return []

    monkeypatch.setattr(experiment.Trainings, "measured", measured)
    monkeypatch.setattr(experiment, "ray_session", contextlib.nullcontext)
    monkeypatch.setattr(experiment.Comparison, "run", lambda self: [])
    one = {"models": ["ple"], "seeds": 1}
    label = "schema.tasks=[{name: ctr, label: share}]"
    others = [
        {"name": "c", "set": ["model.dropout=0.5"]} | one,
        {"name": "d", "set": [label, "loss_weights.tasks={}"]} | one,
        {"name": "e", "set": ["logs.path=elsewhere"]} | one,
    ]
    declared = ExperimentConfig.model_validate(EXPERIMENT | {"cases": [*EXPERIMENT["cases"], *others]})
    experiment.run_cases(cases_of(declared))
    every = ["ctr", "vtr", "vcr", "shr", "cmr"]
    assert calls == [
        (1, every, ["single-ctr", "single-vcr", "ple", "ple"]),
        (2, every, ["single-ctr", "single-vcr", "ple"]),
        (9, every, ["ple"]),
        (1, ["ctr"], ["ple"]),
        (1, every, ["ple"]),
    ]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"model": ["ple"]}, "model: Extra inputs are not permitted"),
        ({"cases": []}, "cases: List should have at least 1 item"),
        ({"networks": {"single": {"kind": "hard_sharing", "layer": [4]}}}, "networks.single.hard_sharing.layer"),
        ({"seeds": 0}, "seeds: Input should be greater than or equal to 1"),
        ({"cases": [{"name": "a", "tasks": ["ctr", "vvr"]}]}, "case a: there is no task 'vvr'"),
        ({"cases": [{"name": "a", "set": ["sed=1"]}]}, "unknown key sed"),
        ({"config": "jobs/configs/none.yaml"}, "config jobs/configs/none.yaml is missing"),
        ({"test_days": "tomorrow"}, "days 'tomorrow'"),
        ({"cases": [{"name": "a"}, {"name": "b"}, {"name": "a"}]}, "two cases are called 'a'"),
    ],
)
def test_what_is_no_experiment(
    changes: dict[str, Any], expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches hours of training of what cannot be reported, and a traceback for a typing error."""
    monkeypatch.chdir(ROOT)
    path = tmp_path / "e.yaml"
    path.write_text(yaml.safe_dump(EXPERIMENT | changes))
    with pytest.raises(ConfigError, match=expected) as refused:
        cases_of(load_experiment(str(path)))
    assert "\n" not in str(refused.value)


def test_a_case_that_is_not_there(tmp_path: Path) -> None:
    """Catches a typing error that runs no case, or all."""
    with pytest.raises(ConfigError, match="experiment e has no case 'c', it has"):
        cases_of(ExperimentConfig.model_validate(EXPERIMENT), names=["c"])
    with pytest.raises(ConfigError, match=r"none.yaml is missing"):
        load_experiment(str(tmp_path / "none.yaml"))


def test_gains_over_cases_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a spread over cases, which differ anyway, where that over seeds is meant."""
    monkeypatch.chdir(ROOT)
    cases = [{"name": name, "tasks": ["ctr", "vcr"]} for name in ("a", "b")]
    declared = ExperimentConfig.model_validate(EXPERIMENT | {"cases": cases})
    gains = {"a": (0.01, 0.03), "b": (0.03, 0.07)}
    results = []
    for case in cases_of(declared):
        seeds = enumerate(gains[case.name], start=1)
        pairs = [(outcome_of("single", s, 0.7, 0.1), outcome_of("ple", s, 0.7 + gain, 0.1 - gain)) for s, gain in seeds]
        outcomes = [outcome for pair in pairs for outcome in pair]
        results.append(CaseResult(case, Storage("/nowhere"), outcomes, model_rows(outcomes)))
    found = mean_gains(results)["ple"]
    assert found["ctr"].values == pytest.approx((0.02, 0.05))
    assert found["vcr"].values == pytest.approx((0.02, 0.05))
    markdown = experiment_markdown(declared, [results[0]])
    assert "## Mean gains" not in markdown
    assert "| ple | 0.7200 ± 0.0141 |" in markdown
    assert mean_gains(results[:1]) == {}
    without = [outcome for outcome in results[1].outcomes if outcome.model != "single"]
    assert mean_gains([results[0], replace(results[1], outcomes=without, rows=model_rows(without))]) == {}


def test_some_cases_do_not_replace_the_table_of_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a run of one case that overwrites what all of them had found."""
    monkeypatch.chdir(ROOT)
    cases = [{"name": name, "tasks": ["ctr", "vcr"]} for name in ("a", "b")]
    declared = ExperimentConfig.model_validate(EXPERIMENT | {"cases": cases})
    found = [outcome_of("ple", 1, 0.7, 0.1)]
    results = [CaseResult(case, Storage(str(tmp_path)), found, model_rows(found)) for case in cases_of(declared)]
    assert write_experiment(declared, results)["markdown"].endswith("/table.md")
    whole = (tmp_path / "table.md").read_text()
    assert write_experiment(declared, results[:1])["markdown"].endswith("/part.md")
    assert (tmp_path / "table.md").read_text() == whole


def test_the_table_says_how_cases_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a page of cases "a" and "b", whose reader has to look for the file to know what was compared."""
    monkeypatch.chdir(ROOT)
    cases = [{"name": "a"}, {"name": "b", "set": ["seed=3"], "tasks": ["ctr", "vcr"]}]
    content = EXPERIMENT | {"cases": cases, "set": ["optimizer.clip_norm=5"], "passes": 2, "seeds": 1}
    declared = ExperimentConfig.model_validate(content)
    found = [outcome_of("ple", 1, 0.7, 0.1)]
    prepared = [replace(case, config=with_tasks(case.config, ["ctr", "vcr"])) for case in cases_of(declared)]
    assert [case.plan.passes for case in prepared] == [2, 2]
    results = [CaseResult(case, Storage("/nowhere"), found, model_rows(found)) for case in prepared]
    markdown = experiment_markdown(declared, results)
    assert "in 2 passes" in markdown
    assert "All cases: `optimizer.clip_norm=5`." in markdown
    assert "## a\n\nthe base. 1 seed." in markdown
    assert "## b\n\n`seed=3`, `tasks: ctr, vcr`. 1 seed." in markdown
