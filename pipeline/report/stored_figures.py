"""Figures that other commands have stored in a root: backfills, slices, comparisons and calibration curves."""

import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from features.errors import DataError
from pipeline.evaluation.metric_table import ALL_ROWS, MetricTable
from pipeline.lineage.ledger_entry import LedgerEntry
from pipeline.report.task_days import calibration_points
from pipeline.storage.files import Storage
from pipeline.studies.candidates import SINGLE
from pipeline.studies.gains import Spread, gain

MOST_DAYS, MOST_CHECKPOINTS, MOST_COMPARISONS = 60, 40, 4
_COLUMNS = ("line", "checkpoint", "checkpoint_day", "day", "lag", "row_set", "slice", "task", "kind", "metric")
_READ = (*_COLUMNS, "value", "rows")
_QUALITY = {"binary": "auc", "regression": "r2", "multiclass": "accuracy"}


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasuredCell:
    """Quality of a checkpoint on a day, on all rows or on those of a slice.

    Args:
        checkpoint: Name of the checkpoint, with its line.
        checkpoint_day: Day of the checkpoint, ISO date.
        day: Measured day, ISO date.
        lag: Days from the checkpoint to the measured day.
        row_set: `all` or `held_out`.
        slice: Name of the slice; empty: all rows.
        task: The task.
        value: AUC, R2 or accuracy.
        num_rows: Rows in the task's space.
    """

    checkpoint: str
    checkpoint_day: str
    day: str
    lag: int
    row_set: str
    slice: str
    task: str
    value: float
    num_rows: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SliceChange:
    """Change of a slice's quality on the newest day.

    Args:
        slice: Name of the slice.
        task: The task.
        day: The newest day, ISO date.
        value: Quality on that day.
        usual: Mean quality on the days before.
        num_days: Number of these.
        num_rows: Rows of the newest day.
    """

    slice: str
    task: str
    day: str
    value: float
    usual: float
    num_days: int
    num_rows: int

    @property
    def change(self) -> float:
        """Quality less the usual one."""
        return self.value - self.usual


def measured_cells(root: str, lines: Sequence[str], days: Sequence[str] | None) -> tuple[list[MeasuredCell], int]:
    """Return the cells of the newest measured days and checkpoints.

    Args:
        root: The project's root.
        lines: Lines whose checkpoints count.
        days: ISO dates that were asked for; None: all.

    Returns:
        The cells, and the number of measured days that are left out, since they are not the newest.
    """
    table = MetricTable.of(root)
    known = [day for day in table.storage.names() if days is None or day in set(days)]
    found = table.read(known[-MOST_DAYS:], _READ) if known else pa.table({name: [] for name in _READ})
    cells = [_cell(row) for row in found.to_pylist() if _counts(row, lines)]
    newest = sorted({(one.checkpoint_day, one.checkpoint) for one in cells})[-MOST_CHECKPOINTS:]
    kept = {checkpoint for _, checkpoint in newest}
    return [one for one in cells if one.checkpoint in kept], max(0, len(known) - MOST_DAYS)


def slice_changes(cells: Sequence[MeasuredCell]) -> list[SliceChange]:
    """Return the changes of all slices from the mean of the days before to the newest one, the largest drop first.

    If a day has several checkpoints, the newest that has not trained the day counts; without such a one, the oldest.
    """
    series: dict[tuple[str, str, str], dict[str, MeasuredCell]] = {}
    for cell in cells:
        if cell.slice:
            of_days = series.setdefault((cell.slice, cell.task, cell.row_set), {})
            of_days[cell.day] = min(cell, of_days.get(cell.day, cell), key=_freshness)
    newest = max((cell.day for cell in cells if cell.slice), default="")
    found = []
    for (name, task, _), of_days in series.items():
        before = [cell.value for day, cell in of_days.items() if day < newest]
        if newest in of_days and before:
            now = of_days[newest]
            usual = sum(before) / len(before)
            found.append(
                SliceChange(
                    slice=name,
                    task=task,
                    day=newest,
                    value=now.value,
                    usual=usual,
                    num_days=len(before),
                    num_rows=now.num_rows,
                )
            )
    return sorted(found, key=lambda one: one.change)


def _freshness(cell: MeasuredCell) -> tuple[bool, int]:
    return cell.lag <= 0, cell.lag if cell.lag > 0 else -cell.lag


def _counts(row: Mapping[str, Any], lines: Sequence[str]) -> bool:
    return row["line"] in lines and row["metric"] == _QUALITY[row["kind"]] and row["value"] is not None


def _cell(row: Mapping[str, Any]) -> MeasuredCell:
    name = row["slice"] or ALL_ROWS
    return MeasuredCell(
        checkpoint=f"{row['line']}:{row['checkpoint']}",
        checkpoint_day=row["checkpoint_day"],
        day=row["day"],
        lag=row["lag"],
        row_set=row["row_set"],
        slice="" if name == ALL_ROWS else name,
        task=row["task"],
        value=row["value"],
        num_rows=row["rows"],
    )


@dataclass(frozen=True, slots=True)
class StoredComparison:
    """Gains of a stored comparison.

    Args:
        name: Name of its folder.
        gains: Gain over the single-task model, by model and task.
    """

    name: str
    gains: dict[str, dict[str, Spread]]


def stored_comparisons(root: str) -> tuple[list[StoredComparison], int]:
    """Return the comparisons of a root that have a single-task model, and the number of those that are left out.

    Raises:
        DataError: A table is damaged.
    """
    storage = Storage(root).under("comparisons")
    names = [name for name in storage.names() if storage.exists(f"{name}/table.parquet")]
    found = (StoredComparison(name, _gains(storage, name)) for name in names[:MOST_COMPARISONS])
    return [one for one in found if one.gains], max(0, len(names) - MOST_COMPARISONS)


def _gains(storage: Storage, name: str) -> dict[str, dict[str, Spread]]:
    """Return the gains of the models of a comparison over the single-task models with the same seed."""
    path = f"{name}/table.parquet"
    try:
        rows = pq.read_table(io.BytesIO(storage.read(path))).to_pylist()
    except pa.ArrowException as error:
        raise DataError(f"{storage.url}/{path} is damaged: remove it, and start jobs.compare again") from error
    alone = {(row["seed"], row["task"]): row["value"] for row in rows if row["model"] == SINGLE}
    by_seed: dict[str, dict[str, list[float | None]]] = {}
    for row in rows:
        if row["model"] != SINGLE and alone:
            found = gain(row["value"], alone.get((row["seed"], row["task"])), row["metric"])
            by_seed.setdefault(row["model"], {}).setdefault(row["task"], []).append(found)
    return {
        model: {task: Spread.of(values) for task, values in of_tasks.items()} for model, of_tasks in by_seed.items()
    }


@dataclass(frozen=True, slots=True)
class CalibrationCurve:
    """Calibration curve of a task.

    Args:
        task: The task.
        source: Rows and model that it is of, in words.
        points: `mean_prediction`, `mean_label` and `num_rows` of each bin.
    """

    task: str
    source: str
    points: list[dict[str, float]]


def calibration_curves(root: str, line: str, entries: Sequence[LedgerEntry]) -> list[CalibrationCurve]:
    """Return the newest calibration curves: those of the ledger, or else of the newest stored evaluation of the line.

    Args:
        root: The project's root.
        line: Name of the line.
        entries: Published entries, the oldest first.
    """
    for entry in reversed(entries):
        if curves := list(_of_entry(entry)):
            return curves
    storage = Storage(root).under(f"reports/evaluate/{line}")
    for name in reversed([name for name in storage.names() if name.endswith(".json")]):
        try:
            result = json.loads(storage.read(name))
        except ValueError:  # a file for people, who may have edited it
            continue
        if curves := list(_of_evaluation(result)):
            return curves
    return []


def _of_entry(entry: LedgerEntry) -> Iterator[CalibrationCurve]:
    held_out = entry.holdout.new if entry.holdout else None
    for metrics, source in (
        (held_out, f"the new model on the hold-out of {entry.day}"),
        (entry.before, f"yesterday's model on {entry.day}, before training"),
    ):
        found = {task: points for task, one in (metrics or {}).items() if (points := calibration_points(one))}
        yield from (CalibrationCurve(task, source, points) for task, points in found.items())
        if found:
            return


def _of_evaluation(result: Mapping[str, Any]) -> Iterator[CalibrationCurve]:
    source = f"{result['checkpoint']} on {result['days'][0]}..{result['days'][-1]}, by jobs.evaluate"
    for one in result["tasks"]:
        if points := calibration_points(one["model"]):
            yield CalibrationCurve(one["task"], source, points)


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredFigures:
    """Figures of a line that other commands have stored.

    Args:
        cells: Cells of the newest measured days and checkpoints.
        num_older: Number of measured days that are left out.
        curves: The newest calibration curves.
        comparisons: Comparisons with single-task models.
        num_others: Number of comparisons that are left out.
    """

    cells: list[MeasuredCell]
    num_older: int
    curves: list[CalibrationCurve]
    comparisons: list[StoredComparison]
    num_others: int


def read_stored(root: str, line: str, entries: Sequence[LedgerEntry], days: Sequence[str] | None) -> StoredFigures:
    """Read what other commands have stored.

    Args:
        root: The project's root.
        line: Name of the line.
        entries: Its published entries, the oldest first.
        days: ISO dates that were asked for; None: all.
    """
    cells, num_older = measured_cells(root, [line, *{one.line for one in entries if one.line}], days)
    comparisons, num_others = stored_comparisons(root)
    return StoredFigures(
        cells=cells,
        num_older=num_older,
        curves=calibration_curves(root, line, entries),
        comparisons=comparisons,
        num_others=num_others,
    )
