"""Published files of KuaiRand-Pure: their discovery, and their columns, checked.

Two forms are read: the upstream CSVs (`log_standard_*.csv` and, on request, `log_random_*.csv`), and Parquet slices
of that log, as cut by a public repository. From a slice only the log's own columns are read: the others are derived
from the labels, or can be joined anew. `video_features_statistic_*.csv` is never read: its averages cover the whole
month, the days to be predicted included.
"""

import csv
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from features.errors import ConfigError, DataError

LABELS = ("is_click", "long_view", "is_like", "is_follow", "is_comment", "is_forward", "is_hate", "is_profile_enter")
LOG_COLUMNS = ("user_id", "video_id", "date", "time_ms", "tab", "is_rand", "play_time_ms", "duration_ms", *LABELS)
_CSV_BLOCK_BYTES = 8 << 20
_BATCH_ROWS = 65_536


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Files of one copy of the data set.

    Args:
        logs: Files of the log, all CSV or all Parquet.
        users: `user_features_*.csv`.
        videos: `video_features_basic_*.csv`.
        sequences: `user_sequences_before_*.parquet`, the users' actions before the log's first day; None if absent.
    """

    logs: tuple[Path, ...]
    users: Path
    videos: Path
    sequences: Path | None


def find_source(directory: str | Path, *, with_random: bool = False) -> Source:
    """Find the files of the data set.

    Args:
        directory: Directory of the files.
        with_random: True to read the log of randomly exposed videos too.

    Raises:
        ConfigError: The directory is missing.
        DataError: A file is missing, or two exist where one is expected.
    """
    directory = Path(directory)
    if not directory.is_dir():
        raise ConfigError(f"source {directory} is not a directory: name the one with KuaiRand-Pure's files")
    upstream = sorted(directory.glob("log_standard_*.csv"))
    if with_random:
        upstream.append(_only(directory, "log_random_*.csv"))
    sequences = sorted(directory.glob("user_sequences_before_*.parquet"))
    slices = sorted(set(directory.glob("*.parquet")) - set(sequences))
    if bool(upstream) == bool(slices):
        found = f"both {upstream[0].name} and {slices[0].name}, which may hold the same rows" if upstream else "neither"
        raise DataError(f"{directory}: expected either log_standard_*.csv or Parquet slices of it, found {found}")
    return Source(
        logs=tuple(upstream or slices),
        users=_only(directory, "user_features_*.csv"),
        videos=_only(directory, "video_features_basic_*.csv"),
        sequences=_only(directory, "user_sequences_before_*.parquet") if sequences else None,
    )


def _only(directory: Path, pattern: str) -> Path:
    found = sorted(directory.glob(pattern))
    if len(found) != 1:
        raise DataError(f"{directory}: expected one file {pattern}, found {[path.name for path in found]}")
    return found[0]


def read_log(path: Path) -> Iterator[pa.Table]:
    """Yield a file of the log in blocks.

    Yields:
        Tables with LOG_COLUMNS, int64 without nulls.

    Raises:
        DataError: The file is not as published, or a value is impossible; names file and column.
    """
    for block in read_blocks(path, dict.fromkeys(LOG_COLUMNS, pa.int64())):
        for name in LOG_COLUMNS:
            if block[name].null_count:
                raise DataError(f"{path}: column {name!r} has {block[name].null_count} nulls, expected an integer")
        for name in LABELS:
            _refuse_outside(path, block, name, 1)
        for name in ("user_id", "video_id", "tab", "play_time_ms", "duration_ms"):
            _refuse_outside(path, block, name, 2**53)
        yield block


def _refuse_outside(path: Path, block: pa.Table, name: str, largest: int) -> None:
    values = block[name].to_numpy()
    wrong = (values < 0) | (values > largest)
    if wrong.any():
        expected = "0 or 1" if largest == 1 else f"0 to {largest}"
        raise DataError(f"{path}: column {name!r} has {values[wrong.argmax()]}, expected {expected}")


def read_table(path: Path, types: Mapping[str, pa.DataType], key: str) -> pa.Table:
    """Read a whole file of users or videos.

    Args:
        path: A CSV or Parquet file.
        types: The columns to read.
        key: The id column.

    Returns:
        Rows in the order of their ids.

    Raises:
        DataError: The file is not as published, or an id is null or occurs twice.
    """
    blocks = list(read_blocks(path, types))
    table = pa.concat_tables(blocks).sort_by(key).combine_chunks()
    ids = table[key].to_numpy()
    if table[key].null_count:
        raise DataError(f"{path}: column {key!r} has {table[key].null_count} nulls, expected an id")
    repeated = ids[1:][ids[1:] == ids[:-1]]
    if len(repeated):
        raise DataError(f"{path}: column {key!r} has {repeated[0]} twice, expected every id once")
    return table


def read_blocks(path: Path, types: Mapping[str, pa.DataType]) -> Iterator[pa.Table]:
    """Yield columns of a CSV or Parquet file in blocks of bounded size; at least one, which may be empty.

    Raises:
        DataError: The file is not readable, lacks a column, or holds a value of another type.
    """
    yield from _csv_blocks(path, types) if path.suffix == ".csv" else _parquet_blocks(path, types)


def _csv_blocks(path: Path, types: Mapping[str, pa.DataType]) -> Iterator[pa.Table]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as lines:
            header = next(csv.reader(lines), [])
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not a CSV file in UTF-8: {error}") from error
    _check_header(path, header, types)
    convert = pa.csv.ConvertOptions(column_types=types, include_columns=list(types), strings_can_be_null=True)
    with _named_errors(path, header):
        reader = pa.csv.open_csv(path, pa.csv.ReadOptions(block_size=_CSV_BLOCK_BYTES), convert_options=convert)
        yield pa.Table.from_batches([], reader.schema)
        for batch in reader:
            yield pa.Table.from_batches([batch])


def _parquet_blocks(path: Path, types: Mapping[str, pa.DataType]) -> Iterator[pa.Table]:
    with _named_errors(path, []), pq.ParquetFile(path) as file:
        _check_header(path, file.schema_arrow.names, types)
        schema = pa.schema(list(types.items()))
        yield schema.empty_table()
        for batch in file.iter_batches(_BATCH_ROWS, columns=list(types)):
            columns = {}
            for name, kind in types.items():
                try:
                    columns[name] = batch[name].cast(kind)
                except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
                    raise DataError(f"{path}: column {name!r}: {error}, expected {kind}") from error
            yield pa.table(columns)


def _check_header(path: Path, header: list[str], types: Mapping[str, pa.DataType]) -> None:
    missing = [name for name in types if name not in header]
    if missing:
        raise DataError(f"{path}: no column {missing[0]!r} ({len(missing)} missing: {missing}); the file has {header}")


@contextmanager
def _named_errors(path: Path, header: list[str]) -> Iterator[None]:
    try:
        yield
    except (pa.ArrowInvalid, OSError) as error:
        # Arrow numbers a CSV's columns.
        text = re.sub(r"CSV column #(\d+)", lambda found: f"column {header[int(found[1])]!r}", str(error))
        raise DataError(f"{path}: {' '.join(text.split())}") from error
