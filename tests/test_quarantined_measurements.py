"""Measurements of a day with units that cannot be read: refused above the limit of training, by every command."""

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from small_history import ALL_DAYS, ROWS, TRAINED, call, history, trained

from features.errors import DataError
from jobs import backfill as backfill_job
from jobs import evaluate as evaluate_job
from jobs import predict as predict_job
from jobs.command import REFUSED
from pipeline.config.project import Config
from pipeline.daily.ray_work import RayWork
from pipeline.evaluation.backfill import backfill
from pipeline.evaluation.cells import AskedCells
from pipeline.evaluation.evaluate import evaluate
from pipeline.evaluation.subject import published
from pipeline.lineage.line import Line
from pipeline.scoring.predictions import predict
from pipeline.scoring.written_predictions import PredictionFiles
from pipeline.storage.files import Storage

__all__ = ["history", "trained"]  # fixtures

DAY = ALL_DAYS[3]
BAD_ROWS = 100  # the second row group of a file


def damaged(config: Config, limit: float, *, everything: bool = False) -> Config:
    """Return a configuration with quarantine, after a label of the second unit, or of every one, was made wrong."""
    for path in sorted(Path(config.logs.path).glob(f"dt={DAY}/*.parquet"))[: None if everything else 1]:
        table = pq.read_table(path)
        labels = table["click"].to_pylist()
        for row in (0, 250) if everything else (250,):
            labels[row] = 2
        place = table.column_names.index("click")
        pq.write_table(
            table.set_column(place, "click", pa.array(labels, table.schema.field("click").type)),
            path,
            row_group_size=200,
        )
    ingest = config.ingest.model_copy(update={"on_bad_unit": "quarantine", "max_quarantined": limit})
    return config.model_copy(update={"ingest": ingest})


def measured_by_daily(config: Config, out: Path) -> int:
    line = Line.of(config.root, config.line)
    with contextlib.ExitStack() as stack:
        (found,) = RayWork(config, line, stack).measure([published(line)], DAY, "all")
    return found.tasks[0]["model"]["rows"]


def evaluated(config: Config, out: Path) -> int:
    return evaluate(config, [DAY], None, [])["tasks"][0]["model"]["rows"]


def backfilled(config: Config, out: Path) -> int:
    found = backfill(config, AskedCells(TRAINED[-1], [DAY]))
    (cell,) = found.cells
    rows = found.table.of_cells(DAY, [cell.key], ["rows", "task", "slice"]).to_pylist()
    return next(row["rows"] for row in rows if (row["task"], row["slice"]) == ("ctr", "all"))


def predicted(config: Config, out: Path) -> int:
    return predict(config, [DAY], str(out))["rows"]


EVERY_COMMAND = pytest.mark.parametrize("command", [evaluated, backfilled, predicted, measured_by_daily])


@EVERY_COMMAND
def test_too_many_unreadable_rows(
    history: Config, tmp_path: Path, local_training: None, command: Callable[[Config, Path], int]
) -> None:
    """Catches figures of the rest of a day that training refuses, and a limit that each rank holds for its own units.

    The one unit that cannot be read has a sixth of the rows. A limit above leaves it out.
    """
    config = damaged(history, 0.1)
    said = rf"{BAD_ROWS} of {ROWS} rows of {DAY} are quarantined, more than ingest.max_quarantined = 0.1; the first: "
    with pytest.raises(DataError, match=said) as refused:
        command(config, tmp_path / "out")
    assert "label 'click' is 2 at row 50" in str(refused.value)
    assert "\n" not in str(refused.value)
    assert command(damaged(history, 0.2), tmp_path / "other") == ROWS - BAD_ROWS


@EVERY_COMMAND
def test_no_readable_row(
    history: Config, tmp_path: Path, local_training: None, command: Callable[[Config, Path], int]
) -> None:
    """Catches a measurement of no row, whose figures are undefined and that ends as if it were done."""
    config = damaged(history, 0.99, everything=True)
    with pytest.raises(DataError, match=rf"{ROWS} of {ROWS} rows of {DAY} are quarantined"):
        command(config, tmp_path / "out")


def test_nothing_is_left_of_a_refused_day(history: Config, tmp_path: Path, local_training: None) -> None:
    """Catches a refusal with another exit code, a cell of a refused day, and predictions that count as complete."""
    config = damaged(history, 0.1)
    jobs: list[tuple[Any, list[str]]] = [
        (evaluate_job, ["--days", DAY]),
        (backfill_job, ["--checkpoints", TRAINED[-1], "--days", DAY]),
        (predict_job, ["--days", DAY, "--out", str(tmp_path / "out")]),
    ]
    for job, arguments in jobs:
        found, code = call(job, config, tmp_path, *arguments)
        assert code == REFUSED
        assert "are quarantined, more than ingest.max_quarantined" in found["error"]
    assert not list(Path(config.root).glob("metrics/**/*.parquet"))
    assert PredictionFiles(Storage(str(tmp_path / "out"))).days() == []
