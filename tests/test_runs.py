"""Whole runs: a day trained once, audited, resumed bit for bit, and measured."""

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from local_training import on_processes
from records import write_manifest, write_position
from small_runs import DAYS, ROWS_PER_DAY, logs, make_config, unpublish, weights, without_statistics

from features.errors import DataError
from pipeline.config.project import Config
from pipeline.evaluation.evaluate import evaluate
from pipeline.evaluation.table import metrics_table
from pipeline.ingest.cursor import StoredCursor
from pipeline.lineage.audit import audit_line
from pipeline.lineage.choose_start import start_of
from pipeline.lineage.ledger import Ledger
from pipeline.lineage.line import Line
from pipeline.lineage.manifest import declared
from pipeline.lineage.records import RunScope
from pipeline.lineage.stored_checkpoint import CURSOR, LANES, MANIFEST
from pipeline.log_passes.statistics import fit_statistics
from pipeline.trainer.train_line import train

__all__ = ["logs"]  # fixtures


@pytest.fixture(scope="module")
def trained(logs: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Config, dict[str, Any]]:
    """Two days trained without a disturbance, with checkpoints every 10 steps."""
    config = make_config(logs, tmp_path_factory.mktemp("root"), checkpoint={"every_steps": 10, "keep": 10})
    with on_processes():
        fit_statistics(config, DAYS)
        return config, train(config, DAYS, passes=1)


def test_every_row_is_trained_once(trained: tuple[Config, dict[str, Any]]) -> None:
    """Catches a run that reports what it did not do: rows, spaces, cursor and LATEST are read from its checkpoints."""
    config, result = trained
    line = Line.of(config.root, config.line)
    assert result["result"] == "trained"
    assert result["rows"] == 2 * ROWS_PER_DAY
    latest = line.latest()
    assert latest is not None
    assert (latest.day, latest.checkpoint) == (DAYS[-1], result["checkpoint"])
    manifest = line.read_manifest(result["checkpoint"])
    assert manifest is not None
    table = pq.read_table(Path(config.logs.path) / f"dt={DAYS[-1]}")
    assert manifest.rows == ROWS_PER_DAY
    assert manifest.rows_in_space == {"ctr": ROWS_PER_DAY, "vcr": int(np.sum(table["played"].to_numpy()))}
    assert sum(count for count, _ in line.cursor(manifest).units.values()) == ROWS_PER_DAY


def test_the_audit_of_a_line(trained: tuple[Config, dict[str, Any]], tmp_path: Path) -> None:
    """Catches an audit that believes what the checkpoint says of itself."""
    config, result = trained
    found = audit_line(config, None)
    assert (found["result"], found["days"], found["rows"]) == ("every row once", DAYS, 2 * ROWS_PER_DAY)
    line = Line.of(config.root, config.line)
    within = next(m for m in line.manifests() if not m.complete and m.day == DAYS[1])
    assert audit_line(config, within.checkpoint)["rows"] == ROWS_PER_DAY + within.rows
    shutil.copytree(config.root, tmp_path / "root")
    cut = config.model_copy(update={"root": str(tmp_path / "root")})
    storage = Line.of(cut.root, cut.line).storage
    parent = str(within.parent)
    hidden = storage.read(f"{parent}/manifest.json")
    storage.remove(f"{parent}/manifest.json")
    assert audit_line(cut, None)["result"] == f"every row once since {DAYS[1]}; {parent} is gone"
    storage.write(f"{parent}/manifest.json", hidden)
    for checkpoint, change, expected in (
        (result["checkpoint"], _one_row_less, "199 rows trained of 200"),
        (within.checkpoint, _another_sum, "rows trained, but not each of them once"),
        (result["checkpoint"], _another_size, "the files of the log are not those"),
    ):
        names = [f"{checkpoint}/{file}" for file in (MANIFEST, CURSOR, LANES)]
        written = [storage.read(name) for name in names]
        change(Line.of(cut.root, cut.line), checkpoint)
        with pytest.raises(DataError, match=expected):
            audit_line(cut, checkpoint)
        for name, data in zip(names, written, strict=True):
            storage.write(name, data)


def _one_row_less(line: Line, checkpoint: str) -> None:
    cursor = _cursor(line, checkpoint)
    key = next(key for key, (count, _) in cursor.units.items() if count == 200)
    _write_cursor(line, checkpoint, cursor.units | {key: (199, cursor.units[key][1])})


def _another_sum(line: Line, checkpoint: str) -> None:
    cursor = _cursor(line, checkpoint)
    key, (count, total) = next(iter(cursor.units.items()))
    _write_cursor(line, checkpoint, cursor.units | {key: (count, total ^ 1)})


def _another_size(line: Line, checkpoint: str) -> None:
    manifest = line.read_manifest(checkpoint)
    assert manifest is not None
    files = {file: f"1{mark}" for file, mark in manifest.files_of_log.items()}
    write_manifest(line, checkpoint, manifest, files_of_log=files)


def _cursor(line: Line, checkpoint: str) -> StoredCursor:
    return StoredCursor.from_arrow(line.storage.read(f"{checkpoint}/{CURSOR}"))


def _write_cursor(line: Line, checkpoint: str, units: dict[str, tuple[int, int]]) -> None:
    manifest = line.read_manifest(checkpoint)
    assert manifest is not None
    write_position(
        line, checkpoint, replace(_cursor(line, checkpoint), units=units), [*map(list, line.lanes(manifest))]
    )


@pytest.mark.parametrize("num", [1, 2, 3])
def test_days_of_all_sizes_twice(logs: Path, tmp_path: Path, local_training: None, num: int) -> None:
    """Catches a rank without a row, a day that fills its batches exactly, or a second pass, that loses or hangs."""
    table = pq.read_table(logs / f"dt={DAYS[0]}")
    sizes = {
        "2026-01-01": [[1]],  # one row in all
        "2026-01-02": [[64 * num]],  # one batch of every rank
        "2026-01-03": [[40], [7]],  # fewer units than workers, where there are 3
        "2026-01-04": [[200, 1, 90, 33], [3], [150, 2]],
    }
    for day, files in sizes.items():
        (tmp_path / f"logs/dt={day}").mkdir(parents=True)
        for part, groups in enumerate(files):
            with pq.ParquetWriter(tmp_path / f"logs/dt={day}/part-{part}.parquet", table.schema) as writer:
                for rows in groups:
                    writer.write_table(table.slice(part * 500, rows), row_group_size=rows)
    workers = {"num": num, "timeout_s": 60, "max_failures": 0}
    config = without_statistics(make_config(tmp_path / "logs", tmp_path / "root", workers=workers))
    result = train(config, sorted(sizes), passes=2)
    expected = [sum(map(sum, files)) for _, files in sorted(sizes.items())]
    assert result["rows"] == 2 * sum(expected)
    found = audit_line(config, None)
    assert (found["days"], found["rows"]) == (2 * sorted(sizes), result["rows"])
    line = Line.of(config.root, config.line)
    newest = line.newest()
    assert newest is not None
    lineage = list(line.lineage(newest))
    assert [m.rows for m in reversed(lineage)] == 2 * expected
    assert [m.rows_in_space["ctr"] for m in reversed(lineage)] == 2 * expected
    longest = [max(sum(map(_rows_of, lane)) for lane in line.lanes(m)) for m in lineage]
    assert lineage[0].step == sum(math.ceil(rows / 64) for rows in longest)


def _rows_of(key: str) -> int:
    """Rows of a unit, by its key."""
    first, stop = key.rpartition("[")[2].removesuffix("]").split(":")
    return int(stop) - int(first)


def test_a_published_day_is_not_left_out(
    trained: tuple[Config, dict[str, Any]], tmp_path: Path, local_training: None
) -> None:
    """The checkpoint of yesterday is damaged, and today is trained from the day before: a day's rows are lost."""
    config, result = trained
    shutil.copytree(config.root, tmp_path / "root")
    cut = config.model_copy(update={"root": str(tmp_path / "root")})
    line = Line.of(cut.root, cut.line)
    for manifest in list(line.manifests()):  # as two daily commands would have written them
        if not manifest.complete:
            line.remove(manifest.checkpoint)
            continue
        write_manifest(line, manifest.checkpoint, manifest, run=RunScope(days=(manifest.day,), passes=1))
    start = start_of(declared(cut), line, ["2026-01-03"], 1)  # negative control
    assert start is not None
    assert start.checkpoint == result["checkpoint"]
    line.storage.write(f"{result['checkpoint']}/__0_0.distcp", b"half")
    with pytest.raises(DataError, match=r"which is damaged or gone: restore its files, or go back to an earlier day"):
        train(cut, ["2026-01-03"], passes=1)


def test_nothing_to_do(trained: tuple[Config, dict[str, Any]]) -> None:
    """Catches a second run over the same days that trains them again."""
    config, result = trained
    assert train(config, DAYS, passes=1) == {
        "result": "nothing to do",
        "checkpoint": result["checkpoint"],
        "step": result["step"],
    }


def test_resume_is_bit_identical(trained: tuple[Config, dict[str, Any]], tmp_path: Path, local_training: None) -> None:
    """Catches rows lost, doubled or reordered by a resume, state that is not restored, dice thrown anew."""
    config, result = trained
    root = tmp_path / "root"
    shutil.copytree(config.root, root)
    cut = config.model_copy(update={"root": str(root)})
    line = Line.of(cut.root, cut.line)
    complete = next(m for m in line.manifests() if m.complete and m.day == DAYS[0])
    for manifest in list(line.manifests()):
        if manifest.step >= complete.step:
            line.storage.remove(manifest.checkpoint)
    unpublish(line)
    resumed_from = line.newest()
    assert resumed_from is not None
    assert not resumed_from.complete
    assert 0 < resumed_from.rows < ROWS_PER_DAY
    write_manifest(line, resumed_from.checkpoint, resumed_from, seconds=1000.0)
    again = train(cut, DAYS, passes=1)
    seconds = {entry.day: entry.train_seconds for entry in Ledger(line).chain()}
    assert seconds[DAYS[0]] > 1000 > seconds[DAYS[1]]  # the whole day's, with those of the attempt before
    assert again["step"] == result["step"]
    before, after = weights(config, result["checkpoint"], tmp_path), weights(cut, again["checkpoint"], tmp_path)
    assert set(before) == set(after)
    assert any("momentum1" in name for name in before)
    assert [name for name in before if not torch.equal(before[name], after[name])] == []
    metrics = [evaluate(of, ["2026-01-03"], None, [])["tasks"] for of in (config, cut)]
    assert metrics[0] == metrics[1]


def test_resume_on_another_number_of_workers(
    trained: tuple[Config, dict[str, Any]], tmp_path: Path, local_training: None
) -> None:
    """Catches a resume that keeps the old lanes on new ranks, or tables that cannot be resharded."""
    config, _ = trained
    root = tmp_path / "root"
    shutil.copytree(config.root, root)
    workers = config.workers.model_copy(update={"num": 3})
    cut = config.model_copy(update={"root": str(root), "workers": workers})
    line = Line.of(cut.root, cut.line)
    for manifest in list(line.manifests()):
        if manifest.complete and manifest.day == DAYS[1]:
            line.storage.remove(manifest.checkpoint)
    unpublish(line)
    again = train(cut, DAYS, passes=1)  # the run itself audits the day and would not have ended
    manifest = line.read_manifest(again["checkpoint"])
    assert manifest is not None
    assert manifest.rows == ROWS_PER_DAY
    assert len(line.lanes(manifest)) == 3


def test_evaluate(trained: tuple[Config, dict[str, Any]], local_training: None) -> None:
    """Catches an evaluation over rows outside a task's space, over padding, or of other rows than the baselines'."""
    config, result = trained
    found = evaluate(config, ["2026-01-03"], None, DAYS)
    assert found["checkpoint"] == result["checkpoint"]
    played = int(np.sum(pq.read_table(Path(config.logs.path) / "dt=2026-01-03")["played"].to_numpy()))
    for entry, rows in zip(found["tasks"], (ROWS_PER_DAY, played), strict=True):
        assert [entry[name]["rows"] for name in ("model", "popularity", "truth")] == [rows] * 3
    ctr, vcr = found["tasks"]
    assert 0.5 < ctr["model"]["auc"] < ctr["truth"]["auc"] < 1
    assert 0.7 < ctr["truth"]["calibration"] < 1.3
    assert vcr["truth"]["mse"] < vcr["model"]["mse"]
    assert "ctr" in metrics_table(found)
    json.dumps(found)
