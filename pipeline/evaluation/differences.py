"""Differences of checkpoints' main metrics on the same rows, with intervals by a paired bootstrap over users.

They are of all rows of a day, and of each slice.
"""

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
        slice: All rows, or the name of a slice, as in the table.
        task: Name of the task.
        metric: The main metric of its kind.
        value: Metric of the checkpoint less the other's; None: undefined.
        low: Lower end of the interval; None: undefined.
        high: Upper end.
    """

    cell: Cell
    slice: str
    task: str
    metric: str
    value: float | None
    low: float | None
    high: float | None


def differences(table: MetricTable, cells: Sequence[Cell], against: str, level: float) -> list[Difference]:
    """Return the differences of a day's cells from one of them, per slice and task, those of all rows first.

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
    main = [row for row in rows if row["metric"] == metric_of(row["kind"])]
    found = {(row["key"], row["slice"], row["task"]): row for row in main}
    base = {(name, task): row for (key, name, task), row in found.items() if key == against}
    ordered = sorted(base, key=lambda place: place[0] != ALL_ROWS)
    return [
        Difference(cell, name, task, base[name, task]["metric"], *_apart(one, base[name, task], level))
        for cell in cells
        if cell.key != against
        for name, task in ordered
        if (one := found.get((cell.key, name, task))) is not None
    ]


def _apart(one: dict, other: dict, level: float) -> tuple[float | None, float | None, float | None]:
    """Return the difference of two rows of the table, and its interval."""
    apart = None if one["value"] is None or other["value"] is None else one["value"] - other["value"]
    return apart, *paired_interval(one["draws"] or [], other["draws"] or [], level)
