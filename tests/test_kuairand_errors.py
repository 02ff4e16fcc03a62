"""Import of KuaiRand: wrong values, columns and files in one line each, and days published whole or not at all."""

import csv
import re
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from kuairand_files import THREE_DAYS, USERS, VIDEOS, Row, refusal, source, write_csv

from features.errors import ConfigError

__all__ = ["source"]  # fixtures


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"is_like": 2}, "column 'is_like' has 2, expected 0 or 1"),
        ({"is_click": "yes"}, "column 'is_click': CSV conversion error to int64: invalid value 'yes'"),
        ({"time_ms": ""}, "column 'time_ms' has 1 nulls, expected an integer"),
        ({"date": 20220231}, "column 'date' has 20220231, expected yyyymmdd"),
        ({"play_time_ms": -5}, "column 'play_time_ms' has -5, expected 0 to 9007199254740992"),
    ],
)
def test_a_wrong_value_is_one_line_with_file_and_column(source: Path, change: Row, expected: str) -> None:
    """A label of 2 or a broken number that is imported, or a traceback; and half the days left behind."""
    write_csv(source / "log_standard_4_08_to_4_21_pure.csv", [*THREE_DAYS, THREE_DAYS[-1] | change])
    message = re.sub(r"Row #\d+: ", "", refusal(source))  # pyarrow knows it in some blocks of a file only
    assert "log_standard_4_08_to_4_21_pure.csv: " in message
    assert expected in message


@pytest.mark.parametrize(
    ("file", "column"),
    [
        ("log_standard_4_08_to_4_21_pure.csv", "tab"),
        ("user_features_pure.csv", "onehot_feat17"),
        ("video_features_basic_pure.csv", "upload_dt"),
    ],
)
def test_a_missing_column_is_one_line_with_file_and_column(source: Path, file: str, column: str) -> None:
    """KeyError, or a column of nulls."""
    write_csv(source / "log_standard_4_08_to_4_21_pure.csv", THREE_DAYS)
    with (source / file).open(newline="") as lines:
        rows = list(csv.DictReader(lines))
    kept = [name for name in rows[0] if name != column]
    write_csv(source / file, [{name: row[name] for name in kept} for row in rows], kept)
    assert f"{source / file}: no column {column!r} (1 missing: [{column!r}])" in refusal(source)


def test_wrong_feature_files_are_one_line_with_file_and_column(source: Path) -> None:
    """A user's features that depend on which of two lines wins, or an upload date of another calendar."""
    write_csv(source / "log_standard_4_08_to_4_21_pure.csv", THREE_DAYS)
    videos, users = source / "video_features_basic_pure.csv", source / "user_features_pure.csv"
    videos.write_text(VIDEOS.replace("2022-04-02", "yesterday"))
    assert f"{videos}: column 'upload_dt'" in refusal(source)
    videos.write_text(VIDEOS.replace("39,68", "39,comedy"))
    assert f"{videos}: column 'tag'" in refusal(source)
    videos.write_text(VIDEOS)
    users.write_text(USERS.replace("\n2,", "\n1,"))
    assert f"{users}: column 'user_id' has 1 twice" in refusal(source)


def test_wrong_files_are_one_line(source: Path) -> None:
    """A traceback of Arrow's, an import of nothing, or of the same rows twice."""
    assert "expected either log_standard_*.csv or Parquet slices of it, found neither" in refusal(source)
    slice_ = source / "val_20220408_20220410.parquet"
    slice_.write_bytes(b"not a Parquet file")
    assert f"{slice_}: " in refusal(source)
    pq.write_table(pa.Table.from_pylist(THREE_DAYS), slice_)
    slice_.write_bytes(slice_.read_bytes()[:-40])
    assert f"{slice_}: " in refusal(source)
    pq.write_table(pa.Table.from_pylist([row | {"tab": "feed"} for row in THREE_DAYS]), slice_)
    assert f"{slice_}: column 'tab'" in refusal(source)
    pq.write_table(pa.Table.from_pylist(THREE_DAYS).slice(0, 0), slice_)
    assert "has no rows" in refusal(source)
    write_csv(source / "log_standard_4_08_to_4_21_pure.csv", THREE_DAYS)
    assert "which may hold the same rows" in refusal(source)
    slice_.unlink()
    (source / "user_features_pure.csv").unlink()
    assert "expected one file user_features_*.csv, found []" in refusal(source)
    assert "is not a directory" in refusal(source / "nowhere", ConfigError)


def test_a_day_that_is_there_is_never_replaced(source: Path) -> None:
    """Somebody's log overwritten, or an import that adds days around it."""
    write_csv(source / "log_standard_4_08_to_4_21_pure.csv", THREE_DAYS)
    day = source.parent / "logs" / "dt=2022-04-09"
    day.mkdir(parents=True)
    (day / "part-00000.parquet").write_text("mine")
    assert "has ['2022-04-09'] already" in refusal(source, ConfigError)
    assert (day / "part-00000.parquet").read_text() == "mine"


def test_a_failure_while_publishing_takes_the_days_back(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some days published and some not, when the disk fails half-way."""
    write_csv(source / "log_standard_4_08_to_4_21_pure.csv", THREE_DAYS)
    rename = Path.rename

    def failing(path: Path, target: Path) -> Path:
        if target.name == "dt=2022-04-10":
            raise OSError("disk full")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", failing)
    assert refusal(source, OSError) == "disk full"
