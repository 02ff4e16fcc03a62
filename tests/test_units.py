"""Units: the pieces of a day's log, read from footers, and what is said about days that cannot be trained."""

import gc
import io
import pickle
import pickletools
import re
import weakref
from collections.abc import Callable
from dataclasses import replace
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from features.encoding import Encoder
from features.errors import ConfigError, DataError
from pipeline.ingest.units import Unit, Units, audit_sum, check_days, list_days, parse_days
from pipeline.storage.files import Storage

DAY = "2026-03-01"
WriteLog = Callable[..., Storage]
_REMEDY = "write the day's log there, or leave the day out (--skip-missing; jobs.daily: --skip-day)"


# --- Days ---


@given(first=st.dates(), length=st.integers(1, 40) | st.just(400))
def test_ranges_of_days(first: date, length: int):
    """A day is left out at the end of a month, a year or a leap year's February, or the last day of the range."""
    last = first + timedelta(days=min(length - 1, (date.max - first).days))
    days = parse_days(f"{first}..{last}")
    assert days == [(first + timedelta(days=n)).isoformat() for n in range((last - first).days + 1)]
    assert parse_days(str(first)) == [str(first)]
    assert days[-1] == str(last)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "today",
        "2026-11",
        "2026-02-29",
        "2026-13-01",
        "20261101",
        "2026-11-1",
        "2026-11-20..",
        "..2026-11-20",
        "2026-11-20..2026-11-19",
        "2026-11-20...2026-11-21",
        "2026-11-20..2026-11-31",
        " 2026-11-20",
        "2026-11-20\n",
        "٢٠٢٦-11-20",
    ],
)
def test_days_that_are_none(text: str):
    """A range that is written backwards trains nothing and says that it is done."""
    with pytest.raises(ConfigError, match=r"^days .*: expected YYYY-MM-DD or YYYY-MM-DD\.\.YYYY-MM-DD") as caught:
        parse_days(text)
    assert "\n" not in str(caught.value)


# --- Listing ---


@pytest.mark.parametrize("where", ["local", "s3"])
def test_the_units_of_days(where: str, write_log: WriteLog, request: pytest.FixtureRequest):
    """A file, a row group or the rest of one is not listed, or the order is another one on S3."""
    root = None if where == "local" else f"{request.getfixturevalue('s3_root')}/units"
    logs = write_log([[[10, 4], [], [1]], [[5]]], root)
    logs.write(f"dt={DAY}/_SUCCESS", b"")
    logs.write(f"dt={DAY}/.part-9.parquet", b"just being written")
    first, second = list_days(logs, [DAY, "2026-03-02"], max_rows=4)
    found = [(unit.file[-14:], unit.row_group, unit.first_row, unit.num_rows, unit.whole) for unit in first.units]
    assert found == [
        ("part-0.parquet", 0, 0, 4, False),
        ("part-0.parquet", 0, 4, 4, False),
        ("part-0.parquet", 0, 8, 2, False),
        ("part-0.parquet", 1, 0, 4, True),
        ("part-2.parquet", 0, 0, 1, True),
    ]
    assert (first.day, first.num_rows, second.num_rows) == (DAY, 15, 5)
    assert {unit.day for unit in second.units} == {"2026-03-02"}
    sizes = {file: int(mark.partition("-")[0]) for file, mark in first.files.items()}
    assert sizes == {f"dt={DAY}/part-{n}.parquet": len(logs.read(f"dt={DAY}/part-{n}.parquet")) for n in range(3)}
    keys = [unit.key for unit in [*first.units, *second.units]]
    assert len(set(keys)) == len(keys)
    assert keys[1] == f"dt={DAY}/part-0.parquet#0[4:8]"


def test_footers_are_not_kept(write_log: WriteLog, monkeypatch: pytest.MonkeyPatch, tiny_encoder: Encoder):
    """Catches a list of a day that keeps all footers: 7 GB for 150,000 row groups of 26 columns."""
    alive: list[weakref.ref[Any]] = []
    most = 0

    class Watched(pq.ParquetFile):
        def __init__(self, source: Any):
            nonlocal most
            super().__init__(source)
            alive.append(weakref.ref(self.metadata))
            gc.collect()  # a ParquetFile is in a cycle
            most = max(most, sum(one() is not None for one in alive))

    monkeypatch.setattr(pq, "ParquetFile", Watched)
    logs = write_log([[[2, 3]] * 100])
    (day,) = check_days(logs, ["2026-03-01"], 10, tiny_encoder.schema, tiny_encoder.columns)
    assert len(day.units) == 200
    assert len(alive) == 100
    assert most < 50, "16 threads have one each, and some that are on their way"
    gc.collect()
    assert not any(one() for one in alive)


@given(rows=st.integers(1, 60), max_rows=st.integers(1, 70))
def test_ranges_cover_a_row_group(rows: int, max_rows: int, write_log: WriteLog):
    """A row between two ranges is in both or in none."""
    (day,) = list_days(write_log([[[rows]]]), [DAY], max_rows)
    covered = [row for unit in day.units for row in range(unit.first_row, unit.first_row + unit.num_rows)]
    assert covered == list(range(rows))
    assert all(0 < unit.num_rows <= max_rows for unit in day.units)
    assert all(unit.whole == (len(day.units) == 1) for unit in day.units)


_SOME = [Unit(DAY, f"file-{n // 4}", n // 2 % 2, n % 2 * 7, 7 + n, whole=n == 8) for n in range(9)]


@given(units=st.lists(st.sampled_from(_SOME), max_size=9), data=st.data())
def test_units_are_what_they_were_made_of(units: list[Unit], data: st.DataObject):
    """A field of a unit comes back as another one, or rounded, after its way to a worker."""
    stored = pickle.loads(pickle.dumps(Units(units)))
    assert list(stored) == units == stored[:]
    assert stored == Units(units)
    assert stored.keys() == [unit.key for unit in units]
    assert (stored.num_rows.tolist(), stored.whole.tolist()) == ([u.num_rows for u in units], [u.whole for u in units])
    if units:
        place = data.draw(st.integers(-len(units), len(units) - 1))
        assert stored[place] == units[place]
        assert stored[place:] == units[place:]
        assert stored != Units(units[1:])
        with pytest.raises(IndexError):
            stored[len(units)]


def test_units_of_two_days():
    """Rows of one day are trained as another's."""
    with pytest.raises(ValueError, match="units of several days"):
        Units([_SOME[0], replace(_SOME[1], day="2026-03-02")])


def test_units_of_a_row_group_are_together():
    """A row group is dealt in pieces, and decoded once for each."""
    assert Units(_SOME).row_groups() == [range(0, 2), range(2, 4), range(4, 6), range(6, 8), range(8, 9)]
    assert Units([]).row_groups() == []


def test_units_travel_as_one_array():
    """A day's units reach every worker as objects, which take microseconds each to read: seconds a day."""

    def instructions(units: Any) -> int:
        return sum(1 for _ in pickletools.genops(pickle.dumps(units)))

    few, many = ([Unit(DAY, "file", n, 0, 65_536, whole=True) for n in range(size)] for size in (20, 2000))
    assert instructions(Units(few)) == instructions(Units(many))
    assert len(pickle.dumps(Units(many))) < 24 * len(many)
    assert instructions(few) * 20 < instructions(many)  # the control


def test_an_audit_sum_is_one_of_sets():
    """A sum that depends on the order, or that is the same for other rows or another unit."""
    rows = np.arange(1000, dtype=np.int32)
    assert audit_sum(5, rows) == audit_sum(5, rows[::-1]) == (audit_sum(5, rows[:7]) + audit_sum(5, rows[7:])) % 2**64
    doubled = np.concatenate([rows[:-1], rows[:1]])
    assert len({audit_sum(5, rows), audit_sum(2**50, rows), audit_sum(5, rows + 1), audit_sum(5, doubled)}) == 4
    assert audit_sum(5, rows.astype(np.int64)) == audit_sum(5, rows)
    assert audit_sum(5, rows[:0]) == 0
    assert 0 <= audit_sum(2**64 - 1, rows) < 2**64


# --- What is wrong with a day ---


def _refused(logs: Storage, encoder: Encoder, days: list[str] | None = None) -> str:
    """The one line that a day is refused with."""
    with pytest.raises(DataError) as caught:
        check_days(logs, days or [DAY], 1000, encoder.schema, encoder.columns)
    text = str(caught.value)
    assert "\n" not in text
    assert text.startswith(f"{logs.url}/dt=")
    return text.removeprefix(f"{logs.url}/")


@pytest.mark.parametrize("where", ["local", "s3"])
def test_days_that_are_not_there(
    where: str, write_log: WriteLog, tiny_encoder: Encoder, request: pytest.FixtureRequest
):
    """A day that is missing, or that nobody has written to, is trained as one without rows."""
    root = None if where == "local" else f"{request.getfixturevalue('s3_root')}/missing"
    logs = write_log([[[3]], [[], []]], root)
    logs.write("dt=2026-03-03/_SUCCESS", b"")
    check_days(logs, [DAY], 1000, tiny_encoder.schema, tiny_encoder.columns)  # negative control
    missing = _refused(logs, tiny_encoder, [DAY, "2026-03-04"])
    assert missing == f"dt=2026-03-04 is missing: {_REMEDY}"
    empty = _refused(logs, tiny_encoder, ["2026-03-02"])
    assert empty == "dt=2026-03-02 has 2 files and no row: write the log, or leave the day out"
    hidden = _refused(logs, tiny_encoder, ["2026-03-03"])
    assert hidden == f"dt=2026-03-03 has no file but hidden ones: {_REMEDY}"


@pytest.mark.parametrize(
    "spoil",
    [
        lambda data: b"",
        lambda data: b"number,click\n1,0\n" * 20,
        lambda data: data[:-20],
        lambda data: data[: len(data) // 2],
        lambda data: data[:4],
        lambda data: data[:-300] + bytes(byte ^ 0xFF for byte in data[-300:-100]) + data[-100:],
        lambda data: data.replace(b"video", b"vi\xffeo"),
    ],
    ids=["empty", "csv", "no magic", "half", "four bytes", "footer", "no utf-8"],
)
def test_files_that_are_not_readable(spoil: Callable[[bytes], bytes], write_log: WriteLog, tiny_encoder: Encoder):
    """The job ends with pyarrow's own error, which names no file, or hours later in a data task."""
    logs = write_log([[[30], [30]]])
    file = f"dt={DAY}/part-1.parquet"
    logs.write(file, spoil(logs.read(file)))
    assert re.fullmatch(rf"{file} is not readable Parquet \(.+\): write the file again", _refused(logs, tiny_encoder))


def _rewrite(logs: Storage, file: str, change: Callable[[pa.Table], pa.Table]) -> None:
    data = io.BytesIO()
    pq.write_table(change(pq.read_table(io.BytesIO(logs.read(file)))), data)
    logs.write(file, data.getvalue())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda table: table.drop_columns(["video"]), "no column 'video' (1 missing: ['video']); the file has ["),
        (
            lambda table: table.set_column(0, "number", table["number"].cast(pa.string())),
            "column 'number' is string, feature 'number' is dense: expected a number or boolean",
        ),
        (
            lambda table: table.set_column(2, "history", table["number"]),
            "column 'history' is int64, feature 'history' is a sequence",
        ),
        (lambda table: table.set_column(3, "click", table["number"].cast(pa.string())), "task 'ctr': 'click' is str"),
    ],
)
def test_files_of_another_shape(change: Callable[[Any], Any], message: str, write_log: WriteLog, tiny_encoder: Encoder):
    """Only the first file of the first day is looked at."""
    logs = write_log([[[3], [3]], [[3], [3]]])
    file = "dt=2026-03-02/part-1.parquet"
    _rewrite(logs, file, lambda table: table)
    check_days(logs, [DAY, "2026-03-02"], 1000, tiny_encoder.schema, tiny_encoder.columns)  # negative control
    _rewrite(logs, file, change)
    assert _refused(logs, tiny_encoder, [DAY, "2026-03-02"]).startswith(f"{file}: {message}")
    list_days(logs, [DAY, "2026-03-02"], 1000)  # footers alone do not tell


@pytest.mark.parametrize("error", [PermissionError("no"), TimeoutError(), OSError(5, "disk"), ConnectionError()])
def test_a_storage_that_does_not_answer_is_no_bad_file(
    error: Exception, write_log: WriteLog, monkeypatch: pytest.MonkeyPatch
):
    """An outage is called a file to be written again, and the exit code says that trying again cannot help."""
    logs = write_log([[[3]]])

    def fail(*_: Any) -> Any:
        raise error

    monkeypatch.setattr(Storage, "open_read", fail)
    with pytest.raises(type(error)):
        list_days(logs, [DAY], 1000)


def test_relative_logs(write_log: WriteLog, monkeypatch: pytest.MonkeyPatch):
    """A path below the working directory is one below another one in a worker."""
    logs = write_log([[[3]]])
    monkeypatch.chdir(Path(logs.url).parent)
    (day,) = list_days(Storage(Path(logs.url).name), [DAY], 1000)
    assert [unit.file for unit in day.units] == [f"dt={DAY}/part-0.parquet"]
