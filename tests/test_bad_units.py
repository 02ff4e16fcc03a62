"""Whole runs over units that cannot be read, or lead to no finite loss: refused, or left out and named."""

import shutil
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from small_runs import DAYS, ROWS_PER_DAY, logs, make_config, unpublish, weights, without_statistics

from features.errors import DataError
from pipeline.lineage.line import Line
from pipeline.trainer.train_line import train

__all__ = ["logs"]  # fixtures


@pytest.mark.parametrize("lookahead", [1, 3])
def test_loss_that_is_not_finite_stops_the_run(
    logs: Path, tmp_path: Path, local_training: None, lookahead: int
) -> None:
    """Catches a diverged run that goes on, is restarted for nothing, or leaves a checkpoint of NaN."""
    rates = {"tables": {"learning_rate": 1e30}, "dense": {"kind": "sgd", "learning_rate": 1e30}}
    config = without_statistics(make_config(logs, tmp_path, optimizer=rates, ingest={"lookahead": lookahead}))
    with pytest.raises(DataError, match="at step 1, in the rows of dt=2026-01-01/part-0000"):
        train(config, DAYS[:1], passes=1)
    assert not list(Line.of(config.root, config.line).manifests())


def _with_bad_file(logs: Path, folder: Path, change: Any) -> Path:
    shutil.copytree(logs / f"dt={DAYS[0]}", folder / f"dt={DAYS[0]}")
    path = folder / f"dt={DAYS[0]}" / "part-00002.parquet"
    pq.write_table(change(pq.read_table(path)), path, row_group_size=300)
    return folder


def _set(table: pa.Table, name: str, row: int, value: Any) -> pa.Table:
    values = table[name].to_pylist()
    values[row] = value
    return table.set_column(table.column_names.index(name), name, pa.array(values, table.schema.field(name).type))


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (partial(_set, name="click", row=650, value=2), "label 'click' is 2 at row"),
        (partial(_set, name="history_video_id", row=650, value=None), "'history_video_id' has a null list at row"),
    ],
)
def test_bad_unit_is_refused(logs: Path, tmp_path: Path, local_training: None, change: Any, expected: str) -> None:
    """Catches a bad value that hangs the other ranks, is retried for minutes, or leaves a published model behind."""
    config = without_statistics(make_config(_with_bad_file(logs, tmp_path / "logs", change), tmp_path / "root"))
    with pytest.raises(DataError, match=expected) as error:
        train(config, DAYS[:1], passes=1)
    assert "part-00002.parquet, row group 2" in str(error.value)
    assert "\n" not in str(error.value)
    line = Line.of(config.root, config.line)
    assert line.latest() is None
    assert not list(line.manifests())


@pytest.mark.parametrize("num", [1, 2])
def test_bad_unit_is_quarantined(logs: Path, tmp_path: Path, local_training: None, num: int) -> None:
    """Catches a unit that is passed over without a trace, takes others with it, or comes back after a restart."""
    bad = _with_bad_file(logs, tmp_path / "logs", partial(_set, name="click", row=650, value=2))
    ingest = {"batch_size": 64, "unit": {"max_rows": 200}, "on_bad_unit": "quarantine", "max_quarantined": 0.1}
    sections = {"ingest": ingest, "workers": {"num": num, "timeout_s": 60}, "checkpoint": {"every_steps": 15}}
    config = without_statistics(make_config(bad, tmp_path / "root", **sections))
    result = train(config, DAYS[:1], passes=1)
    unit = f"dt={DAYS[0]}/part-00002.parquet#2[0:200]"
    assert result["rows"] == ROWS_PER_DAY - 200
    assert list(result["quarantined"]) == [unit]
    assert "label 'click' is 2 at row 50" in result["quarantined"][unit]
    first = weights(config, result["checkpoint"], tmp_path)
    line = Line.of(config.root, config.line)
    for manifest in list(line.manifests()):  # on from the middle of the day: the unit stays out
        if manifest.complete or manifest.step > 15:
            line.storage.remove(manifest.checkpoint)
    unpublish(line)
    again = train(config, DAYS[:1], passes=1)
    assert (again["rows"], again["quarantined"]) == (result["rows"], result["quarantined"])
    second = weights(config, again["checkpoint"], tmp_path)
    assert again["checkpoint"] != result["checkpoint"]  # else one would be compared with itself
    assert [name for name in first if not torch.equal(first[name], second[name])] == []


def test_too_much_in_quarantine_is_refused(logs: Path, tmp_path: Path, local_training: None) -> None:
    """Catches a day of which half cannot be read, trained and published as if it were one."""
    bad = _with_bad_file(logs, tmp_path / "logs", partial(_set, name="click", row=650, value=2))
    ingest = {"batch_size": 64, "unit": {"max_rows": 200}, "on_bad_unit": "quarantine", "max_quarantined": 0.05}
    config = without_statistics(make_config(bad, tmp_path / "root", ingest=ingest))
    with pytest.raises(DataError, match=r"200 of 3000 rows of 2026-01-01 are quarantined, more than .* = 0.05; the"):
        train(config, DAYS[:1], passes=1)
    assert Line.of(config.root, config.line).latest() is None
