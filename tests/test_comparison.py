"""Comparisons: sizes of one number of parameters, gains by hand, what is refused, and what is run again."""

import io
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, get_args

import pyarrow.parquet as pq
import pytest
import torch
import yaml
from outcomes import outcome_of
from small_runs import DAYS, logs, make_config
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from features.errors import ConfigError
from models.batch import LogBatch
from models.network import NetworkConfig
from pipeline.config.evaluation import BootstrapConfig
from pipeline.config.load import load_config, parse_config
from pipeline.config.project import Config
from pipeline.evaluation.evaluate import Measurement, measure_days
from pipeline.lineage.line import Line
from pipeline.lineage.records import Published
from pipeline.report.comparison import table_of, to_markdown, to_parquet
from pipeline.report.comparison_page import comparison_page
from pipeline.report.page import render
from pipeline.studies import trainings
from pipeline.studies.candidates import (
    _SHAPES,
    CLOSE,
    SINGLE,
    head_parameters,
    settings_of,
    with_network,
    with_tasks,
)
from pipeline.studies.comparison import Comparison, ComparisonPlan, Outcome
from pipeline.studies.gains import Spread, model_rows
from pipeline.studies.slice_gains import slice_gains
from pipeline.studies.trainings import Variant

__all__ = ["logs"]  # a fixture

ROOT = Path(__file__).parents[1]
PLAN = ComparisonPlan(name="test", models=(SINGLE, "mmoe"), train_days=tuple(DAYS), test_days=("2026-01-03",))


# --- Sizes ---


@pytest.mark.parametrize("model", [SINGLE, *_SHAPES])
@pytest.mark.parametrize("file", ["demo.yaml", "kuairand.yaml"])
def test_all_sizes_have_as_many_parameters(model: str, file: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a comparison that the larger network wins because it is larger."""
    monkeypatch.chdir(ROOT)
    config = load_config(ROOT / "jobs/configs" / file)
    target = head_parameters(config)
    settings = settings_of(model, config, 4)
    subject = with_tasks(config, config.log_schema.task_names[:1]) if model == SINGLE else config
    for setting in settings:
        assert setting.num_parameters == head_parameters(with_network(subject, setting.network))
        assert abs(setting.num_parameters / target - 1) <= CLOSE
    assert len({setting.network.model_dump_json() for setting in settings}) == 4


def test_a_task_by_itself_has_a_tower(monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a task that is read from the user's vector, and that no network would be left for by itself."""
    monkeypatch.chdir(ROOT)
    config = load_config(ROOT / "jobs/configs/kuairand_dupn.yaml")
    alone = with_tasks(config, ["worth"])
    assert alone.model.user is not None
    assert alone.model.user.without_tower == []
    assert head_parameters(alone) > 0


def test_a_network_without_sizes_is_compared_as_declared(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Catches a network of somebody's own that can be trained and not be compared."""
    config = make_config(tmp_path, tmp_path)
    kind = config.model.network.kind
    monkeypatch.delitem(_SHAPES, kind)
    (setting,) = settings_of(kind, config, 1)
    assert setting.network == config.model.network
    with pytest.raises(ConfigError, match=f"2 trials of {kind}: it has 1 settings"):
        settings_of(kind, config, 2)


def test_composed_probabilities_are_compared_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches sizes for the tasks where there is a tower more, and a single-task model of a tower that it has not."""
    monkeypatch.chdir(ROOT)
    rule = {"towers": ["cvr"], "probabilities": {"vtr": {"given": "ctr", "then": "cvr"}}}
    bias = {"tasks": ["ctr"], "num_slots": 8}
    content = yaml.safe_load((ROOT / "jobs/configs/demo.yaml").read_text())
    content["model"] |= {"entire_space": rule, "slot_bias": bias}
    features = content["schema"]["features"]
    content["schema"]["features"] = [feature for feature in features if feature["name"] != "slot"]
    config = parse_config(content, "demo.yaml")
    (setting,) = settings_of("asymmetric_sharing", config, 1)
    assert set(setting.network.reads) == {"vcr", "shr", "cmr", "cvr"}  # of the towers, but for the first
    assert [with_tasks(config, [name]).model.slot_bias is None for name in ("ctr", "vtr")] == [False, True]
    assert len(settings_of(SINGLE, config, 2)) == 2


def test_the_declared_network_comes_first(tmp_path: Path) -> None:
    """Catches a comparison that leaves out the very network that somebody has tuned."""
    config = make_config(tmp_path, tmp_path)
    (setting,) = settings_of(config.model.network.kind, config, 1)
    assert setting.network == config.model.network


def test_sizes_are_of_networks_that_there_are() -> None:
    """Catches sizes of a network that was renamed."""
    members = get_args(get_args(NetworkConfig)[0])
    assert set(_SHAPES) <= {get_args(member.model_fields["kind"].annotation)[0] for member in members}


# --- What is refused ---


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"models": ("single", "mmo")}, "there is no model 'mmo' to compare"),
        ({"trials": 9, "choose_days": (DAYS[1],)}, "9 trials of single: it has 4 settings"),
        ({"trials": 2}, "sizes are chosen on the last training days: say how many of them"),
        ({"choose_days": (DAYS[0],)}, "sizes are chosen on the last training days, and"),
        ({"test_days": (DAYS[1],)}, "are among those that are trained"),
        ({"seeds": 0}, "0 seeds"),
    ],
)
def test_what_cannot_be_compared(changes: dict[str, Any], expected: str, tmp_path: Path) -> None:
    """Catches a comparison that trains for hours and then cannot say anything, or measures on what it has trained."""
    with pytest.raises(ConfigError, match=expected):
        Comparison(make_config(tmp_path, tmp_path), replace(PLAN, **changes))


# --- What it says ---


OUTCOMES = [
    outcome_of("single", 1, 0.70, 0.10),
    outcome_of("single", 2, 0.72, 0.12),
    outcome_of("ple", 1, 0.73, 0.11),
    outcome_of("ple", 2, 0.73, 0.13),
]


def test_gains_by_hand() -> None:
    """Catches a gain whose sign is that of the wrong metric, or that compares different seeds (Eq. 11 of PLE)."""
    single, ple = model_rows(OUTCOMES)
    assert single.gains is None
    assert ple.metrics["ctr"].mean == pytest.approx(0.73)
    assert single.metrics["ctr"].deviation == pytest.approx(0.02 / 2**0.5)
    assert ple.gains is not None
    assert ple.gains["ctr"].values == pytest.approx((0.03, 0.01))
    assert ple.gains["vcr"].values == pytest.approx((-0.01, -0.01))  # MSE: less is better


def test_trials_without_a_metric_are_no_riddle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches `mean requires at least one data point` after hours of trials."""
    plan = replace(PLAN, trials=2, train_days=("2026-01-01", "2026-01-02"), choose_days=("2026-01-02",))
    comparison = Comparison(make_config(tmp_path, tmp_path), plan)
    monkeypatch.setattr(comparison, "outcomes", lambda entrants, *_: [_undefined(model) for model, _ in entrants])
    with pytest.raises(ConfigError, match="no main task has a metric on the days to choose on"):
        comparison.chosen()


def _undefined(model: str) -> Outcome:
    outcome = outcome_of(model, 1, None, 0.1)
    return replace(outcome, tasks=[task for task in outcome.tasks if task["task"] == "ctr"])


MMOE = {"kind": "mmoe", "num_experts": 2, "expert_layers": [4]}


def test_the_tables_say_the_same() -> None:
    """Catches a form of the table that has other numbers, a name that breaks the page, and a chart without a model."""
    use = {"gates": {"mean": [[0.995, 0.005], [0.4, 0.6]], "deviation": [[0.1, 0.1], [0.2, 0.2]]}}
    outcomes = [*OUTCOMES[:2], *(replace(one, model="<ple>", expert_use=use, setting=MMOE) for one in OUTCOMES[2:])]
    rows, kinds = model_rows(outcomes), {"ctr": "binary", "vcr": "regression"}
    cells = table_of(rows, kinds)
    assert cells[0] == ["model", "ctr (AUC)", "vcr (MSE)", "gain ctr", "gain vcr", "parameters", "rows/s"]
    assert cells[2][1:5] == ["0.7300 ± 0.0000", "0.1200 ± 0.0141", "+0.0200 ± 0.0141", "-0.0100 ± 0.0000"]
    markdown = to_markdown(outcomes, rows, kinds, PLAN)
    page = render(comparison_page(outcomes, rows, kinds, PLAN), datetime(2026, 1, 4, tzinfo=UTC)).decode()
    for text in cells[2][1:5]:
        assert text in markdown
        assert text in page
    assert "<ple>" not in page
    assert page.count("seesaw: ") == 2
    assert "The shared expert 1 has collapsed in the gate of task ctr, level 1: its weight is 0.005000 of 1." in page
    read = pq.read_table(io.BytesIO(to_parquet(outcomes))).to_pylist()
    assert [row["value"] for row in read if row["task"] == "ctr"] == [0.70, 0.72, 0.73, 0.73]


def test_spread_of_one_value() -> None:
    """Catches a deviation of one value that is 0, as if it were known."""
    assert str(Spread.of([0.5])) == "0.5000"


# --- What is run ---


@pytest.mark.parametrize("keep", [False, True])
def test_a_measurement_is_kept_before_its_checkpoint_goes(
    keep: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches hours of training that are lost because the disk is full when their measurement is written."""
    config = make_config(tmp_path, tmp_path)
    many = trainings.Trainings(config, "many", keep_checkpoints=keep)

    def trained(works: Any) -> list[dict[str, Any]]:
        for work in works:
            work.place.storage.write("checkpoints/day/weights", b"all of them")
            work.place.rebuild(Published(day=DAYS[0], generation=1, checkpoint="checkpoints/day"), 1)
        return [{"checkpoint": "day"} for _ in works]

    def full(self: Any, name: str, inputs: Any, result: Any) -> Any:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(many, "trained", trained)
    monkeypatch.setattr(many, "measure", lambda subjects, days: [Measurement(tasks=[], expert_use={})] * len(subjects))
    variants = [Variant("a", config, tuple(DAYS)), Variant("b", config, tuple(DAYS))]
    with monkeypatch.context() as patch:
        patch.setattr(trainings.KeptResults, "keep", full)
        with pytest.raises(OSError, match="No space left"):
            many.measured(variants, ["2026-01-03"])
    assert len(list(tmp_path.rglob("weights"))) == 2
    assert [found["tasks"] for found in many.measured(variants, ["2026-01-03"])] == [[], []]
    assert len(list(tmp_path.rglob("weights"))) == 2 * keep


def test_a_measurement_that_is_lost_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a line that is left with what it published and without its checkpoints: no one can train on it."""
    config = make_config(tmp_path, tmp_path)
    many = trainings.Trainings(config, "many", keep_checkpoints=False)
    started = []

    def trained(works: Any) -> list[dict[str, Any]]:
        for work in works:
            started.append(work.place.newest())
            work.place.rebuild(Published(day=DAYS[0], generation=1, checkpoint="checkpoints/day"), 1)
        return [{"checkpoint": "day"} for _ in works]

    monkeypatch.setattr(many, "trained", trained)
    monkeypatch.setattr(many, "measure", lambda subjects, days: [Measurement(tasks=[], expert_use={})] * len(subjects))
    for _ in range(2):
        many.measured([Variant("a", config, tuple(DAYS))], ["2026-01-03"])
        many.storage.remove("results")
    assert started == [None, None]


def test_late_labels_of_others_are_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a single-task model that makes steps on other tasks' late rows, where it has no label."""
    plain = make_config(tmp_path, tmp_path).model_dump(mode="json", by_alias=True)
    plain["schema"]["tasks"][1]["matures_after"] = "1d"
    config = Config.model_validate(plain)
    own, read = config.log_schema.task_names, []

    def together(rows: Config, configs: Any, days: Any, passes: int) -> list[dict[str, Any]]:
        read.append(([task for model in configs for task in model.log_schema.task_names], rows.log_schema.task_names))
        return [{"checkpoint": ""} for _ in configs]

    many = trainings.Trainings(config, "many", keep_checkpoints=True)
    monkeypatch.setattr(trainings, "train_together", together)
    monkeypatch.setattr(trainings, "trained_figures", lambda work, checkpoint: {})
    monkeypatch.setattr(many, "fit_statistics", lambda *_: None)
    variants = [Variant(name, with_tasks(config, [name]), tuple(DAYS)) for name in own]
    many.trained([many.work_of(variant, ["2026-01-03"]) for variant in variants])
    assert read == [([name], [name]) for name in own]


def test_a_measurement_without_intervals_is_another_one(tmp_path: Path) -> None:
    """Catches intervals that were asked for, and a table that was measured before without them."""
    plain = make_config(tmp_path, tmp_path)
    id_feature = next(feature.name for feature in plain.log_schema.features if feature.kind == "id")
    drawn = plain.evaluation.model_copy(update={"bootstrap": BootstrapConfig(by=id_feature)})
    variant, lines = Variant("a", plain, tuple(DAYS)), []
    for config in (plain, plain, plain.model_copy(update={"evaluation": drawn})):
        many = trainings.Trainings(config, "many", keep_checkpoints=True)
        lines.append(many.work_of(variant, ["2026-01-03"]).line)
    assert lines[0] == lines[1] != lines[2]


def test_a_batch_of_some_tasks() -> None:
    """Catches a model that is measured by another task's labels, and weights or truths that stay where they were."""
    tasks = torch.arange(3.0).expand(2, 3)
    ids = KeyedJaggedTensor.empty()
    batch = LogBatch(
        sparse=ids,
        dense=torch.zeros(2, 1),
        labels=tasks + 10,
        in_space=tasks > 0,
        weight=tasks + 20,
        slot=torch.zeros(2, dtype=torch.int32),
        truth=tasks + 50,
        cursor="the rows",
    )
    some = batch.of_tasks([2, 0])
    assert some.labels.tolist() == [[12, 10]] * 2
    assert some.in_space.tolist() == [[True, False]] * 2
    assert some.weight.tolist() == [[22, 20]] * 2
    assert some.truth is not None
    assert some.truth.tolist() == [[52, 50]] * 2
    assert (some.sparse, some.cursor) == (ids, "the rows")
    assert batch.of_tasks([0, 1, 2]) is batch


def test_a_comparison_goes_on(
    logs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, local_training: None
) -> None:
    """Catches a comparison that begins again after it was cut off, or measures a model by another task's labels.

    It also catches slices that the comparison does not measure or does not keep.
    """
    config = make_config(logs, tmp_path / "root", checkpoint={"every_steps": 10}, evaluation={"by": ["scene"]})
    calls: list[list[str]] = []
    train_together = trainings.train_together

    def cut_off(read: Config, configs: Any, days: Any, passes: int) -> list[dict[str, Any]]:
        found = train_together(read, configs if calls else configs[:2], days, passes)
        calls.append([one["result"] for one in found])
        if len(calls) == 1:
            raise RuntimeError("somebody pulls the plug")
        return found

    monkeypatch.setattr(trainings, "train_together", cut_off)
    with pytest.raises(RuntimeError, match="pulls the plug"):
        Comparison(config, PLAN).run()
    outcomes = Comparison(config, replace(PLAN, keep_checkpoints=True)).run()
    # What is trained and not yet measured is looked at again, and found to be there: no step is made twice.
    assert calls == [["trained", "trained"], ["nothing to do", "nothing to do", "trained"]]
    single, mmoe = outcomes
    assert [task["task"] for task in single.tasks] == [task["task"] for task in mmoe.tasks] == ["ctr", "vcr"]
    assert [t["model"]["rows"] for t in single.tasks] == [t["model"]["rows"] for t in mmoe.tasks]  # the same spaces
    (use,) = mmoe.expert_use.values()
    assert all(sum(gate) == pytest.approx(1) for gate in use["mean"])
    assert all(0 < value < 0.5 for gate in use["deviation"] for value in gate)
    lines = Path(config.root) / "comparisons/test/lines"
    assert _alone(config, lines) == single.tasks[1:]
    assert len(list(lines.iterdir())) == 3
    again = Comparison(config, PLAN).run()
    assert again == outcomes
    by_scene = slice_gains(again, PLAN)["scene"]
    for task in single.tasks:
        found = [one for one in by_scene if one.task == task["task"]]
        assert len(found) > 1
        assert sum(one.num_rows for one in found) == task["model"]["rows"]
        assert all(one.gains["mmoe"].mean is not None for one in found if one.is_judged)
    assert len(calls) == 2
    assert not list(lines.iterdir())  # measured, and not asked to be kept


def _alone(config: Config, lines: Path) -> list[dict[str, Any]]:
    """The second task's single-task model, measured by itself.

    Measured together with others, on rows that were read for all tasks, it has the same figures.
    """
    (folder,) = lines.glob("single-vcr-*")
    line = Line.of(str(lines.parent), folder.name)
    newest = line.newest()
    assert newest is not None
    own = with_network(with_tasks(config, ["vcr"]), settings_of(SINGLE, config, 1)[0].network)
    on_line = own.model_copy(update={"root": str(lines.parent), "line": folder.name})
    return measure_days(on_line, line, newest.checkpoint, PLAN.test_days).tasks
