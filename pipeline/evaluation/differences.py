"""Differences of checkpoints' main metrics on the same rows, with intervals by a paired bootstrap over users."""

from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.evaluation.bootstrap import paired_interval
from pipeline.evaluation.cells import Cell
from pipeline.evaluation.metric_table import ALL_ROWS, MetricTable
from pipeline.evaluation.table import metric_of

_COLUMNS = ("task", "kind", "metric", "value", "draws", "key", "slice")


@dataclass(frozen=True, slots=True)
class Difference:
    """Difference of a checkpoint's main metric on a day from another checkpoint's.

    Args:
        cell: The checkpoint's cell.
        task: Name of the task.
        metric: The main metric of its kind.
        value: Metric of the checkpoint less the other's; None: undefined.
        low: Lower end of the interval; None: undefined.
        high: Upper end.
    """

    cell: Cell
    task: str
    metric: str
    value: float | None
    low: float | None
    high: float | None


def differences(table: MetricTable, cells: Sequence[Cell], against: str, level: float) -> list[Difference]:
    """Return the differences of a day's cells from one of them, per task.

    Args:
        table: Table with all of them.
        cells: Cells of one day.
        against: Key of the cell that the others are held against, of the same day.
        level: Share of the resamples within an interval.
    """
    if not cells:
        return []
    keys = [*(cell.key for cell in cells), against]
    rows = table.of_cells(cells[0].day, keys, _COLUMNS).to_pylist()
    main = [row for row in rows if row["metric"] == metric_of(row["kind"]) and row["slice"] == ALL_ROWS]
    found = {(row["key"], row["task"]): row for row in main}
    base = {task: row for (key, task), row in found.items() if key == against}
    return [
        Difference(cell, task, other["metric"], *_apart(found[cell.key, task], other, level))
        for cell in cells
        if cell.key != against
        for task, other in base.items()
    ]


def _apart(one: dict, other: dict, level: float) -> tuple[float | None, float | None, float | None]:
    """Return the difference of two rows of the table, and its interval."""
    apart = None if one["value"] is None or other["value"] is None else one["value"] - other["value"]
    return apart, *paired_interval(one["draws"] or [], other["draws"] or [], level)
