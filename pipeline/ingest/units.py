"""Units: the pieces of a day's log that are read, dealt to ranks and counted, listed from the files' footers."""

import hashlib
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import date, timedelta
from typing import BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from features.encoding import check_columns
from features.errors import ConfigError, DataError
from features.hashing import mix64, salt_of
from features.schema import Schema
from pipeline.storage.files import Storage

_FOOTER_THREADS = 16
_TAIL_BYTES = 8  # after the footer: its length and "PAR1"
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
        return f"{self.file}#{self.row_group}[{self.first_row}:{self.first_row + self.num_rows}]"

    @property
    def salt(self) -> int:
        """The unit's salt in the audit's hash."""
        return salt_of(self.key)


def audit_sum(salt: int, rows: np.ndarray) -> int:
    """Return the sum modulo 2^64 of hash(unit, row number): equal sums and counts mean equal sets of rows.

    Args:
        salt: Salt of the unit, `Unit.salt`.
        rows: Row numbers within the unit, shape (N,).
    """
    return int(mix64(rows, salt).sum(dtype=np.uint64)) & _MASK


@dataclass(frozen=True, slots=True)
class DayLog:
    """The units of one day, in file order.

    Args:
        day: ISO date.
        units: Never empty.
        files: Size in bytes and fingerprint of the footer, by path below the logs' prefix. The footer has the place,
            the size and the extremes of every column of every row group.
    """

    day: str
    units: tuple[Unit, ...]
    files: dict[str, str]

    @property
    def num_rows(self) -> int:
        """Number of rows of the day."""
        return sum(unit.num_rows for unit in self.units)


def parse_days(text: str) -> list[str]:
    """Read `2026-11-20` or `2026-11-14..2026-11-20` as ISO dates in order.

    Raises:
        ConfigError: The text is not such a date or range.
    """
    match = re.fullmatch(r"(\d{4}-\d\d-\d\d)(?:\.\.(\d{4}-\d\d-\d\d))?", text)
    try:
        first, last = (date.fromisoformat(part) for part in (match[1], match[2] or match[1])) if match else (None, None)
    except ValueError:
        first = last = None
    if first is None or last is None or last < first:
        raise ConfigError(f"days {text!r}: expected YYYY-MM-DD or YYYY-MM-DD..YYYY-MM-DD, the first day first")
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


def check_days(logs: Storage, days: Sequence[str], max_rows: int, schema: Schema, columns: list[str]) -> list[DayLog]:
    """List the units of days and check every file's schema against the declaration.

    Args:
        logs: Prefix with folders `dt=YYYY-MM-DD`.
        days: ISO dates.
        max_rows: Larger row groups are cut into ranges of this many rows.
        schema: Declared schema.
        columns: Names of the columns that will be read.

    Raises:
        DataError: A file does not fit; names the file and the reason.
    """
    checked: list[pa.Schema] = []
    listed = []
    for day in days:
        day_log, schemas = _list_day(logs, day, max_rows)
        for file, found in schemas.items():
            if any(found.equals(known) for known in checked):
                continue
            try:
                check_columns(schema, found, columns)
            except DataError as error:
                raise DataError(f"{logs.url}/{file}: {error}") from error
            checked.append(found)
        listed.append(day_log)
    return listed


def _list_day(logs: Storage, day: str, max_rows: int) -> tuple[DayLog, dict[str, pa.Schema]]:
    folder = f"dt={day}"
    files = [f"{folder}/{name}" for name in logs.names(folder) if name.endswith(".parquet")]
    if not files:
        missing = "has no *.parquet file" if logs.exists(folder) else "is missing"
        raise DataError(f"{logs.url}/{folder} {missing}: write the day's log there, or leave the day out")
    with ThreadPoolExecutor(_FOOTER_THREADS) as pool:
        footers = list(pool.map(lambda file: _footer(logs, file), files))
    units = tuple(
        unit
        for file, (metadata, _, _) in zip(files, footers, strict=True)
        for unit in _units_of(day, file, metadata, max_rows)
    )
    if not units:
        raise DataError(f"{logs.url}/{folder} has {len(files)} files and no row: write the log, or leave the day out")
    marks = {file: mark for file, (_, _, mark) in zip(files, footers, strict=True)}
    return DayLog(day, units, marks), {file: schema for file, (_, schema, _) in zip(files, footers, strict=True)}


def _footer(logs: Storage, file: str) -> tuple[pq.FileMetaData, pa.Schema, str]:
    try:
        with logs.open_read(file) as opened:
            parquet = pq.ParquetFile(opened)
            _check_rows(parquet.metadata)
            return parquet.metadata, parquet.schema_arrow, _mark(opened, parquet.metadata.serialized_size)
    except Exception as error:
        if not is_bad_file(error):
            raise
        reason = first_line(error)
        raise DataError(f"{logs.url}/{file} is not readable Parquet ({reason}): write the file again") from error


def _mark(opened: BinaryIO, footer_bytes: int) -> str:
    """Return a fingerprint of a file: a rewritten one has another footer, if not another size."""
    size = opened.seek(0, 2)
    opened.seek(max(size - footer_bytes - _TAIL_BYTES, 0))
    return f"{size}-{hashlib.blake2b(opened.read(), digest_size=6).hexdigest()}"


def _check_rows(footer: pq.FileMetaData) -> None:
    """Check a footer, which has no checksum, for consistency: a row group without rows would be silently skipped."""
    groups = [footer.row_group(index).num_rows for index in range(footer.num_row_groups)]
    if sum(groups) != footer.num_rows or min(groups, default=0) < 0:
        raise pa.ArrowInvalid(f"the footer says {footer.num_rows} rows, its row groups have {sum(groups)}")


def is_bad_file(error: BaseException) -> bool:
    """Return True if a reading error means a bad Parquet file, and not a storage that does not answer.

    pyarrow reports damage as its own exceptions, as a bare OSError without a number, or, in the name of a column, as
    text that is not UTF-8.
    """
    damage = isinstance(error, pa.ArrowException | UnicodeDecodeError | FileNotFoundError | IsADirectoryError)
    return damage or (type(error) is OSError and error.errno is None)


def first_line(error: BaseException) -> str:
    """Return the first line of an error's text; its class name if the text is empty."""
    return next(iter(str(error).splitlines()), type(error).__name__)


def _units_of(day: str, file: str, metadata: pq.FileMetaData, max_rows: int) -> list[Unit]:
    units = []
    for row_group in range(metadata.num_row_groups):
        rows = metadata.row_group(row_group).num_rows
        for first in range(0, rows, max_rows):
            units.append(Unit(day, file, row_group, first, min(max_rows, rows - first), whole=rows <= max_rows))
    return units
