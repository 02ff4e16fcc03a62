"""Backfills on processes in place of Ray's: equal to single evaluations, cut off anywhere, and continued."""

import functools
import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.dataset as pads
import pytest
import ray
from local_training import Command, on_processes
from small_history import ALL_DAYS, ROWS, TRAINED, config_of, history, train_history, trained, write_history

from features.schema import Schema
from features.vocabulary import VocabularyConfig
from pipeline.cluster.failures import RunFailed
from pipeline.config.project import Config
from pipeline.evaluation import backfill as of_backfill
from pipeline.evaluation.backfill import Backfilled, backfill
from pipeline.evaluation.bootstrap import paired_interval
from pipeline.evaluation.cells import AskedCells, chosen_checkpoints, encoder_digest
from pipeline.evaluation.evaluate import evaluate
from pipeline.evaluation.metric_table import ALL_ROWS, SCHEMA, MetricTable
from pipeline.lineage.line import Line
from pipeline.report.backfill import report_backfill
from pipeline.storage.files import Storage

__all__ = ["history", "trained"]  # fixtures

ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import this file

ASKED = AskedCells(f"{TRAINED[0]}..{TRAINED[-1]}", ALL_DAYS[2:5])
NUM_CELLS = 9


def files_of(config: Config) -> dict[str, bytes]:
    """All files of the table, by path."""
    root = Path(config.root) / "metrics"
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def values_of(config: Config) -> dict[tuple[str, ...], Any]:
    rows = MetricTable.of(config.root).read().to_pylist()
    return {tuple(row[name] for name in ("checkpoint", "day", "slice", "task", "metric")): row["value"] for row in rows}


@pytest.fixture(scope="module")
def undisturbed(trained: Config) -> dict[str, bytes]:
    """The table's files after a backfill without a disturbance."""
    with on_processes():
        assert backfill(trained, ASKED).num_measured == NUM_CELLS
    return files_of(trained)


# --- Figures ---


def slices_of(entry: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """Name and metrics of each slice of a task's evaluation."""
    found = [(ALL_ROWS, entry["model"])]
    for name, values in entry["slices"].items():
        found += [(f"{name}={one['value']}", {key: one[key] for key in one if key != "value"}) for one in values]
    assert len(found) > 5
    return found


def assert_equals_evaluate(config: Config, found: Backfilled, rows: Any = "all") -> None:
    for cell in found.cells:
        name = cell.checkpoint if cell.line == config.line else f"{cell.line}:{cell.checkpoint}"
        expected = evaluate(config, [cell.day], name, [], rows)["tasks"]
        table = found.table.of_cells(cell.day, [cell.key]).to_pylist()
        got = {(row["task"], row["slice"], row["metric"]): row for row in table}
        slices = [(entry["task"], name, metrics) for entry in expected for name, metrics in slices_of(entry)]
        assert len(got) == len(table) == sum(len(metrics) - 1 for _, _, metrics in slices)
        for task, name, metrics in slices:
            for metric, value in metrics.items():
                if metric != "rows":
                    assert got[task, name, metric]["value"] == value, (cell, name, metric)
                    assert got[task, name, metric]["rows"] == metrics["rows"]
        for entry in expected:
            drawn = entry["interval"]
            row = got[entry["task"], ALL_ROWS, drawn["metric"]]
            assert (row["low"], row["high"]) == (drawn["low"], drawn["high"])
            assert len(row["draws"]) == drawn["resamples"]


def test_a_day_equals_its_evaluation(trained: Config, undisturbed: dict[str, bytes], local_training: None) -> None:
    """Catches a model that is measured with another's weights, batches or rows: every figure is that of evaluate."""
    found = backfill(trained, AskedCells(f"{TRAINED[0]},{TRAINED[-1]}", ALL_DAYS[2:5:2]))
    assert found.num_measured == 0  # the table of the undisturbed backfill has them
    assert_equals_evaluate(trained, found)


def test_held_out_rows(history: Config, local_training: None) -> None:
    """Catches rows that were trained among those that are held out, and a cell of all rows that counts for both."""
    found = backfill(history, AskedCells(TRAINED[-1], ALL_DAYS[3:4], rows="held_out"))
    assert found.num_measured == 1
    assert_equals_evaluate(history, found, "held_out")
    everything = backfill(history, AskedCells(TRAINED[-1], ALL_DAYS[3:4]))
    assert everything.num_measured == 1
    rows = MetricTable.of(history.root).read(columns=["row_set", "rows", "task", "slice"]).to_pylist()
    counted = {row["row_set"]: row["rows"] for row in rows if (row["task"], row["slice"]) == ("ctr", ALL_ROWS)}
    assert 0 < counted["held_out"] < ROWS / 2 < counted["all"] == ROWS


def test_groups_of_models_change_no_bit(history: Config, undisturbed: dict[str, bytes], local_training: None) -> None:
    """Catches figures that depend on how many models are in memory at once, and a group whose cells are lost."""
    alone = history.evaluation.model_copy(update={"resident_mb": 0})
    backfill(history.model_copy(update={"evaluation": alone}), ASKED)
    assert files_of(history) == undisturbed


def test_differences_per_slice(trained: Config, undisturbed: dict[str, bytes], local_training: None) -> None:
    """Catches a difference from another slice, task or model, a slice without an interval, and one that is not shown.

    The intervals need no measurement beyond those of the table.
    """
    asked = AskedCells(TRAINED[-1], ALL_DAYS[2:4], against=TRAINED[0])
    found = backfill(trained, asked)
    assert found.num_measured == 0
    text, result = report_backfill(trained, asked, found)
    shown = json.loads(Storage(trained.root).read(result["figures"].removeprefix(f"{trained.root}/")))["differences"]
    for cell in found.cells:
        keys = {cell.key: "one", found.against[cell.day]: "other"}
        rows = [row for row in found.table.of_cells(cell.day, list(keys)).to_pylist() if row["draws"] is not None]
        by_place: dict[tuple[str, str], dict[str, Any]] = {}
        for row in rows:
            by_place.setdefault((row["slice"], row["task"]), {})[keys[row["key"]]] = row
        of_day = {(one["slice"], one["task"]): one for one in shown if one["day"] == cell.day}
        assert of_day.keys() == by_place.keys()
        assert {"all", "length=10 to 30"} < {name for name, _ in of_day}
        for place, pair in by_place.items():
            one, other = pair["one"], pair["other"]
            if one["value"] is not None:
                assert of_day[place]["value"] == one["value"] - other["value"]
            expected = paired_interval(one["draws"], other["draws"], 0.95)
            assert (of_day[place]["low"], of_day[place]["high"]) == expected
        low, value, high = (of_day["length=10 to 30", "vcr"][name] for name in ("low", "value", "high"))
        assert low < value < high
    assert "vcr, length=10 to 30, MSE, difference [interval]" in text


def with_vocabulary(config: Config) -> Config:
    schema = config.log_schema.model_dump()
    for table in schema["tables"]:
        if table["name"] in ("user", "video"):
            rule = VocabularyConfig(kind="vocabulary", min_count=7, keep_days=1, tail_rows=8)
            table |= {"num_rows": 110, "id_mapping": rule.model_dump()}
    return config.model_copy(update={"log_schema": Schema.model_validate(schema)})


def grown(config: Config) -> Config:
    """The configuration with more rows for the tables with a vocabulary."""
    schema = config.log_schema.model_dump()
    for table in schema["tables"]:
        table["num_rows"] += 40 if table["id_mapping"]["kind"] == "vocabulary" else 0
    return config.model_copy(update={"log_schema": Schema.model_validate(schema)})


def test_each_checkpoint_has_its_own_vocabulary(tmp_path: Path, local_training: None) -> None:
    """Catches a model that reads another's rows: the ids of each day's checkpoint are rows of its own vocabulary.

    The tables have grown since; the rows beyond those of a checkpoint must not be those of the model before it.
    """
    config = grown(
        train_history(with_vocabulary(config_of(write_history(tmp_path / "logs"), tmp_path / "root")), TRAINED[:2])
    )
    asked = AskedCells(f"{TRAINED[0]}..{TRAINED[1]}", ALL_DAYS[2:4], against=TRAINED[0])
    manifests = [one.manifest for one in chosen_checkpoints(Line.of(config.root, "main"), asked.checkpoints)]
    assert len({encoder_digest(manifest) for manifest in manifests}) == 2
    for resident_mb in (4096, 0):
        evaluation = config.evaluation.model_copy(update={"resident_mb": resident_mb})
        found = backfill(config.model_copy(update={"evaluation": evaluation}), asked)
        assert found.num_measured == 4
        assert_equals_evaluate(config, found)
        _, result = report_backfill(config, asked, found)
        assert result["cells"] == 4
        shutil.rmtree(Path(config.root) / "metrics")


# --- Cuts ---


@dataclass(frozen=True)
class Cut:
    """A worker that is killed when a day is committed.

    Args:
        commit: Number of the commit, from 1.
        moment: `before` it, `after` it, or `within` the readings before it.
        trace: File in which every reading of rank 0 is noted.
        victim: Process to kill instead of the worker.
    """

    commit: int
    moment: str
    trace: Path
    victim: int | None = None

    def __call__(self, job: Any, lane: Any) -> dict[str, Any]:
        commit, measure, done = MetricTable.commit, of_backfill.measure_reading, [0]
        first = not self.trace.exists()

        def cut_commit(table: MetricTable, day: str, cells: Any) -> None:
            if self.moment == "before":
                self.kill(done[0] + 1, first)
            commit(table, day, cells)
            done[0] += 1
            if self.moment == "after":
                self.kill(done[0], first)

        def noted(config: Config, part: Any, *rest: Any) -> Any:
            if ray.train.get_context().get_world_rank() == 0:
                with self.trace.open("a") as trace:
                    trace.write(f"{part.log.day}\n")
            refused = measure(config, part, *rest)
            if self.moment == "within" and ray.train.get_context().get_world_rank() == 0:
                self.kill(done[0] + 1, first)
            return refused

        MetricTable.commit = cut_commit
        of_backfill.measure_reading = noted
        return of_backfill.backfill_worker(job, lane)

    def kill(self, number: int, first: bool) -> None:
        if number == self.commit and first:
            os.kill(self.victim or os.getpid(), signal.SIGKILL)
            time.sleep(5)  # until the process that was killed has ended this one


@pytest.mark.parametrize("moment", ["before", "after", "within"])
@pytest.mark.parametrize("commit", [1, 3])
def test_a_backfill_that_is_cut_off(
    history: Config,
    undisturbed: dict[str, bytes],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    local_training: None,
    commit: int,
    moment: str,
) -> None:
    """Catches a day that is committed in part or twice, one that is measured again, and one that is lost."""
    monkeypatch.setattr(of_backfill, "backfill_worker", Cut(commit, moment, tmp_path / "trace"))
    with pytest.raises(RunFailed):
        backfill(history, ASKED)
    committed = commit if moment == "after" else commit - 1
    found = files_of(history)
    assert len(found) == committed
    assert found.items() <= undisturbed.items()
    monkeypatch.undo()
    assert backfill(history, ASKED).num_measured == NUM_CELLS - 3 * committed
    assert files_of(history) == undisturbed
    assert backfill(history, ASKED).num_measured == 0
    assert files_of(history) == undisturbed
    assert list(Path(history.root).rglob("pins/*/*.json")) == []


def test_workers_that_are_started_again(
    history: Config,
    undisturbed: dict[str, bytes],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    local_training: None,
) -> None:
    """Catches a new start of the workers that reads and measures committed days again."""
    workers = history.workers.model_copy(update={"max_failures": 1})
    config = history.model_copy(update={"workers": workers})
    monkeypatch.setattr(of_backfill, "backfill_worker", Cut(2, "after", tmp_path / "trace"))
    backfill(config, ASKED)
    assert files_of(history) == undisturbed
    assert (tmp_path / "trace").read_text().split() == ALL_DAYS[2:5]


def _command(config: Config, cut: Callable[..., Any] | None) -> int:
    """Run a backfill in this process, which a worker kills at a moment; return its exit code."""
    with on_processes():
        if cut is not None:
            of_backfill.backfill_worker = functools.partial(cut, victim=os.getpid())
        backfill(config, ASKED)
    return 0


def _of(job: Any, lane: Any, commit: int, moment: str, trace: Path, victim: int) -> dict[str, Any]:
    return Cut(commit, moment, trace, victim)(job, lane)


def test_a_command_that_is_killed(
    history: Config, undisturbed: dict[str, bytes], tmp_path: Path, local_training: None
) -> None:
    """Catches figures that wait in the command until the end: a kill of it would lose the days that are measured."""
    cut = functools.partial(_of, commit=2, moment="after", trace=tmp_path / "trace")
    command = Command(_command, (history, cut), tmp_path / "out", tmp_path / "err")
    assert command.wait(400) == -signal.SIGKILL, (tmp_path / "err").read_text()[-2000:]
    assert len(files_of(history)) == 2
    assert backfill(history, ASKED).num_measured == 3
    assert files_of(history) == undisturbed


def test_a_log_that_has_changed(history: Config, undisturbed: dict[str, bytes], local_training: None) -> None:
    """Catches a column that stays although its log is another one, and others that are measured again for nothing.

    Once the first log is back, its figures have to count again.
    """
    backfill(history, ASKED)
    other = write_history(Path(history.root) / "other", seed=6)
    day, kept = Path(history.logs.path) / f"dt={ALL_DAYS[3]}", Path(history.root) / "kept"
    shutil.move(day, kept)
    shutil.copytree(other / day.name, day)
    before = values_of(history)
    found = backfill(history, ASKED)
    assert found.num_measured == 3
    files = files_of(history)
    assert undisturbed.items() <= files.items()
    assert files.keys() - undisturbed.keys() == {f"{ALL_DAYS[3]}/000002.parquet"}
    changed = {key[1] for key, value in values_of(history).items() if value != before[key]}
    assert changed == {ALL_DAYS[3]}
    again = backfill(history, AskedCells(TRAINED[0], ALL_DAYS[3:4]))
    assert again.num_measured == 0
    assert_equals_evaluate(history, again)
    shutil.rmtree(day)
    shutil.copytree(kept, day)
    assert backfill(history, ASKED).num_measured == 0
    assert values_of(history) == before


def test_other_workers_go_on(history: Config, undisturbed: dict[str, bytes], local_training: None) -> None:
    """Catches figures that depend on the number of workers, and cells that another number measures again."""
    backfill(history, AskedCells(ASKED.checkpoints, ALL_DAYS[2:3]))
    workers = history.workers.model_copy(update={"num": 3})
    assert backfill(history.model_copy(update={"workers": workers}), ASKED).num_measured == 6
    expected = dict(_values(undisturbed, history))
    found = values_of(history)
    assert found.keys() == expected.keys()
    for key, value in found.items():
        assert value == pytest.approx(expected[key], abs=1e-4 if key[-1] == "auc" else 1e-6, rel=1e-6), key


def _values(files: dict[str, bytes], config: Config) -> dict[tuple[str, ...], Any]:
    folder = Path(config.root) / "undisturbed"
    for name, data in files.items():
        (folder / "metrics" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "metrics" / name).write_bytes(data)
    return values_of(config.model_copy(update={"root": str(folder)}))


# --- Choice of cells ---


def test_lags(history: Config, local_training: None) -> None:
    """Catches cells out of the range of lags, and days that are found by the lag although they have no log."""
    shutil.rmtree(Path(history.logs.path) / f"dt={ALL_DAYS[4]}")
    found = backfill(history, AskedCells(f"{TRAINED[1]}..{TRAINED[2]}", [], lag=(2, 3)))
    assert [(cell.checkpoint_day, cell.day) for cell in found.cells] == [
        (TRAINED[1], ALL_DAYS[3]),
        (TRAINED[2], ALL_DAYS[5]),
    ]
    newest = backfill(history, AskedCells(None, ALL_DAYS[3:4], lag=(1, 1)))
    assert [cell.checkpoint_day for cell in newest.cells] == [TRAINED[2]]


def test_the_table_is_plain_parquet(trained: Config, undisturbed: dict[str, bytes]) -> None:
    """Catches a table that only this project can read, and a row that lacks what it is a figure of."""
    table = pads.dataset(f"{trained.root}/metrics").to_table()
    assert table.schema.equals(SCHEMA)
    rows = table.to_pylist()
    assert {row["lag"] for row in rows} == {0, 1, 2, 3, 4}
    assert {"all", "length=10 to 30"} < {row["slice"] for row in rows}
    assert len({row["key"] for row in rows}) == NUM_CELLS
    required = set(SCHEMA.names) - {"value", "low", "high", "draws"}
    assert all(row[name] is not None for row in rows for name in required)
    assert MetricTable.of(trained.root).read().num_rows == len(rows)
