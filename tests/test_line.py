"""A line: fencing numbers, which checkpoint is the newest intact one, and how LATEST moves."""

import hashlib
import logging
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier
from typing import Any

import pytest
from records import manifest_of, write_manifest, write_position

from features.errors import DataError
from pipeline.ingest.cursor import StoredCursor
from pipeline.lineage.line import Line
from pipeline.lineage.records import Attempt, FileMark, Manifest, Published
from pipeline.storage.files import Storage

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
        files[file] = FileMark(bytes=len(data), sha256=hashlib.sha256(data).hexdigest())
    config = {"seed": 3, "ingest": {"shuffle": {"rows": True}}}
    write_manifest(line, name, manifest_of(step=step, day=day, attempt=attempt, files=files, config=config), **changes)
    return name


def _begin(
    line: Line, days: list[str] = DAYS[:1], start: Manifest | None = None, run: str | None = None, **record: Any
) -> str:
    """Take the line over, from a checkpoint or from nothing."""
    return line.begin_attempt(days, run or uuid.uuid4().hex, lambda _: start, **record)[0]


def _begun(line: Line, attempts: int = 1) -> Line:
    """Attempts that began from a checkpoint of more steps than any here, so that all of theirs count."""
    for _ in range(attempts):
        _begin(line, DAYS, manifest_of(checkpoint="checkpoints/far", step=10**6))
    return line


def _publish(line: Line, day: str, checkpoint: str, run: str, generation: int = 1) -> None:
    entry = Published(day=day, generation=generation, checkpoint=checkpoint)
    line.publish(entry, line.state().serial, run)


def _attempt(line: Line, day: str, name: str) -> Attempt:
    return Attempt.from_bytes(line.storage.read(f"attempts/{day}/{name}.json"))


# --- Attempts ---


def test_racing_attempts_have_different_numbers(any_line: Line):
    """Two attempts write into one directory, or both believe that they hold the line."""
    start = Barrier(8)

    def begin(_: int) -> str:
        start.wait()
        return _begin(any_line, DAYS)

    with ThreadPoolExecutor(8) as pool:
        names = list(pool.map(begin, range(8)))
    assert sorted(names) == [f"{number:04d}" for number in range(1, 9)]
    for name in names[:-1]:
        if name != "0008":
            with pytest.raises(
                DataError, match=f"attempt {name} no longer holds .*: another .* newest attempt is 0008"
            ):
                any_line.check_holder(name)
    any_line.check_holder("0008")


def test_an_attempt_chooses_again_when_it_is_overtaken(line: Line):
    """It goes on from a checkpoint older than the one that was published while it looked."""
    older, newer = _save(line, 10, complete=True), _save(line, 20, day=DAYS[1], complete=True)
    _begin(line, run="holder")
    chosen: list[Manifest | None] = []

    def choose(known: str | None) -> Manifest | None:
        chosen.append(line.read_manifest(newer if chosen else older))
        if len(chosen) == 1:
            _publish(line, DAYS[1], newer, "holder")
        return chosen[-1]

    attempt, start = line.begin_attempt(DAYS, "mine", choose)
    assert (attempt, len(chosen)) == ("0002", 3)
    assert start is not None
    assert start.checkpoint == newer


def test_the_record_of_an_attempt(line: Line):
    """When it ends, it is forgotten what it was; or a restart of the workers leaves no trace."""
    older = _save(line, 10)
    _begin(line, DAYS, run="a", passes=2)
    attempt = _begin(line, DAYS, line.read_manifest(older), run="a", passes=2)
    other = _begin(line, DAYS[:1], run="b")
    assert line.attempt_of(DAYS, "a") == attempt == "0002"
    line.end_attempts(DAYS, "a", "done")
    for day in DAYS:
        first, last = (_attempt(line, day, name) for name in ("0001", attempt))
        begun = Attempt(run="a", passes=2, days=tuple(DAYS), serial=0, attempt=1)
        assert first == begun.model_copy(update={"result": "restarted"})
        assert last == begun.model_copy(
            update={"attempt": 2, "start": older, "start_step": 10, "result": "done"},
        )
    assert _attempt(line, DAYS[0], other).result is None


def test_what_an_overtaken_attempt_completes_does_not_count(any_line: Line, caplog: pytest.LogCaptureFixture):
    """The old workers of a run whose Ray head was killed step on, and the new run's successor goes on from theirs."""
    old = _begin(any_line)
    seen = _save(any_line, 10, attempt=old)
    new = _begin(any_line, start=any_line.newest())
    assert any_line.newest() is not None
    _save(any_line, 20, attempt=old)  # between the look and the number, or past the check
    with caplog.at_level(logging.WARNING):
        found = any_line.newest()
    assert found is not None
    assert found.checkpoint == seen
    assert "0000000020 is passed over: attempt 0002 had begun from an earlier one" in caplog.text
    mine = _save(any_line, 15, attempt=new)
    found = any_line.newest()
    assert found is not None
    assert found.checkpoint == mine
    changed = _attempt(any_line, DAYS[0], new).model_copy(update={"start_step": 20})
    # Negative control: had it begun from there, it would be the newest.
    any_line.storage.write(f"attempts/{DAYS[0]}/{new}.json", changed.to_bytes())
    found = any_line.newest()
    assert found is not None
    assert found.step == 20


def test_a_line_that_was_taken_over_is_not_published_on(any_line: Line):
    """A run that hung for a minute wakes up and moves LATEST under the feet of the one that took over."""
    old = _begin(any_line, run="old")
    finished = _save(any_line, 10, attempt=old, complete=True)
    any_line.take("new")
    with pytest.raises(DataError, match="this run no longer holds"):
        _publish(any_line, DAYS[0], finished, "old")
    assert any_line.latest() is None
    _publish(any_line, DAYS[0], finished, "new")  # negative control: the holder can
    assert any_line.latest() is not None


def test_a_run_whose_record_was_not_written_begins_again(line: Line, monkeypatch: pytest.MonkeyPatch):
    """It has taken the line, the storage fails, and it takes itself for somebody else who holds it."""
    _begin(line, run="mine")
    with monkeypatch.context() as patch:
        patch.setattr(Storage, "write", _fail)
        with pytest.raises(OSError, match="away"):
            _begin(line, run="mine")
    assert _begin(line, run="mine") == "0003"


def _fail(storage: Storage, name: str, data: bytes) -> None:
    if name.startswith("attempts/"):
        raise OSError("away")
    Path(storage.path(name)).write_bytes(data)


def test_the_choice_is_made_again_once_the_line_is_taken(line: Line):
    """An attempt that lives on retires what was chosen, while its files were being read."""
    first, second = _save(line, 10), _save(line, 20)
    found = [line.read_manifest(first), line.read_manifest(second)]
    known: list[str | None] = []

    def choose(checkpoint: str | None) -> Manifest | None:
        known.append(checkpoint)
        return found[len(known) - 1]

    attempt, start = line.begin_attempt(DAYS, "a", choose)
    assert known == [None, first]
    assert start is found[1]
    assert _attempt(line, DAYS[0], attempt).start_step == 20


def test_a_run_that_was_taken_over_does_not_take_the_line_back(line: Line):
    """Its workers hang, somebody starts a second run, the time-out fires, and Ray starts the workers of the first."""
    _begin(line, run="first")
    second = _begin(line, run="second")
    with pytest.raises(DataError, match=r"attempt 0001 no longer holds .*: another .* newest attempt is 0002"):
        _begin(line, run="first")
    assert _begin(line, run="second") > second  # negative control: its own workers may be started again


def test_a_line_that_is_taken_over_during_a_publication(line: Line, monkeypatch: pytest.MonkeyPatch):
    """The check and the move are two operations, and between them somebody else begins."""
    old = _begin(line, run="old")
    finished = _save(line, 10, attempt=old, complete=True)
    replace = Storage.replace

    def be_overtaken_and_replace(self: Storage, name: str, data: bytes, version: str | None) -> bool:
        monkeypatch.undo()
        line.take("new")
        return replace(self, name, data, version)

    monkeypatch.setattr(Storage, "replace", be_overtaken_and_replace)
    with pytest.raises(DataError, match="this run no longer holds"):
        _publish(line, DAYS[0], finished, "old")
    assert line.latest() is None


def test_pinned_checkpoints(line: Line):
    """A checkpoint is retired while an evaluation reads it, or kept for ever by one that died."""
    name = _save(line, 10)
    assert not line.is_pinned(name)
    with line.pinned(name, "evaluate"), line.pinned(name, "again"):
        assert line.is_pinned(name)
        assert not line.is_pinned(_save(line, 20))
    assert not line.is_pinned(name)
    _begin(line, run="a")
    _publish(line, DAYS[0], name, "a")
    assert line.is_pinned(name)


# --- The newest checkpoint ---


def test_the_newest_has_the_most_steps(any_line: Line):
    """A restart goes back to an older checkpoint: of an older day, or of a name that sorts higher."""
    assert any_line.newest() is None
    _begun(any_line, 3)
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
    _begun(line, 2)
    _save(line, 20, attempt="0002")
    finished = _save(line, 20, attempt="0001", complete=True)
    found = line.newest()
    assert found is not None
    assert found.checkpoint == finished


def test_a_line_whose_checkpoints_are_all_damaged(line: Line):
    """Training starts from nothing, or from the day before, under the name of a model that is published."""
    _begin(line, run="a")
    _save(line, 10, complete=True)
    published = _save(line, 20, day=DAYS[1], complete=True)
    _publish(line, DAYS[1], published, "a")
    assert line.newest() is not None
    _flip(Path(line.storage.path(published), "__0_0.distcp"))
    with pytest.raises(DataError, match=rf"LATEST names {published}, which is damaged or gone: .* --rollback"):
        line.newest()


def test_only_what_follows_the_published_counts(line: Line):
    """After a rollback the day that was taken back, of more steps, is taken for what the next run has trained."""
    _begin(line, DAYS, run="a")
    first = _save(line, 10, complete=True)
    _publish(line, DAYS[0], first, "a")
    _begin(line, DAYS[1:], line.read_manifest(first), run="b")
    second = _save(line, 20, day=DAYS[1], attempt="0002", complete=True)
    found = line.newest()
    assert found is not None
    assert found.checkpoint == second  # not published yet: a run that is started again goes on from it
    _publish(line, DAYS[1], second, "b")
    line.take("c")
    _publish(line, DAYS[0], first, "c")  # back
    found = line.newest()
    assert found is not None
    assert found.checkpoint == first
    _begin(line, DAYS[1:], found, run="d")
    again = _save(line, 15, day=DAYS[1], attempt="0003")
    found = line.newest()
    assert found is not None
    assert found.checkpoint == again
    assert line.restart("d") == line.state().serial
    found = line.newest()
    assert found is not None
    assert found.checkpoint == first  # what was begun is forgotten


def test_what_a_manifest_says_about_where_the_model_is(line: Line):
    """The stream goes on with another pass, another seed, or another checkpoint's units."""
    name = _save(_begun(line), 7)
    cursor = StoredCursor({"a": (1, 2**63 + 1)}, [1, 0], {"d": "why"}, held_out=1)
    write_position(line, name, cursor, [["a"], [], ["b", "c"]])
    found = line.newest()
    assert found is not None
    point = line.resume_point(found)
    assert (point.checkpoint, point.pass_index, point.day, point.complete) == (name, 0, DAYS[0], False)
    assert (point.lanes, point.seen) == ((("a",), (), ("b", "c")), cursor)
    assert (point.seed, point.shuffle_rows) == (3, True)


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("spoil", "warning"),
    [
        (lambda folder: (folder / "manifest.json").unlink(), None),
        (lambda folder: (folder / "manifest.json").write_bytes(b""), "its manifest is damaged"),
        (lambda folder: (folder / "manifest.json").write_bytes(b'{"step": 20, '), "its manifest is damaged"),
        (lambda folder: (folder / "manifest.json").write_bytes(b'{"step": 20}'), "its manifest is damaged"),
        (lambda folder: (folder / "manifest.json").write_bytes(b"[20]"), "its manifest is damaged"),
        (lambda folder: (folder / "manifest.json").write_bytes(b"\xff\xfe"), "its manifest is damaged"),
        (lambda folder: _flip(folder / "manifest.json"), "its manifest is damaged"),
        (lambda folder: _flip(folder / "__0_0.distcp"), "is passed over: __0_0.distcp has 5100 bytes, sha256"),
        (
            lambda folder: (folder / "__0_0.distcp").write_bytes(b"x"),
            "__0_0.distcp has 1 bytes, sha256 2d711642b726; expected 5100, sha256",
        ),
        (lambda folder: (folder / ".metadata").unlink(), "is passed over: .metadata is missing"),
    ],
    ids=[
        "no-manifest",
        "empty",
        "half",
        "keys",
        "list",
        "no-text",
        "flipped-digit",
        "flipped-bit",
        "truncated",
        "file-missing",
    ],
)
def test_half_written_checkpoints_are_passed_over(
    spoil: Any, warning: str | None, line: Line, caplog: pytest.LogCaptureFixture
):
    """Weights of one step are loaded with a cursor of another, or with a file of zeros."""
    older, newer = _save(_begun(line), 10), _save(line, 20)
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
    _begin(line, DAYS[1:], run="a")
    _publish(line, DAYS[1], published, "a")
    found = line.newest()
    assert found is not None
    assert found.checkpoint == published


# --- LATEST ---


def test_latest_moves_forward(any_line: Line):
    """A finished day is not published, or one that is published again stops the run."""
    assert any_line.latest() is None
    _begin(any_line, DAYS, run="a")
    assert any_line.latest() is None
    for serial, day in ((0, DAYS[0]), (1, DAYS[1]), (1, DAYS[1])):
        entry = Published(day=day, generation=1, checkpoint=f"checkpoints/{day}/0001/1")
        any_line.publish(entry, serial, "a")
        assert any_line.latest() == entry


def test_latest_does_not_move_from_elsewhere(line: Line):
    """A day that was begun from what was published then is published after it was taken back, or after another."""
    _begin(line, DAYS, run="a")
    serial = line.state().serial
    _publish(line, DAYS[1], "checkpoints/b", "a")
    with pytest.raises(DataError, match="LATEST was moved by another run"):
        line.publish(Published(day=DAYS[0], generation=1, checkpoint="checkpoints/a"), serial, "a")
    assert line.latest() == Published(day=DAYS[1], generation=1, checkpoint="checkpoints/b")


def test_racing_publishers(any_line: Line):
    """Two of them take themselves for the winner, and a day has two models."""
    for turn in range(5):
        serial, start = any_line.state().serial, Barrier(8)

        def publish(number: int, serial: int = serial, start: Barrier = start, turn: int = turn) -> bool:
            start.wait()
            any_line.take(f"{turn}-{number}")
            entry = Published(day=DAYS[0], generation=turn, checkpoint=f"checkpoints/{number}")
            try:
                any_line.publish(entry, serial, f"{turn}-{number}")
            except DataError:
                return False
            return True

        with ThreadPoolExecutor(8) as pool:
            won = list(pool.map(publish, range(8)))
        assert sum(won) == 1
        latest = any_line.latest()
        assert latest == Published(day=DAYS[0], generation=turn, checkpoint=f"checkpoints/{won.index(True)}")
        assert any_line.state().serial == serial + 1


def test_a_damaged_latest_stops_everything(line: Line):
    """A digit flips in LATEST, and tomorrow is trained from another checkpoint than the published one."""
    _begin(line, run="a")
    _publish(line, DAYS[0], "checkpoints/a", "a")
    path = Path(line.storage.path("LATEST"))
    path.write_bytes(path.read_bytes().replace(b"checkpoints/a", b"checkpoints/b"))
    for read in (line.latest, lambda: _begin(line), line.newest):
        with pytest.raises(
            DataError, match=r"/LATEST is damaged \(its checksum is not .*\): make it again from the ledger"
        ):
            read()


def test_a_move_that_was_sent_twice_is_one(line: Line, monkeypatch: pytest.MonkeyPatch):
    """S3's answer is lost, the put is sent again, finds itself, and the run fails after it has published."""
    _begin(line, run="a")
    replace = Storage.replace

    def replace_twice(storage: Storage, name: str, data: bytes, version: str | None) -> bool:
        replace(storage, name, data, version)
        return replace(storage, name, data, version)

    monkeypatch.setattr(Storage, "replace", replace_twice)
    _publish(line, DAYS[0], "checkpoints/a", "a")
    latest = line.latest()
    assert latest is not None
    assert latest.checkpoint == "checkpoints/a"
