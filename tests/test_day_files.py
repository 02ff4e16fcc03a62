"""Files of a day: every row once whatever their folders and names, or a refusal that names the file."""

import io
import os
import re
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from features.encoding import Encoder
from features.errors import DataError
from features.schema import Schema
from pipeline.ingest.datasource import read_unit
from pipeline.ingest.units import DayLog, Unit, Units, check_days
from pipeline.storage.files import Storage
from pipeline.trainer.train_days import warn_of_small_units

DAY = "2026-03-01"
USERS = 7
SCHEMA = Schema.model_validate(
    {
        "tables": [{"name": "users", "num_rows": 2**20, "dim": 4}],
        "features": [{"name": "user", "kind": "id", "table": "users"}],
        "tasks": [{"name": "ctr", "kind": "binary", "label": "click"}],
    }
)
COLUMNS = ["user", "click", "row"]


@dataclass(frozen=True)
class Entry:
    """File below the day's folder.

    Args:
        path: Path below the folder.
        content: `integer` or `text`: Parquet with such users; else what the file has instead.
    """

    path: str
    content: str

    @property
    def is_hidden(self) -> bool:
        return any(part.startswith(("_", ".")) or part.endswith("_$folder$") for part in self.path.split("/"))

    @property
    def is_parquet(self) -> bool:
        return self.content in ("integer", "text")


def _data(entry: Entry, first_row: int) -> bytes:
    if not entry.is_parquet:
        return entry.content.encode()
    rows = range(first_row, first_row + 10)
    users: list[int | str] = [row % USERS for row in rows]
    if entry.content == "text":
        users = [str(user) for user in users]
    data = io.BytesIO()
    pq.write_table(pa.table({"user": users, "click": [row % 2 for row in rows], "row": list(rows)}), data)
    return data.getvalue()


def _write(folder: Path, entries: list[Entry]) -> set[int]:
    """Write the files of the day; return the numbers of the rows that are not hidden."""
    visible: set[int] = set()
    for number, entry in enumerate(entries):
        path = folder / f"dt={DAY}" / entry.path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(_data(entry, 10 * number))
        if entry.is_parquet and not entry.is_hidden:
            visible |= set(range(10 * number, 10 * number + 10))
    return visible


def _listed(logs: Storage) -> DayLog:
    (day,) = check_days(logs, [DAY], 4, SCHEMA, COLUMNS)
    return day


FOLDERS = st.lists(st.sampled_from(["hr=12", "hr=13", "a b", "实验", "x.parquet", "_temporary", ".git"]), max_size=2)
STEMS = ["part-0", "000001_0", "c.v1", "_tmp.part-0", ".part-0", "_SUCCESS", "hr=14_$folder$"]
ENDINGS = st.sampled_from(["", ".parquet", ".parq", ".PARQUET", ".parquet.snappy", ".gz.parquet"])
CONTENTS = st.sampled_from(["integer", "integer", "integer", "integer", "text", "number,click\n1,0\n", "", "PAR1"])
PATHS = st.builds(lambda folders, stem, end: "/".join([*folders, stem + end]), FOLDERS, st.sampled_from(STEMS), ENDINGS)
TREES = st.lists(st.builds(Entry, PATHS, CONTENTS), min_size=1, max_size=5, unique_by=lambda entry: entry.path)


def _can_be_written(entries: list[Entry]) -> bool:
    paths = [entry.path for entry in entries]
    return not any(other.startswith(f"{path}/") for path in paths for other in paths)


@given(entries=TREES.filter(_can_be_written))
def test_every_row_once_or_a_refusal(entries: list[Entry]) -> None:
    """Catches rows that are lost or doubled in silence by a folder, a name or an ending, and two rows of a user."""
    with tempfile.TemporaryDirectory() as folder:
        visible = _write(Path(folder), entries)
        logs = Storage(folder)
        seen = [entry for entry in entries if not entry.is_hidden]
        unreadable = [entry for entry in seen if not entry.is_parquet]
        if unreadable or len({entry.content for entry in seen}) != 1:
            with pytest.raises(DataError) as caught:
                _listed(logs)
            assert any(f"dt={DAY}/{entry.path}" in str(caught.value) for entry in seen) or not seen
            assert "\n" not in str(caught.value)
            return
        units = [read_unit(logs, unit, COLUMNS) for unit in _listed(logs).units]
    rows = Counter(row for unit in units for row in unit["row"].to_pylist())
    assert rows == dict.fromkeys(visible, 1)
    encoder = Encoder(SCHEMA, None)
    table_rows = {row for unit in units for row in encoder.encode(unit).ids[0].tolist()}
    assert len(table_rows) == len({row % USERS for row in visible})


def test_the_same_on_s3(s3_root: str) -> None:
    """Catches an object store whose listing ends at the first folder, or which reads its marks of folders."""
    logs = Storage(f"{s3_root}/day-files")
    entries = [
        Entry("part-0.parquet", "integer"),
        Entry("hr=12/x/000001_0", "integer"),
        Entry("hr=13/_temporary/part-1.parquet", "integer"),
        Entry("_tmp.part-0.parquet", "integer"),
        Entry("hr=14_$folder$", ""),
    ]
    for number, entry in enumerate(entries):
        logs.write(f"dt={DAY}/{entry.path}", _data(entry, 10 * number))
    logs.filesystem.call_s3("put_object", Bucket=s3_root[5:], Key=f"day-files/dt={DAY}/hr=15/", Body=b"")
    day = _listed(logs)
    assert sorted(day.files) == [f"dt={DAY}/hr=12/x/000001_0", f"dt={DAY}/part-0.parquet"]
    assert day.read_otherwise == (f"dt={DAY}/_tmp.part-0.parquet", f"dt={DAY}/hr=12/x/000001_0")
    logs.write(f"dt={DAY}/hr=12/notes.txt", b"hello")
    with pytest.raises(
        DataError, match=rf"dt={DAY}/hr=12/notes.txt is not Parquet: .* move it out of the day's folder"
    ):
        _listed(logs)


@pytest.mark.parametrize("kind", ["pipe", "broken link", "circle", "ambiguous"])
def test_entries_that_have_no_meaning(tmp_path: Path, kind: str) -> None:
    """Catches a listing that waits for a pipe, passes over a link or a folder, or follows a circle for ever."""
    _write(tmp_path, [Entry("hr=12/part-0", "integer")])
    folder = tmp_path / f"dt={DAY}/hr=12"
    if kind == "pipe":
        os.mkfifo(folder / "part-1")
    elif kind == "broken link":
        (folder / "part-1").symlink_to(tmp_path / "nowhere")
    elif kind == "circle":
        (folder / "part-1").symlink_to(folder.parent)
    else:
        (folder / "_minute=1").mkdir()
    expected = {
        "pipe": "part-1 is neither a file nor a folder but a pipe",
        "broken link": "part-1 is neither a file nor a folder but a pipe, a socket or a broken link: remove it",
        "circle": f"dt={DAY}/hr=12/part-1 is the same as {tmp_path}/dt={DAY}: remove the link",
        "ambiguous": "'_minute=1' begins with _ and has a =, so that Spark reads it and others do not: rename it",
    }[kind]
    with pytest.raises(DataError, match=re.escape(expected)):
        _listed(Storage(str(tmp_path)))


def test_links_are_followed(tmp_path: Path) -> None:
    """Catches a folder of a day that lies on another disk, whose rows are passed over."""
    _write(tmp_path / "disk", [Entry("part-0", "integer")])
    _write(tmp_path / "logs", [Entry("part-1", "integer")])
    (tmp_path / f"logs/dt={DAY}/hr=12").symlink_to(tmp_path / f"disk/dt={DAY}")
    assert [unit.file for unit in _listed(Storage(str(tmp_path / "logs"))).units][::3] == [
        f"dt={DAY}/hr=12/part-0",
        f"dt={DAY}/part-1",
    ]


@pytest.mark.parametrize("linked", ["hr=12", "hr=12/part-1"])
def test_a_second_way_to_the_same_rows(tmp_path: Path, linked: str) -> None:
    """Catches `latest -> hr=12` in the folder of a day, by which its rows are trained twice, and an audit agrees."""
    _write(tmp_path, [Entry("part-0", "integer"), Entry("hr=12/part-1", "integer")])
    folder = tmp_path / f"dt={DAY}"
    (folder / "latest").symlink_to(folder / linked)
    with pytest.raises(
        DataError, match=re.escape(f"{folder}/latest is the same as {folder}/{linked}: remove the link")
    ):
        _listed(Storage(str(tmp_path)))
    (folder / "latest").unlink()
    (folder / "part-2").hardlink_to(folder / "part-0")
    with pytest.raises(DataError, match="is the same as"):
        _listed(Storage(str(tmp_path)))


def test_a_folder_that_may_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a listing that passes over what it is not allowed to see."""
    _write(tmp_path, [Entry("part-0", "integer"), Entry("hr=12/part-1", "integer")])
    scan = os.scandir

    def refuse(path: str) -> object:
        if path.endswith("hr=12"):
            raise PermissionError(13, "Permission denied", path)
        return scan(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(PermissionError):
        _listed(Storage(str(tmp_path)))


def test_one_type_of_ids_on_all_days(tmp_path: Path) -> None:
    """Catches users that have two rows of a table, since one of two days has their ids as text."""
    _write(tmp_path, [Entry("part-0", "integer")])
    later = tmp_path / "dt=2026-03-02"
    later.mkdir()
    (later / "part-0").write_bytes(_data(Entry("part-0", "text"), 0))
    with pytest.raises(DataError) as caught:
        check_days(Storage(str(tmp_path)), [DAY, "2026-03-02"], 4, SCHEMA, COLUMNS)
    assert str(caught.value) == (
        f"{tmp_path}/dt=2026-03-02/part-0: column 'user' is text here and integer in dt={DAY}/part-0, so one id would "
        "become two: write the column with one type in all files"
    )


def test_many_small_row_groups_are_worth_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    """Catches a day that takes an hour because of its writer, and nobody says so; and a warning about a usual log."""
    small = Units(Unit(DAY, "a", group, 0, 2, whole=True) for group in range(20_000))
    large = Units(Unit(DAY, "a", group, 0, 65_536, whole=True) for group in range(1000))
    warn_of_small_units([DayLog(DAY, large, {}), DayLog(DAY, Units(small[:1000]), {})])
    assert not caplog.messages
    warn_of_small_units([DayLog(DAY, small, {})])
    assert caplog.messages == [
        f"{DAY} has 20000 row groups of 2 rows on average: reading one takes some 1.5 ms whatever its size, 30 s in "
        "all; write row groups of 10000 rows and more"
    ]
