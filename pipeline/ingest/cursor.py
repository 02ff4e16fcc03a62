"""The cursor: for each unit of a day, the number of rows that the model has seen, and a hash sum over these rows.

A batch carries its rows' cursor, and the model's cursor advances with each stepped batch. A reader's own position runs
ahead of the model by the prefetched batches.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from features.errors import DataError
from pipeline.ingest.units import DayLog, Unit, Units, audit_sum

MASK = (1 << 64) - 1


@dataclass(frozen=True, slots=True)
class StoredCursor:
    """Cursor of a log by the keys of its units, as a checkpoint keeps it.

    Args:
        units: Rows stepped, and the sum modulo 2^64 of hash(unit, row number) over them, by unit key.
        in_space: Rows stepped in each task's sample space, in task order; empty before the first.
        quarantined: Reason why the unit could not be read, by unit key.
        held_out: Held-out rows among the stepped rows.
    """

    units: dict[str, tuple[int, int]] = field(default_factory=dict)
    in_space: list[int] = field(default_factory=list)
    quarantined: dict[str, str] = field(default_factory=dict)
    held_out: int = 0

    @classmethod
    def from_format_3(cls, content: dict[str, Any]) -> "StoredCursor":
        """Read the cursor of a manifest of format 3, whose sums were decimal strings."""
        units = {key: (count, int(total)) for key, (count, total) in content["units"].items()}
        return cls(units, content.get("in_space", []), content.get("quarantined", {}), content.get("held_out", 0))

    def to_arrow(self) -> bytes:
        """Return an Arrow file with a row per unit that was stepped or is quarantined."""
        keys = [*self.units, *(key for key in self.quarantined if key not in self.units)]
        found = [self.units.get(key, (0, 0)) for key in keys]
        columns = {
            "unit": pa.array(keys, pa.string()),
            "rows": pa.array([rows for rows, _ in found], pa.int64()),
            "sum": pa.array([total for _, total in found], pa.uint64()),
            "quarantined": pa.array([self.quarantined.get(key) for key in keys], pa.string()),
        }
        figures = {"in_space": json.dumps(self.in_space), "held_out": str(self.held_out)}
        return to_arrow_file(pa.table(columns).replace_schema_metadata(figures))

    @classmethod
    def from_arrow(cls, data: bytes) -> "StoredCursor":
        """Read what `to_arrow` wrote."""
        table = pa.ipc.open_file(data).read_all()
        keys, rows, sums, reasons = (table[name].to_pylist() for name in ("unit", "rows", "sum", "quarantined"))
        units = {key: (count, total) for key, count, total in zip(keys, rows, sums, strict=True) if count}
        quarantined = {key: reason for key, reason in zip(keys, reasons, strict=True) if reason is not None}
        figures = table.schema.metadata
        return cls(units, json.loads(figures[b"in_space"]), quarantined, int(figures[b"held_out"]))


def to_arrow_file(table: pa.Table) -> bytes:
    """Return a table as a compressed Arrow file."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, table.schema, options=pa.ipc.IpcWriteOptions(compression="zstd")) as writer:
        writer.write_table(table)
    return sink.getvalue().to_pybytes()


def lanes_to_arrow(lanes: Sequence[Sequence[str]]) -> bytes:
    """Return an Arrow file of lanes: a row per unit, rank by rank, each in its order.

    Args:
        lanes: Unit keys per rank.
    """
    ranks = [rank for rank, lane in enumerate(lanes) for _ in lane]
    columns = {
        "rank": pa.array(ranks, pa.int32()),
        "unit": pa.array([key for lane in lanes for key in lane], pa.string()),
    }
    return to_arrow_file(pa.table(columns).replace_schema_metadata({"ranks": str(len(lanes))}))


def lanes_from_arrow(data: bytes) -> tuple[tuple[str, ...], ...]:
    """Read what `lanes_to_arrow` wrote."""
    table = pa.ipc.open_file(data).read_all()
    lanes: list[list[str]] = [[] for _ in range(int(table.schema.metadata[b"ranks"]))]
    for rank, key in zip(table["rank"].to_pylist(), table["unit"].to_pylist(), strict=True):
        lanes[rank].append(key)
    return tuple(map(tuple, lanes))


@dataclass(frozen=True, slots=True)
class Span:
    """Rows of one unit in one batch.

    Args:
        unit: Index into the day's units.
        salt: The unit's part in the audit's hash.
        rows: Row numbers within the unit, int32 of shape (n,).
    """

    unit: int
    salt: int
    rows: np.ndarray


@dataclass(frozen=True, slots=True)
class BatchCursor:
    """Origin of the rows of one batch; empty for a batch of padding.

    Args:
        step: The step that the batch is for.
        spans: The batch's rows, in order.
        in_space: Rows in each task's sample space, int64 of shape (K,).
        held_out: Held-out rows, which are in no task's space.
        quarantined: Reasons why units could not be read, by unit; units that were met since the batch before.
    """

    step: int
    spans: tuple[Span, ...]
    in_space: np.ndarray
    held_out: int = 0
    quarantined: Mapping[int, str] = field(default_factory=dict)

    @property
    def num_rows(self) -> int:
        """Rows of the log in the batch, padding left out."""
        return sum(len(span.rows) for span in self.spans)


@dataclass(slots=True)
class DayCursor:
    """Rows of one (pass, day) that have been stepped.

    Args:
        seen: Rows stepped, by unit.
        sums: Sum modulo 2^64 of hash(unit, row number) over the rows stepped, by unit.
        in_space: Rows stepped in each task's sample space, in task order; empty before the first.
        quarantined: Reason why a unit could not be read, by unit. Its rows are never stepped on this line, except those
            that were stepped before the unit became unreadable.
        held_out: Held-out rows among the stepped rows; they have moved no weight.
    """

    seen: dict[int, int] = field(default_factory=dict)
    sums: dict[int, int] = field(default_factory=dict)
    in_space: list[int] = field(default_factory=list)
    quarantined: dict[int, str] = field(default_factory=dict)
    held_out: int = 0

    def advance(self, stepped: BatchCursor) -> None:
        """Count the rows of a batch that was stepped."""
        for span in stepped.spans:
            self.seen[span.unit] = self.seen.get(span.unit, 0) + len(span.rows)
            self.sums[span.unit] = (self.sums.get(span.unit, 0) + audit_sum(span.salt, span.rows)) & MASK
        self._add_in_space(stepped.in_space.tolist())
        self.held_out += stepped.held_out
        self.quarantined |= stepped.quarantined

    def _add_in_space(self, counts: Sequence[int]) -> None:
        so_far = self.in_space or [0] * len(counts)
        self.in_space = [a + b for a, b in zip(so_far, counts, strict=True)] if counts else so_far

    @property
    def num_rows(self) -> int:
        """Rows stepped."""
        return sum(self.seen.values())

    def missing(self, units: Units) -> dict[int, int]:
        """Return the number of rows left to step, by unit; units without such rows are left out."""
        left = {index: rows - self.seen.get(index, 0) for index, rows in enumerate(units.num_rows.tolist())}
        return {index: rows for index, rows in left.items() if rows > 0 and index not in self.quarantined}

    def num_quarantined(self, units: Sequence[Unit]) -> int:
        """Return the number of rows of quarantined units that were never stepped."""
        return sum(units[index].num_rows - self.seen.get(index, 0) for index in self.quarantined)

    def to_stored(self, units: Units) -> StoredCursor:
        """Return the cursor by the keys of the log's units."""
        keys = units.keys()
        return StoredCursor(
            units={keys[index]: (count, self.sums[index]) for index, count in sorted(self.seen.items())},
            in_space=list(self.in_space),
            quarantined={keys[index]: reason for index, reason in sorted(self.quarantined.items())},
            held_out=self.held_out,
        )

    @classmethod
    def from_stored(cls, stored: StoredCursor, units: Units, places: Mapping[str, int] | None = None) -> "DayCursor":
        """Find the units of a stored cursor in a log.

        Args:
            stored: The stored cursor.
            units: Units of the log.
            places: `units.places()`, where the caller has it.

        Raises:
            DataError: The log no longer has a unit that was trained.
        """
        places, sizes = places or units.places(), units.num_rows.tolist()
        cursor = cls(in_space=list(stored.in_space), held_out=stored.held_out)
        trained = stored.units | {key: (0, 0) for key in stored.quarantined if key not in stored.units}
        for key, (count, total) in trained.items():
            if key not in places or count > sizes[places[key]]:
                raise DataError(
                    f"the checkpoint has trained {count} rows of {key}, the log of that day has changed since: "
                    "restore the file, or train the day on a new line"
                )
            if count:
                cursor.seen[places[key]] = count
                cursor.sums[places[key]] = total
        cursor.quarantined = {places[key]: reason for key, reason in stored.quarantined.items()}
        return cursor


def union(cursors: Iterable[DayCursor]) -> DayCursor:
    """Return the union of cursors; since their last union no two of them have seen rows of the same unit."""
    result = DayCursor()
    for cursor in cursors:
        for index, count in cursor.seen.items():
            result.seen[index] = result.seen.get(index, 0) + count
            result.sums[index] = (result.sums.get(index, 0) + cursor.sums[index]) & MASK
        result.quarantined |= cursor.quarantined
        result.held_out += cursor.held_out
        result._add_in_space(cursor.in_space)
    return result


def expected_sums(units: Sequence[Unit], rank: int = 0, num_ranks: int = 1) -> np.ndarray:
    """Return the audit's sums of units of which every row is stepped once, for one rank's share of the units.

    A day's rows are hashed anew for its audit, some 9 ns each: shared out, since all ranks wait for it.

    Args:
        units: Units of the day.
        rank: Rank whose share is asked for: the units rank, rank + num_ranks, and so on.
        num_ranks: Number of ranks.

    Returns:
        uint64 of shape (number of such units,).
    """
    own = [units[index] for index in range(rank, len(units), num_ranks)]
    rows = np.arange(max((unit.num_rows for unit in own), default=0))
    return np.array([audit_sum(unit.salt, rows[: unit.num_rows]) for unit in own], np.uint64)


def joined_sums(shares: Sequence[np.ndarray]) -> np.ndarray:
    """Join the ranks' results of `expected_sums`, by rank, to the sums of all units."""
    sums = np.empty(sum(map(len, shares)), np.uint64)
    for rank, share in enumerate(shares):
        sums[rank :: len(shares)] = share
    return sums


def audit(cursor: DayCursor, units: Sequence[Unit], expected: np.ndarray) -> list[str]:
    """Compare a finished day with its units: every row once.

    Args:
        cursor: Rows stepped.
        units: Units of the day.
        expected: Sums of `expected_sums` of all units.

    Returns:
        One line for each unit with a wrong count or sum; empty when every row was stepped exactly once. Quarantined
        units are not checked.
    """
    problems = []
    for index, (unit, total) in enumerate(zip(units, expected.tolist(), strict=True)):
        seen = cursor.seen.get(index, 0)
        is_right = seen == unit.num_rows and cursor.sums.get(index, 0) == total
        if not is_right and index not in cursor.quarantined:
            problems.append(f"{unit.key}: {seen} rows stepped of {unit.num_rows}, or not each of them once")
    return problems


def check_audit(cursor: DayCursor, day: DayLog, expected: np.ndarray) -> None:
    """Refuse a finished day with a row that was not stepped, or stepped twice.

    Args:
        cursor: Rows stepped.
        day: The day.
        expected: Sums of `expected_sums` of all its units.

    Raises:
        DataError: Gives the number of such units, and names one.
    """
    problems = audit(cursor, day.units, expected)
    if problems:
        raise DataError(f"audit of {day.day}: {len(problems)} units are not trained exactly once: {problems[0]}")


def check_quarantine(cursor: DayCursor, day: DayLog, limit: float) -> None:
    """Refuse a day with too large a share of unreadable rows.

    Raises:
        DataError: Names the share, a unit and its error.
    """
    check_quarantined_rows(cursor.num_quarantined(day.units), next(iter(cursor.quarantined.values()), ""), day, limit)


def check_quarantined_rows(rows: int, reason: str, day: DayLog, limit: float) -> None:
    """Refuse a day by the number of its unreadable rows.

    Args:
        rows: Number of the unreadable rows.
        reason: Error of the first unreadable unit.
        day: The day.
        limit: Largest share of the day's rows.

    Raises:
        DataError: Names the share, a unit and its error.
    """
    if rows > limit * day.num_rows:
        raise DataError(
            f"{rows} of {day.num_rows} rows of {day.day} are quarantined, more than ingest.max_quarantined = {limit}; "
            f"the first: {reason}"
        )
