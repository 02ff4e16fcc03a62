"""A line: fencing numbers, which checkpoint is the newest intact one, and how LATEST moves."""

import hashlib
import json
import logging
import re
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier
from typing import Any

import pytest

from features.errors import DataError
from pipeline.lineage.line import Line
from pipeline.storage import Storage

DAYS = ["2026-03-01", "2026-03-02"]


@pytest.fixture
def line(tmp_path: Path) -> Line:
    return Line.of(str(tmp_path), "main")


@pytest.fixture(params=["local", "s3"])
def any_line(request: pytest.FixtureRequest, tmp_path: Path) -> Line:
    root = str(tmp_path) if request.param == "local" else request.getfixturevalue("s3_root")
    return Line.of(f"{root}/{uuid.uuid4().hex}", "main")


def _save(line: Line, step: int, *, day: str = DAYS[0], attempt: str = "0001", **changes: Any) -> str:
    """Write a checkpoint of two files."""
    name = f"checkpoints/{day}/{attempt}/{step:010d}"
    files = {}
    for file in ("__0_0.distcp", ".metadata"):
        data = f"{name} {file}".encode() * 100
        line.storage.write(f"{name}/{file}", data)
        files[file] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    manifest = {"step": step, "day": day, "pass": 0, "cursor": {"units": {}}, "lanes": [["unit"]], "complete": False}
    manifest |= {"files": files, "config": {"seed": 3, "ingest": {"shuffle": {"rows": True}}}}
    line.storage.write(f"{name}/manifest.json", json.dumps(manifest | changes).encode())
    return name


# --- Attempts ---


def test_racing_attempts_have_different_numbers(any_line: Line):
    """Two attempts write into one directory, or one dies of a file that another is just writing."""
    start = Barrier(8)

    def begin(_: int) -> str:
        start.wait()
        return any_line.begin_attempt(DAYS, {"days": DAYS})

    with ThreadPoolExecutor(8) as pool:
        names = list(pool.map(begin, range(8)))
    assert len(set(names)) == 8
    assert all(re.fullmatch(r"\d{4}", name) for name in names)
    assert any_line.begin_attempt(DAYS[:1], {}) > max(names)


def test_attempts_at_overlapping_days(line: Line):
    """A number is taken again on a day that another range of days shares."""
    assert line.begin_attempt(DAYS[:1], {}) == "0001"
    assert line.begin_attempt(DAYS, {}) == "0002"
    assert line.begin_attempt(DAYS[1:], {}) == "0003"
    line.storage.write(f"attempts/{DAYS[0]}/.writing-abc", b"")
    assert line.begin_attempt(DAYS, {}) == "0004"


def test_the_record_of_an_attempt(line: Line):
    """When it ends, it is forgotten what it was."""
    attempt = line.begin_attempt(DAYS, {"passes": 2})
    line.end_attempt(DAYS, attempt, {"result": "done"})
    for day in DAYS:
        record = json.loads(line.storage.read(f"attempts/{day}/{attempt}.json"))
        assert record == {"passes": 2, "attempt": 1, "result": "done"}


# --- The newest checkpoint ---


def test_the_newest_has_the_most_steps(any_line: Line):
    """A restart goes back to an older checkpoint: of an older day, or of a name that sorts higher."""
    assert any_line.newest() is None
    _save(any_line, 9, attempt="0003")
    _save(any_line, 100, attempt="0002")
    newest = _save(any_line, 250, day=DAYS[1], attempt="0001")
    _save(any_line, 90, day=DAYS[1], attempt="0002")
    found = any_line.newest()
    assert found is not None
    assert (found.checkpoint, found.step, found.day) == (newest, 250, DAYS[1])
    again = _save(any_line, 250, day=DAYS[1], attempt="0002")
    found = any_line.newest()
    assert found is not None
    assert found.checkpoint == again  # of equal steps, that of the later attempt


def test_of_equal_steps_the_finished_day(line: Line):
    """The last checkpoint within a day, of as many steps as the day has, is taken for its end, which comes after it."""
    _save(line, 20, attempt="0002")
    finished = _save(line, 20, attempt="0001", complete=True)
    found = line.newest()
    assert found is not None
    assert found.checkpoint == finished


def test_a_line_whose_checkpoints_are_all_damaged(line: Line):
    """Training starts from nothing, under the name of a model that is published."""
    older = _save(line, 10, complete=True)
    published = _save(line, 20, day=DAYS[1], complete=True)
    line.publish(DAYS[1], published)
    _flip(Path(line.storage.path(published), "__0_0.distcp"))
    found = line.newest()
    assert found is not None
    assert found.checkpoint == older
    _flip(Path(line.storage.path(older), "__0_0.distcp"))
    with pytest.raises(DataError, match=rf"LATEST names {published}, and no checkpoint of the line is intact"):
        line.newest()


def test_what_a_manifest_says_about_where_the_model_is(line: Line):
    """The stream goes on with another pass, another seed, or another checkpoint's units."""
    name = _save(line, 7, lanes=[["a"], ["b", "c"]], cursor={"units": {"a": [1, "2"]}}, complete=True)
    found = line.newest()
    assert found is not None
    point = found.resume_point()
    assert (point.checkpoint, point.pass_index, point.day, point.complete) == (name, 0, DAYS[0], True)
    assert (point.lanes, point.seen) == ([["a"], ["b", "c"]], {"units": {"a": [1, "2"]}})
    assert (point.seed, point.shuffle_rows) == (3, True)


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("spoil", "warning"),
    [
        (lambda folder: (folder / "manifest.json").unlink(), None),
        (lambda folder: (folder / "manifest.json").write_bytes(b""), "has an unreadable manifest and is passed over"),
        (lambda folder: (folder / "manifest.json").write_bytes(b'{"step": 20, '), "unreadable manifest"),
        (lambda folder: (folder / "manifest.json").write_bytes(b'{"step": 20}'), "unreadable manifest"),
        (lambda folder: (folder / "manifest.json").write_bytes(b"[20]"), "unreadable manifest"),
        (lambda folder: (folder / "manifest.json").write_bytes(b"\xff\xfe"), "unreadable manifest"),
        (lambda folder: _flip(folder / "__0_0.distcp"), "is passed over: __0_0.distcp has 5100 bytes, sha256"),
        (
            lambda folder: (folder / "__0_0.distcp").write_bytes(b"x"),
            "__0_0.distcp has 1 bytes, sha256 2d711642b726; expected 5100, sha256",
        ),
        (lambda folder: (folder / ".metadata").unlink(), "is passed over: .metadata is missing"),
    ],
    ids=["no manifest", "empty", "half", "keys", "list", "no text", "flipped bit", "truncated", "file missing"],
)
def test_half_written_checkpoints_are_passed_over(
    spoil: Any, warning: str | None, line: Line, caplog: pytest.LogCaptureFixture
):
    """Weights of one step are loaded with a cursor of another, or with a file of zeros."""
    older, newer = _save(line, 10), _save(line, 20)
    with caplog.at_level(logging.WARNING):
        found = line.newest()
        assert found is not None
        assert found.checkpoint == newer  # negative control
        assert caplog.messages == []
        spoil(Path(line.storage.path(newer)))
        found = line.newest()
    assert found is not None
    assert found.checkpoint == older
    assert len(caplog.messages) == (warning is not None)
    if warning is not None:
        assert newer in caplog.messages[0]
        assert warning in caplog.messages[0]
    spoil(Path(line.storage.path(older)))
    assert line.newest() is None


def test_days_before_the_published_one_are_not_looked_at(line: Line):
    """A restart reads the checksums of years of checkpoints."""
    published = _save(line, 20, day=DAYS[1], complete=True)
    _save(line, 30, day=DAYS[0])  # of another, abandoned, history
    line.publish(DAYS[1], published)
    found = line.newest()
    assert found is not None
    assert found.checkpoint == published


# --- LATEST ---


def test_latest_moves_forward(any_line: Line):
    """A finished day is not published, or one that is published again stops the run."""
    assert any_line.latest() is None
    for day in (*DAYS, DAYS[1]):
        any_line.publish(day, f"checkpoints/{day}/0001/1")
        latest = {"day": day, "generation": 1, "checkpoint": f"checkpoints/{day}/0001/1"}
        assert any_line.latest() == latest


def test_latest_does_not_move_back(line: Line):
    """A slow run of yesterday publishes after today's, and tomorrow is trained from it."""
    line.publish(DAYS[1], "checkpoints/b")
    with pytest.raises(DataError, match=rf"LATEST is at {DAYS[1]}, it does not move back to {DAYS[0]}"):
        line.publish(DAYS[0], "checkpoints/a")
    assert line.latest() == {"day": DAYS[1], "generation": 1, "checkpoint": "checkpoints/b"}


def test_latest_moves_by_compare_and_swap(any_line: Line, monkeypatch: pytest.MonkeyPatch):
    """Two runs publish at once, and the first one's day is lost without a word."""
    any_line.publish(DAYS[0], "checkpoints/a")
    read = Storage.read_versioned

    def read_and_be_overtaken(storage: Storage, name: str) -> tuple[bytes, str] | None:
        found = read(storage, name)
        storage.write(name, json.dumps({"day": DAYS[1], "generation": 1, "checkpoint": "checkpoints/other"}).encode())
        return found

    monkeypatch.setattr(Storage, "read_versioned", read_and_be_overtaken)
    with pytest.raises(DataError, match="LATEST was moved by another run: look who else trains this line"):
        any_line.publish(DAYS[1], "checkpoints/mine")
    monkeypatch.undo()
    latest = any_line.latest()
    assert latest is not None
    assert latest["checkpoint"] == "checkpoints/other"


def test_a_move_that_was_sent_twice_is_one(line: Line, monkeypatch: pytest.MonkeyPatch):
    """S3's answer is lost, the put is sent again, finds itself, and the run fails after it has published."""
    replace = Storage.replace

    def replace_twice(storage: Storage, name: str, data: bytes, version: str | None) -> bool:
        replace(storage, name, data, version)
        return replace(storage, name, data, version)

    monkeypatch.setattr(Storage, "replace", replace_twice)
    line.publish(DAYS[0], "checkpoints/a")
    latest = line.latest()
    assert latest is not None
    assert latest["checkpoint"] == "checkpoints/a"
