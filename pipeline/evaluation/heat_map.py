"""Tables of a backfill as text: per task a checkpoint a row and a day a column, of metrics or of differences."""

import itertools
from collections.abc import Mapping, Sequence

from pipeline.evaluation.cells import Cell
from pipeline.evaluation.differences import Difference
from pipeline.evaluation.metric_table import ALL_ROWS, MetricTable
from pipeline.evaluation.table import metric_of

_DAYS_ABREAST = 7
_COLUMNS = ("task", "kind", "metric", "value", "key", "slice")

Values = dict[str, dict[tuple[str, str], str]]
"""Text by checkpoint and day, for each heading."""


def metric_maps(table: MetricTable, cells: Sequence[Cell]) -> str:
    """Format the main metric of every task, of all rows of the cells.

    Args:
        table: Table with the cells.
        cells: The cells, in the order of days.
    """
    maps: Values = {}
    for day, found in itertools.groupby(cells, lambda cell: cell.day):
        by_key = {cell.key: cell for cell in found}
        for row in table.of_cells(day, list(by_key), _COLUMNS).to_pylist():
            if row["metric"] == metric_of(row["kind"]) and row["slice"] == ALL_ROWS:
                text = "undefined" if row["value"] is None else f"{row['value']:.4f}"
                maps.setdefault(_heading(row), {})[_label(by_key[row["key"]]), day] = text
    return _formatted(maps)


def difference_maps(found: Sequence[Difference]) -> str:
    """Format differences with their intervals; a star marks an interval without 0."""
    maps: Values = {}
    for one in found:
        of_slice = "" if one.slice == ALL_ROWS else f", {one.slice}"
        heading = f"{one.task}{of_slice}, {one.metric.upper()}, difference [interval]"
        maps.setdefault(heading, {})[_label(one.cell), one.cell.day] = _difference(one)
    return _formatted(maps)


def _heading(row: Mapping[str, str]) -> str:
    return f"{row['task']}, {row['metric'].upper()}"


def _label(cell: Cell) -> str:
    return f"{cell.checkpoint_day} {cell.line}:{cell.checkpoint.partition('/')[2].partition('/')[2]}"


def _difference(one: Difference) -> str:
    if one.value is None:
        return "undefined"
    if one.low is None or one.high is None:
        return f"{one.value:+.4f} [-]"
    return f"{one.value:+.4f} [{one.low:+.4f}, {one.high:+.4f}]{'*' if one.low > 0 or one.high < 0 else ''}"


def _formatted(maps: Values) -> str:
    return "\n\n".join(_one_map(heading, values) for heading, values in maps.items())


def _one_map(heading: str, values: Mapping[tuple[str, str], str]) -> str:
    """Return a task's map, a few days abreast."""
    labels = list(dict.fromkeys(sorted(label for label, _ in values)))
    days = list(dict.fromkeys(sorted(day for _, day in values)))
    blocks = [days[first : first + _DAYS_ABREAST] for first in range(0, len(days), _DAYS_ABREAST)]
    lines = []
    for block in blocks:
        rows = [[heading, *block]]
        rows += [[label, *(values.get((label, day), "-") for day in block)] for label in labels]
        widths = [max(len(row[place]) for row in rows) for place in range(len(rows[0]))]
        lines += [
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
        ]
    return "\n".join(lines)
