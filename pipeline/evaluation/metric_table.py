"""Table of metrics over history: Parquet files below ROOT/metrics, appended to day by day, readable with any tool.

A file is the commit of one day: all cells of the day that a command measured. It is written whole or not at all, and
never changed. Its bytes follow from its rows; no row has a time. A later commit of the same cell counts instead of an
earlier one: after a change of the day's log, of the metrics or of their resamples. After the change is taken back, the
earlier rows are committed once more.
"""

import io
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from features.errors import DataError
from pipeline.evaluation.cells import Cell
from pipeline.evaluation.metrics import METRICS_VERSION
from pipeline.evaluation.table import metric_of
from pipeline.ingest.day_files import first_line
from pipeline.ingest.plan import StreamStart
from pipeline.storage.files import Storage

ALL_ROWS = "all"
"""Slice of all rows of a cell."""

SCHEMA = pa.schema(
    [
        ("line", pa.string()),
        ("checkpoint", pa.string()),
        ("checkpoint_day", pa.string()),
        ("day", pa.string()),
        ("lag", pa.int32()),
        ("row_set", pa.string()),
        ("slice", pa.string()),
        ("task", pa.string()),
        ("kind", pa.string()),
        ("metric", pa.string()),
        ("value", pa.float64()),
        ("rows", pa.int64()),
        ("low", pa.float64()),
        ("high", pa.float64()),
        ("draws", pa.list_(pa.float64())),
        ("key", pa.string()),
        ("checkpoint_digest", pa.string()),
        ("log_digest", pa.string()),
        ("metrics_version", pa.int32()),
        ("commit", pa.int32()),
    ]
)

IDENTITY = ("line", "checkpoint", "day", "row_set")
"""Columns that name a cell; a commit has all figures of a cell, and those of the newest commit count."""

Figures = tuple[Cell, Sequence[Mapping[str, Any]]]
"""A cell, and the entries per task of its `Measurement`."""


@dataclass(frozen=True, slots=True)
class MetricTable:
    """Table of metrics of a root.

    Args:
        storage: The folder `ROOT/metrics`.
    """

    storage: Storage

    @classmethod
    def of(cls, root: str) -> "MetricTable":
        """Return the table of a root."""
        return cls(Storage(root).under("metrics"))

    def keys(self, day: str) -> set[str]:
        """Return the keys of the cells that are committed for a day.

        Raises:
            DataError: A file is damaged.
        """
        return {key for table in self._commits(day, ["key"]) for key in pc.unique(table["key"]).to_pylist()}

    def commit(self, day: str, cells: Sequence[Figures]) -> None:
        """Append the figures of a day's cells that are not there yet, as one file.

        Args:
            day: ISO date.
            cells: Each cell with its figures, in any order.
        """
        found = sorted(cells, key=lambda pair: (pair[0].checkpoint_day, pair[0].line, pair[0].checkpoint))
        while left := self._without(day, found):
            number = self._next_number(day)
            rows = [row | {"commit": number} for cell, tasks in left for row in _rows_of(cell, tasks)]
            if self._created(day, number, pa.Table.from_pylist(rows, SCHEMA)):
                return

    def renew(self, day: str, keys: Sequence[str]) -> None:
        """Let committed cells count again whose figures a later commit has replaced, by a commit of the same rows.

        A log that is restored, or resamples that are set back, would else leave figures of what was in between.

        Args:
            day: ISO date.
            keys: Keys of cells of the day; those without a commit are passed over.
        """
        while len(self._numbers(day)) > 1 and (passed := set(keys) & (self.keys(day) - self._counting(day))):
            number, rows = self._next_number(day), self.of_cells(day, sorted(passed))
            place = rows.schema.get_field_index("commit")
            numbered = rows.set_column(place, SCHEMA.field("commit"), pa.array([number] * len(rows), pa.int32()))
            if self._created(day, number, numbered):
                return

    def read(self, days: Sequence[str] | None = None, columns: Sequence[str] = SCHEMA.names) -> pa.Table:
        """Return the rows that count, those of the newest commit of each figure.

        Args:
            days: Measured days, ISO dates; None: all.
            columns: Columns of the result.

        Raises:
            DataError: A file is damaged.
        """
        wanted = [*dict.fromkeys([*columns, *IDENTITY, "commit"])]
        found = []
        for day in self.storage.names() if days is None else days:
            commits = list(self._commits(day, wanted))
            if commits:
                found.append(_newest(pa.concat_tables(commits)).select(list(columns)))
        return pa.concat_tables(found) if found else SCHEMA.empty_table().select(list(columns))

    def of_cells(self, day: str, keys: Sequence[str], columns: Sequence[str] = SCHEMA.names) -> pa.Table:
        """Return the rows of a day's cells by their keys, each once.

        Raises:
            DataError: A file is damaged.
        """
        wanted = [*dict.fromkeys([*columns, *IDENTITY, "key", "commit"])]
        commits = [
            table.filter(pc.is_in(table["key"], pa.array(keys, pa.string()))) for table in self._commits(day, wanted)
        ]
        found = pa.concat_tables(commits) if commits else SCHEMA.empty_table().select(wanted)
        return _newest(found).select(list(columns))

    def _without(self, day: str, cells: Sequence[Figures]) -> list[Figures]:
        """Return the cells that are not committed: another command may have been faster with some."""
        done = self.keys(day)
        return [pair for pair in cells if pair[0].key not in done]

    def _counting(self, day: str) -> set[str]:
        """Return the keys of the cells whose rows count."""
        return set(self.read([day], ["key"])["key"].to_pylist())

    def _next_number(self, day: str) -> int:
        return max(self._numbers(day), default=0) + 1

    def _created(self, day: str, number: int, rows: pa.Table) -> bool:
        """Write a commit; return False if another command has taken its number."""
        data = io.BytesIO()
        pq.write_table(rows, data, compression="zstd")
        return self.storage.create(_file(day, number), data.getvalue())

    def _commits(self, day: str, columns: Sequence[str]) -> Iterator[pa.Table]:
        """Yield the commits of a day, the oldest first."""
        for number in self._numbers(day):
            try:
                yield pq.read_table(io.BytesIO(self.storage.read(_file(day, number))), columns=list(columns))
            except (pa.ArrowException, OSError) as error:
                if isinstance(error, OSError) and error.errno is not None:
                    raise
                raise DataError(
                    f"{self.storage.url}/{_file(day, number)} is damaged ({first_line(error)}): remove it, and its "
                    "cells are measured again"
                ) from error

    def _numbers(self, day: str) -> list[int]:
        names = (name.removesuffix(".parquet") for name in self.storage.names(day))
        return sorted(int(name) for name in names if name.isdigit())


def begin_after(table: MetricTable, readings: Sequence[tuple[str, Sequence[str]]]) -> StreamStart:
    """Begin a stream of readings after the days that an earlier start of the workers has committed.

    Args:
        table: The table.
        readings: Day of each reading, and the keys of all cells of that day.
    """
    done = itertools.takewhile(lambda reading: set(reading[1]) <= table.keys(reading[0]), readings)
    return StreamStart(done=len(list(done)))


def _file(day: str, number: int) -> str:
    return f"{day}/{number:06d}.parquet"


def _rows_of(cell: Cell, tasks: Sequence[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """Yield the rows of a cell, but for their commit."""
    same = {
        "line": cell.line,
        "checkpoint": cell.checkpoint,
        "checkpoint_day": cell.checkpoint_day,
        "day": cell.day,
        "lag": cell.lag,
        "row_set": cell.row_set,
        "key": cell.key,
        "checkpoint_digest": cell.checkpoint_digest,
        "log_digest": cell.log_digest,
        "metrics_version": METRICS_VERSION,
    }
    for entry in tasks:
        for name, figures, drawn in _slices_of(entry):
            values = dict(figures)
            of_slice = {"slice": name, "task": entry["task"], "kind": entry["kind"], "rows": values.pop("rows")}
            for metric, value in values.items():
                found = drawn if metric == metric_of(entry["kind"]) else {}
                interval = {name: found.get(name) for name in ("low", "high", "draws")}
                yield same | of_slice | {"metric": metric, "value": None if value is None else float(value)} | interval


def _slices_of(entry: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any], Mapping[str, Any]]]:
    """Yield the name, the metrics and the interval of each slice of a task, that of all rows first."""
    yield ALL_ROWS, entry["model"], entry.get("interval", {})
    for name, values in entry.get("slices", {}).items():
        for value in values:
            figures = {key: one for key, one in value.items() if key not in ("value", "interval")}
            yield f"{name}={value['value']}", figures, value.get("interval", {})


def _newest(rows: pa.Table) -> pa.Table:
    """Keep the rows of the newest commit of each cell, in the order of the rows."""
    newest: dict[tuple[Any, ...], int] = {}
    cells = list(zip(*(rows[name].to_pylist() for name in IDENTITY), strict=True))
    commits = rows["commit"].to_pylist()
    for cell, commit in zip(cells, commits, strict=True):
        newest[cell] = max(commit, newest.get(cell, 0))
    return rows.filter(
        pa.array([newest[cell] == commit for cell, commit in zip(cells, commits, strict=True)], pa.bool_())
    )
