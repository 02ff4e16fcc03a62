"""Units: the pieces of a day's log that are read, dealt to ranks and counted, listed from the files' footers."""

import itertools
import re
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from datetime import date, timedelta
from typing import Any, overload

import numpy as np
import pyarrow as pa

from features.encoding import check_columns
from features.errors import ConfigError, DataError
from features.hashing import mix64, salt_of
from features.ids import IdType, id_type
from features.measured_columns import MeasuredColumns
from features.schema import Schema
from pipeline.ingest.day_files import Footer, folder_of, list_files, read_footer
from pipeline.storage.files import Storage

_FOOTER_THREADS = 16
_SCHEMAS = 8  # newest schemas that a file's is compared with: each file may have metadata of its own
_MASK = (1 << 64) - 1


@dataclass(frozen=True, slots=True)
class Unit:
    """A row range of one row group of one file.

    Args:
        day: ISO date of the partition.
        file: Path below the logs' prefix.
        row_group: Index of the row group.
        first_row: First row within the row group.
        num_rows: Number of rows; at most `ingest.unit.max_rows`.
        whole: True if the unit is all of its row group.
    """

    day: str
    file: str
    row_group: int
    first_row: int
    num_rows: int
    whole: bool

    @property
    def key(self) -> str:
        """Name of the unit in cursors, audits and errors; a unit of other rows has another key."""
        return _key(self.file, self.row_group, self.first_row, self.num_rows)

    @property
    def salt(self) -> int:
        """The unit's salt in the audit's hash."""
        return salt_of(self.key)


def _key(file: str, row_group: int, first_row: int, num_rows: int) -> str:
    return f"{file}#{row_group}[{first_row}:{first_row + num_rows}]"


def audit_sum(salt: int, rows: np.ndarray) -> int:
    """Return the sum modulo 2^64 of hash(unit, row number): equal sums and counts mean equal sets of rows.

    Args:
        salt: Salt of the unit, `Unit.salt`.
        rows: Row numbers within the unit, shape (N,).
    """
    return int(mix64(rows, salt).sum(dtype=np.uint64)) & _MASK


_UNIT_FIELDS = np.dtype(
    [("file", np.int32), ("row_group", np.int32), ("first_row", np.int64), ("num_rows", np.int32), ("whole", np.bool_)]
)


class Units(Sequence[Unit]):
    """Units of one day as one array; those of a whole day are in file order.

    A day may have 150,000 units, and every worker gets them. The array takes 21 bytes a unit and is read at once. The
    same units as objects took seconds to read.

    Args:
        units: Units of one day.

    Raises:
        ValueError: They are of several days.
    """

    __slots__ = ("_day", "_files", "_units")

    def __init__(self, units: Iterable[Unit]) -> None:
        listed = list(units)
        days = {unit.day for unit in listed}
        if len(days) > 1:
            raise ValueError(f"units of several days: {sorted(days)}")
        self._day = next(iter(days), "")
        self._files = tuple(dict.fromkeys(unit.file for unit in listed))
        places = {file: place for place, file in enumerate(self._files)}
        rows = [(places[unit.file], unit.row_group, unit.first_row, unit.num_rows, unit.whole) for unit in listed]
        self._units = np.array(rows, _UNIT_FIELDS)

    def _unit(self, file: int, row_group: int, first_row: int, num_rows: int, whole: bool) -> Unit:
        return Unit(self._day, self._files[file], row_group, first_row, num_rows, whole)

    @overload
    def __getitem__(self, place: int) -> Unit: ...
    @overload
    def __getitem__(self, place: slice) -> list[Unit]: ...
    def __getitem__(self, place: int | slice) -> Unit | list[Unit]:
        found = self._units[place].tolist()
        return [self._unit(*fields) for fields in found] if isinstance(place, slice) else self._unit(*found)

    def __len__(self) -> int:
        return len(self._units)

    def __iter__(self) -> Iterator[Unit]:
        return (self._unit(*fields) for fields in self._units.tolist())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Units) and list(self) == list(other)

    def __hash__(self) -> int:
        return hash(tuple(self))

    def __repr__(self) -> str:
        return f"Units({list(self)!r})"

    @property
    def num_rows(self) -> np.ndarray:
        """Number of rows of each unit, int64 of shape (N,)."""
        return self._units["num_rows"].astype(np.int64)

    def keys(self) -> list[str]:
        """Return the units' keys."""
        files = self._files
        return [_key(files[file], *place) for file, *place, _ in self._units.tolist()]

    def places(self) -> dict[str, int]:
        """Return the index of each unit, by its key."""
        return {key: index for index, key in enumerate(self.keys())}

    @property
    def whole(self) -> np.ndarray:
        """True for a unit that is all of its row group, bool of shape (N,)."""
        return self._units["whole"]

    @property
    def first_rows(self) -> np.ndarray:
        """First row of each unit within its row group, int64 of shape (N,)."""
        return self._units["first_row"]

    def chosen(self, places: slice | np.ndarray) -> "Units":
        """Return the units at some places, in that order, with the names of their own files only."""
        found = Units.__new__(Units)
        found._day, found._units = self._day, self._units[places].copy()
        files = found._units["file"].tolist()  # a list: np.unique takes longer for the few units of a read task
        numbers = {file: number for number, file in enumerate(dict.fromkeys(files))}
        found._units["file"] = [numbers[file] for file in files]
        found._files = tuple(self._files[file] for file in numbers)
        return found

    def group_numbers(self, files: dict[str, int]) -> np.ndarray:
        """Return a number of each unit's row group, equal for equal row groups of equal files, int64 of shape (N,).

        Args:
            files: Number of each file so far; files that are missing are added.
        """
        numbers = [files.setdefault(file, len(files)) for file in self._files]
        return (np.array(numbers, np.int64)[self._units["file"]] << 32) + self._units["row_group"]

    def row_groups(self) -> list[range]:
        """Return the units of each row group, as ranges of indices in order."""
        file, row_group = self._units["file"], self._units["row_group"]
        is_new = (np.diff(file, prepend=-1) != 0) | (np.diff(row_group, prepend=-1) != 0)
        begins = [*np.flatnonzero(is_new).tolist(), len(self)]
        return [range(begin, end) for begin, end in itertools.pairwise(begins)]


@dataclass(frozen=True, slots=True)
class DayLog:
    """The units of one day, in file order.

    Args:
        day: ISO date.
        units: Never empty.
        files: Size in bytes and fingerprint of the footer, by path below the logs' prefix. The footer has the place,
            the size and the extremes of every column of every row group.
        id_types: `integer` or `text`, by name of each read column that is one of them.
        read_otherwise: Files of the day that versions before sub-folders were read did not read, or did read although
            their names hide them.
        slots: Smallest and largest known slot by the statistics of the files; None: no slot is declared or known.
        slots_unchecked: Number of files without statistics of their slots.
    """

    day: str
    units: Units
    files: dict[str, str]
    id_types: dict[str, IdType] = field(default_factory=dict)
    read_otherwise: tuple[str, ...] = ()
    slots: tuple[int, int] | None = None
    slots_unchecked: int = 0

    @property
    def num_rows(self) -> int:
        """Number of rows of the day."""
        return int(self.units.num_rows.sum())


def parse_days(text: str) -> list[str]:
    """Read `2026-11-20`, `2026-11-14..2026-11-20`, or several of them with commas between, as ISO dates in order.

    Raises:
        ConfigError: The text is no such date, range or list, is out of order, or has a day twice.
    """
    parts = [_range_of_days(part) for part in text.split(",")]
    days = [day for part in parts for day in part]
    if not all(parts) or any(later <= earlier for earlier, later in itertools.pairwise(days)):
        raise ConfigError(
            f"days {text!r}: expected YYYY-MM-DD or YYYY-MM-DD..YYYY-MM-DD, several of them with a comma between, the "
            "first day first and none twice"
        )
    return days


def _range_of_days(text: str) -> list[str]:
    """Return the days of a date or a range, in order; none if the text is neither."""
    match = re.fullmatch(r"(\d{4}-\d\d-\d\d)(?:\.\.(\d{4}-\d\d-\d\d))?", text)
    try:
        first, last = (date.fromisoformat(part) for part in (match[1], match[2] or match[1])) if match else (None, None)
    except ValueError:
        first = last = None
    if first is None or last is None or last < first:
        return []
    return [(first + timedelta(days=offset)).isoformat() for offset in range((last - first).days + 1)]


def list_days(logs: Storage, days: Sequence[str], max_rows: int) -> list[DayLog]:
    """List the units of days; reads the footers only.

    Args:
        logs: Prefix with folders `dt=YYYY-MM-DD`.
        days: ISO dates.
        max_rows: Larger row groups are cut into ranges of this many rows.

    Raises:
        DataError: A day is missing or empty, or a file is not readable Parquet.
    """
    return [_list_day(logs, day, max_rows)[0] for day in days]


def check_days(
    logs: Storage,
    days: Sequence[str],
    max_rows: int,
    schema: Schema,
    columns: list[str],
    measured: MeasuredColumns | None = None,
) -> list[DayLog]:
    """List the units of days and check every file's schema against the declaration.

    Args:
        logs: Prefix with folders `dt=YYYY-MM-DD`.
        days: ISO dates.
        max_rows: Larger row groups are cut into ranges of this many rows.
        schema: Declared schema.
        columns: Names of the columns that will be read.
        measured: Further columns that an evaluation will read; None: none.

    Raises:
        DataError: A file does not fit; names the file and the reason.
    """
    checked: list[pa.Schema] = []
    types = IdTypes(columns)
    listed = []
    for day in days:
        day_log, footers = _list_day(logs, day, max_rows, schema.slot)
        for file, footer in footers.items():
            if any(footer.schema.equals(known) for known in checked):
                continue
            try:
                check_columns(schema, footer.schema, columns)
                if measured is not None:
                    measured.check(footer.schema)
                types.add(file, footer.schema)
            except DataError as error:
                raise DataError(f"{logs.url}/{file}: {error}") from error
            checked.append(footer.schema)
        slots = _slots(footers.values()) if schema.slot else {}
        listed.append(replace(day_log, id_types=dict(types.found), **slots))
    return listed


def _slots(footers: Iterable[Footer]) -> dict[str, Any]:
    """Return the fields of a `DayLog` with the range of its slots."""
    ranges = [footer.slots for footer in footers]
    values = [value for found in ranges for value in found or ()]
    range_of_known = (min(values), max(values)) if values else None
    return {"slots": range_of_known, "slots_unchecked": sum(found is None for found in ranges)}


class IdTypes:
    """Types of the id columns of files, which have to be the same in all files.

    Args:
        columns: Names of the columns that will be read.
    """

    def __init__(self, columns: Sequence[str]) -> None:
        self._columns = columns
        self._files: dict[str, str] = {}
        self.found: dict[str, IdType] = {}

    def add(self, file: str, schema: pa.Schema) -> None:
        """Add the schema of a file.

        Raises:
            DataError: A column has integers in this file and text in an earlier one, or the reverse.
        """
        for column in self._columns:
            kind = id_type(schema.field(column).type) if column in schema.names else None
            if kind is None:
                continue
            first = self.found.setdefault(column, kind)
            if kind != first:
                raise DataError(
                    f"column {column!r} is {kind} here and {first} in {self._files[column]}, so one id would become "
                    f"two: write the column with one type in all files"
                )
            self._files.setdefault(column, file)


def _list_day(logs: Storage, day: str, max_rows: int, slot: str | None = None) -> tuple[DayLog, dict[str, Footer]]:
    found = list_files(logs, day)
    with ThreadPoolExecutor(_FOOTER_THREADS) as pool:
        footers = _with_shared_schemas(pool.map(lambda file: read_footer(logs, file, slot), found.read))
    units = Units(
        unit
        for file, footer in zip(found.read, footers, strict=True)
        for unit in _units_of(day, file, footer.row_groups, max_rows)
    )
    if not units:
        where = f"{logs.url}/{folder_of(day)}"
        raise DataError(f"{where} has {len(footers)} files and no row: write the log, or leave the day out")
    marks = {file: footer.mark for file, footer in zip(found.read, footers, strict=True)}
    log = DayLog(day, units, marks, read_otherwise=found.read_otherwise)
    return log, dict(zip(found.read, footers, strict=True))


def _with_shared_schemas(footers: Iterable[Footer]) -> list[Footer]:
    """Return footers of which those with equal schemas have one in common: a day may have 150,000 files."""
    schemas: list[pa.Schema] = []
    shared = []
    for footer in footers:
        known = next(
            (schema for schema in schemas[-_SCHEMAS:] if schema.equals(footer.schema, check_metadata=True)), None
        )
        if known is None:
            schemas.append(footer.schema)
        shared.append(footer if known is None else replace(footer, schema=known))
    return shared


def _units_of(day: str, file: str, row_groups: Sequence[int], max_rows: int) -> list[Unit]:
    units = []
    for row_group, rows in enumerate(row_groups):
        for first in range(0, rows, max_rows):
            units.append(Unit(day, file, row_group, first, min(max_rows, rows - first), whole=rows <= max_rows))
    return units
