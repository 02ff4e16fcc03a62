"""Files of a day's log: which are read, which are hidden, and their footers.

All files below the day's folder are read, at any depth and with any ending. A name that begins with `_` or `.` hides a
file, or a folder with all that is in it, as for Spark, Hive and pyarrow. A file that is neither hidden nor Parquet is
refused: its rows would be lost in silence.
"""

import hashlib
from dataclasses import dataclass
from typing import BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from features.errors import DataError
from pipeline.storage.files import Storage

_MAGIC = b"PAR1"  # at the beginning and the end of a Parquet file
_TAIL_BYTES = 8  # after the footer: its length and the magic
_HADOOP_FOLDER = "_$folder$"  # end of the name of an empty object by which Hadoop marks a folder on S3


@dataclass(frozen=True, slots=True)
class DayFiles:
    """Files below a day's folder.

    Args:
        read: Paths below the logs' prefix, sorted.
        read_otherwise: Paths of the files that versions before sub-folders were read treated otherwise: they read
            files directly in the folder whose names end with `.parquet` and begin with no dot.
    """

    read: tuple[str, ...]
    read_otherwise: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Footer:
    """Parts of a Parquet file's footer that a day's list keeps; all footers of a day together have gigabytes.

    Args:
        row_groups: Number of rows of each row group.
        schema: The file's Arrow schema.
        mark: Size in bytes and fingerprint of the footer.
        slots: The smallest and the largest value of the slot's column that are not negative; empty: there are none;
            None: a row group has no statistics.
    """

    row_groups: tuple[int, ...]
    schema: pa.Schema
    mark: str
    slots: tuple[int, ...] | None = ()


def folder_of(day: str) -> str:
    """Return the folder of a day, below the logs' prefix."""
    return f"dt={day}"


def is_hidden(name: str) -> bool:
    """Return True if the name of a file or folder hides it.

    Raises:
        DataError: The name is `_column=value`: Spark reads such a folder, other readers do not.
    """
    if name.startswith("_") and "=" in name:
        raise DataError(f"{name!r} begins with _ and has a =, so that Spark reads it and others do not: rename it")
    return name.startswith(("_", ".")) or name.endswith(_HADOOP_FOLDER)


def has_log(logs: Storage, day: str) -> bool:
    """Return True if a day has a file that is read, or an entry that is refused.

    Args:
        logs: Prefix with folders `dt=YYYY-MM-DD`.
        day: ISO date.
    """
    try:
        return bool(logs.files_below(folder_of(day), is_hidden))
    except DataError:
        return True


def list_files(logs: Storage, day: str) -> DayFiles:
    """List the files of a day.

    Args:
        logs: Prefix with folders `dt=YYYY-MM-DD`.
        day: ISO date.

    Raises:
        DataError: The day is missing, has no file, or an entry whose meaning is not clear.
    """
    folder = folder_of(day)
    try:
        names = logs.files_below(folder, is_hidden)
    except DataError as error:
        raise DataError(f"{logs.url}/{folder}: {error}") from error
    if not names:
        missing = "has no file but hidden ones" if logs.exists(folder) else "is missing"
        raise DataError(
            f"{logs.url}/{folder} {missing}: write the day's log there, or leave the day out (--skip-missing; "
            "jobs.daily: --skip-day)"
        )
    before = {name for name in logs.names(folder) if name.endswith(".parquet")}
    otherwise = sorted(before ^ set(names))
    return DayFiles(tuple(f"{folder}/{name}" for name in names), tuple(f"{folder}/{name}" for name in otherwise))


def read_footer(logs: Storage, file: str, slot: str | None = None) -> Footer:
    """Read the footer of a file.

    Args:
        logs: Prefix of the file.
        file: Path below it.
        slot: Name of the column of slots; None: none is declared.

    Raises:
        DataError: The file is not readable Parquet; names it.
    """
    try:
        with logs.open_read(file) as opened:
            parquet = pq.ParquetFile(opened)
            metadata, schema = parquet.metadata, parquet.schema_arrow
            mark = _mark(opened, metadata.serialized_size)
            return Footer(_rows_of_groups(metadata), schema, mark, _slots(metadata, schema, slot) if slot else ())
    except Exception as error:
        if not is_bad_file(error):
            raise
        raise DataError(f"{logs.url}/{file} {_problem(logs, file, error)}") from error


def _problem(logs: Storage, file: str, error: Exception) -> str:
    """Return the reason for which a file is not read, and the remedy."""
    if file.endswith(".parquet"):
        return f"is not readable Parquet ({first_line(error)}): write the file again"
    try:
        with logs.open_read(file) as opened:
            is_parquet = opened.read(len(_MAGIC)) == _MAGIC
    except FileNotFoundError:
        return "has vanished since the day was listed: start the command again when the day is complete"
    if is_parquet:
        return f"is not readable Parquet ({first_line(error)}): finish it, or move it out of the day's folder"
    return (
        "is not Parquet: write it as Parquet, move it out of the day's folder, or hide it by a name that begins with _ "
        "or ."
    )


def _mark(opened: BinaryIO, footer_bytes: int) -> str:
    """Return a fingerprint of a file: a rewritten one has another footer, if not another size."""
    size = opened.seek(0, 2)
    opened.seek(max(size - footer_bytes - _TAIL_BYTES, 0))
    return f"{size}-{hashlib.blake2b(opened.read(), digest_size=6).hexdigest()}"


def _slots(metadata: pq.FileMetaData, schema: pa.Schema, column: str) -> tuple[int, ...] | None:
    """Return the range of slots, by the statistics of the row groups; some writers make none."""
    if column not in schema.names or pa.types.is_null(schema.field(column).type):
        return ()  # a column that is missing is refused with the others
    values: list[int] = []
    place = [metadata.schema.column(place).path for place in range(metadata.num_columns)].index(column)
    for index in range(metadata.num_row_groups):
        group = metadata.row_group(index)
        found = group.column(place).statistics
        if found is not None and found.has_min_max:
            values += [int(found.min), int(found.max)]
        elif group.num_rows and (found is None or found.null_count != group.num_rows):
            return None
    known = [value for value in values if value >= 0]  # a negative one is unknown
    return (min(known), max(known)) if known else ()


def _rows_of_groups(footer: pq.FileMetaData) -> tuple[int, ...]:
    """Return the rows of each row group.

    A footer has no checksum, so it is checked for consistency: a row group without rows would be silently skipped.
    """
    groups = tuple(footer.row_group(index).num_rows for index in range(footer.num_row_groups))
    if sum(groups) != footer.num_rows or min(groups, default=0) < 0:
        raise pa.ArrowInvalid(f"the footer says {footer.num_rows} rows, its row groups have {sum(groups)}")
    return groups


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
