"""Atomic writing of day partitions: all days of an import appear at once, or none does."""

import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from datetime import date
from pathlib import Path
from typing import Literal
from uuid import uuid4

import pyarrow as pa
import pyarrow.parquet as pq

from features.errors import ConfigError
from features.full_disk import naming_place


def write_whole_day(parts: Iterable[pa.Table], day: date, logs: Path, row_group_rows: int) -> list[Path]:
    """Write one day, all of it or nothing.

    Args:
        parts: The rows of each file.
        day: The day of the log.
        logs: Local directory of the days; created if absent.
        row_group_rows: Rows of a row group.

    Returns:
        The files, in order.

    Raises:
        ConfigError: The day exists already.
    """
    refuse_days_that_are_there([day], logs)
    with published_whole(logs) as staging:
        write_parts(parts, staging / f"dt={day}", row_group_rows)
    return sorted((logs / f"dt={day}").glob("part-*.parquet"))


def write_parts(
    parts: Iterable[pa.Table], folder: Path, row_group_rows: int, compression: Literal["snappy", "zstd"] = "snappy"
) -> int:
    """Write tables as `part-00000.parquet` and so on, one in memory at a time; return their number of rows."""
    folder.mkdir()
    num_rows = 0
    for number, part in enumerate(parts):
        path = folder / f"part-{number:05d}.parquet"
        pq.write_table(part, path, row_group_size=row_group_rows, compression=compression, write_page_checksum=True)
        num_rows += len(part)
    return num_rows


def refuse_days_that_are_there(days: Sequence[date], logs: Path) -> None:
    """Check that none of the days exists: a day is never replaced, since it may be somebody's real log.

    Raises:
        ConfigError: Some exist; names them.
    """
    there = [day.isoformat() for day in days if (logs / f"dt={day}").exists()]
    if there:
        raise ConfigError(f"{logs} has {there} already: remove them first, or write to another directory")


@contextmanager
def published_whole(logs: Path) -> Iterator[Path]:
    """Yield a directory for folders `dt=YYYY-MM-DD`, which move to `logs` at the end; other content is deleted.

    Each day is marked complete by an empty file `_SUCCESS`, which `daily.preflight.success_marker` looks for.

    If anything fails, no day moves, and nothing is left behind.
    """
    new = not logs.exists()
    # Readers of data sets skip names that begin with a dot.
    staging = logs / f".import-{uuid4().hex}"
    try:
        with naming_place(logs):
            staging.mkdir(parents=True)
            yield staging
        with ExitStack() as undo:
            for folder in sorted(staging.glob("dt=*")):
                (folder / "_SUCCESS").touch()
                undo.callback(shutil.rmtree, folder.rename(logs / folder.name))
            undo.pop_all()
    finally:
        shutil.rmtree(staging, ignore_errors=True)
        if new:
            with suppress(OSError):  # the days are in it, unless something failed
                logs.rmdir()
