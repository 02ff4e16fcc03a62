"""The day partitions of Ali-CCP that jobs/configs/aliccp.yaml reads. NOT RUN on the data set, which was not at hand.

The data set has no days. Its two halves follow each other in time, so the train half is one day and the test half the
next (our reading). A row of the log joins a line of a skeleton with a line of common features, which some hundred rows
share. Memory holds at most the rows of one file and the offset of each line of common features: some 200 bytes for
each of some 700,000.
"""

import logging
from array import array
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import date
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa

from features.aliccp.fields import IDS, LISTS, Features, parse_features
from features.errors import ConfigError, DataError
from features.whole_days import published_whole, refuse_days_that_are_there, write_parts

logger = logging.getLogger(__name__)

DAYS = {"train": date(2017, 1, 1), "test": date(2017, 1, 2)}
FILE_ROWS = 65_536
ROW_GROUP_ROWS = 16_384
_COMMON = ("common_feature_index", "feature_num", "feature_list")
_SKELETON = ("sample_id", "click", "buy", *_COMMON)
_SCHEMA = pa.schema(
    [
        *((name, pa.int64()) for name in ("sample_id", *IDS.values())),
        *((name, pa.list_(pa.int64())) for name in LISTS.values()),
        *((name, pa.int8()) for name in ("click", "buy")),
    ]
)


@dataclass(slots=True)
class ImportedAliccp:
    """Counts of the rows that an import wrote and left out.

    Args:
        rows: Rows by day, ISO dates in order.
        num_impossible: Number of rows left out: a purchase without a click.
        unknown_fields: Number of rows by field, for fields without a column.
    """

    rows: dict[str, int] = field(default_factory=dict)
    num_impossible: int = 0
    unknown_fields: Counter[str] = field(default_factory=Counter)


def import_aliccp(source: str | Path, logs: str | Path) -> ImportedAliccp:
    """Write the log as `dt=YYYY-MM-DD/part-NNNNN.parquet`, both days or, if anything fails, none.

    Args:
        source: Directory with `sample_skeleton_{train,test}.csv` and `common_features_{train,test}.csv`.
        logs: Local directory of the days; created if absent.

    Raises:
        ConfigError: The source is missing, or a day exists already; it is never replaced.
        DataError: A file is missing or not as published; names file and line.
    """
    source, logs = Path(source), Path(logs)
    if not source.is_dir():
        raise ConfigError(f"source {source} is not a directory: name the one with Ali-CCP's files")
    files = {half: (source / f"sample_skeleton_{half}.csv", source / f"common_features_{half}.csv") for half in DAYS}
    for path in (path for pair in files.values() for path in pair):
        if not path.is_file():
            raise DataError(f"{path} is missing: unpack sample_train.tar.gz and sample_test.tar.gz into {source}")
    refuse_days_that_are_there([*DAYS.values()], logs)
    found = ImportedAliccp()
    with published_whole(logs) as staging:
        for half, day in DAYS.items():
            skeleton, common = files[half]
            with _common_features(common) as look_up:
                tables = _tables(_rows(skeleton, look_up, found))
                num_rows = write_parts(tables, staging / f"dt={day}", ROW_GROUP_ROWS, "zstd")
            if not num_rows:
                raise DataError(f"{skeleton} has no rows, expected impressions")
            found.rows[day.isoformat()] = num_rows
            logger.info("%s: %d rows", day, num_rows)
    return found


@contextmanager
def _common_features(path: Path) -> Iterator[Callable[[str], Features]]:
    """Open `common_features_*.csv`; yield a function that returns the features of an index.

    Raises:
        DataError: An index occurs twice, or, once looked up, its line is not as published.
    """
    with path.open("rb") as file:
        numbers: dict[bytes, int] = {}
        starts, start = array("Q"), 0
        for number, line in enumerate(file, start=1):
            index = line.partition(b",")[0].rstrip()
            if index in numbers:
                name = index.decode(errors="replace")
                raise DataError(
                    f"{path}: line {number}: index {name!r}, which line {numbers[index]} has, expected another"
                )
            numbers[index] = number
            starts.append(start)
            start += len(line)

        @lru_cache(maxsize=256)  # rows of one user stand together
        def look_up(index: str) -> Features:
            if index.encode() not in numbers:
                raise ValueError(f"common_feature_index {index!r}, expected one that {path.name} has")
            number = numbers[index.encode()]
            file.seek(starts[number - 1])
            with _named_line(path, number):
                _, num_features, features = _cells(file.readline().decode(errors="replace"), _COMMON)
                return parse_features(features, num_features)

        yield look_up


def _rows(path: Path, look_up: Callable[[str], Features], found: ImportedAliccp) -> Iterator[dict[str, Any]]:
    """Yield the possible rows of `sample_skeleton_*.csv`, in order; count those left out."""
    with path.open(encoding="utf-8", errors="replace", newline="\n") as lines:
        for number, line in enumerate(lines, start=1):
            with _named_line(path, number):
                sample, click, buy, index, num_features, text = _cells(line, _SKELETON)
                row: dict[str, Any] = {
                    "sample_id": _integer("sample_id", sample, 10**18),
                    "click": _integer("click", click, 1),
                    "buy": _integer("buy", buy, 1),
                }
                features = look_up(index) | parse_features(text, num_features)
                row |= _columns(features)
            if row["buy"] > row["click"]:
                found.num_impossible += 1
                continue
            found.unknown_fields.update(features.keys() - IDS.keys() - LISTS.keys())
            yield row


def _columns(features: Features) -> dict[str, Any]:
    columns: dict[str, Any] = {name: features.get(number, []) for number, name in LISTS.items()}
    for number, name in IDS.items():
        ids = features.get(number, [None])
        if len(ids) > 1:
            raise ValueError(f"field {number} has {len(ids)} ids, expected one")
        columns[name] = ids[0]
    return columns


def _cells(line: str, names: tuple[str, ...]) -> list[str]:
    cells = line.rstrip("\r\n").split(",")
    if len(cells) != len(names):
        raise ValueError(f"{len(cells)} cells, expected {len(names)}: {','.join(names)}")
    return cells


def _integer(name: str, text: str, largest: int) -> int:
    if not (text.isdecimal() and int(text) <= largest):
        raise ValueError(f"{name} {text!r}, expected {'0 or 1' if largest == 1 else 'an integer'}")
    return int(text)


@contextmanager
def _named_line(path: Path, number: int) -> Iterator[None]:
    try:
        yield
    except DataError:
        raise  # an error of the other file
    except ValueError as error:
        raise DataError(f"{path}: line {number}: {error}") from error


def _tables(rows: Iterator[dict[str, Any]]) -> Iterator[pa.Table]:
    """Yield tables of at most one file's rows."""
    while group := list(islice(rows, FILE_ROWS)):
        yield pa.Table.from_pylist(group, _SCHEMA)
