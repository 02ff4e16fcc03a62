"""A line: which checkpoint is the newest intact one, and how LATEST moves."""

import logging
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier
from typing import Any

import pytest
from records import manifest_of, write_position
from small_lines import DAYS, any_line, begin_run, line, publish_day, save_checkpoint

from features.errors import DataError
from pipeline.ingest.cursor import StoredCursor
from pipeline.lineage.line import Line
from pipeline.lineage.records import Published
from pipeline.storage.files import Storage

__all__ = ["any_line", "line"]  # fixtures


def line_begun(line: Line, attempts: int = 1) -> Line:
    """Attempts that began from a checkpoint of more steps than any here, so that all of theirs count."""
    for _ in range(attempts):
        begin_run(line, DAYS, manifest_of(checkpoint="checkpoints/far", step=10**6))
    return line


def test_pinned_checkpoints(line: Line):
    """A checkpoint is retired while an evaluation reads it, or kept for ever by one that died."""
    name = save_checkpoint(line, 10)
    assert not line.is_pinned(name)
    with line.pinned(name, "evaluate"), line.pinned(name, "again"):
        assert line.is_pinned(name)
        assert not line.is_pinned(save_checkpoint(line, 20))
    assert not line.is_pinned(name)
    begin_run(line, run="a")
    publish_day(line, DAYS[0], name, "a")
    assert line.is_pinned(name)


def test_a_pinned_checkpoint_of_another_line(line: Line):
    """Catches a checkpoint of the line of origin that is retired while a job of a branch reads it."""
    name = save_checkpoint(line, 10)
    branch = Line(line.storage.sibling("branch"))
    with branch.pinned(f"{line.name}:{name}", "backfill"):
        assert line.is_pinned(name)
    assert not line.is_pinned(name)


# --- The newest checkpoint ---


def test_the_newest_has_the_most_steps(any_line: Line):
    """A restart goes back to an older checkpoint: of an older day, or of a name that sorts higher."""
    assert any_line.newest() is None
    line_begun(any_line, 3)
    save_checkpoint(any_line, 9, attempt="0003")
    save_checkpoint(any_line, 100, attempt="0002")
    newest = save_checkpoint(any_line, 250, day=DAYS[1], attempt="0001")
    save_checkpoint(any_line, 90, day=DAYS[1], attempt="0002")
    found = any_line.newest()
    assert found is not None
    assert (found.checkpoint, found.step, found.day) == (newest, 250, DAYS[1])
    again = save_checkpoint(any_line, 250, day=DAYS[1], attempt="0002")
    found = any_line.newest()
    assert found is not None
    assert found.checkpoint == again  # of equal steps, that of the later attempt


def test_of_equal_steps_the_finished_day(line: Line):
    """The last checkpoint within a day, of as many steps as the day has, is taken for its end, which comes after it."""
    line_begun(line, 2)
    save_checkpoint(line, 20, attempt="0002")
    finished = save_checkpoint(line, 20, attempt="0001", complete=True)
    found = line.newest()
    assert found is not None
    assert found.checkpoint == finished


def test_a_line_whose_checkpoints_are_all_damaged(line: Line):
    """Training starts from nothing, or from the day before, under the name of a model that is published."""
    begin_run(line, run="a")
    save_checkpoint(line, 10, complete=True)
    published = save_checkpoint(line, 20, day=DAYS[1], complete=True)
    publish_day(line, DAYS[1], published, "a")
    assert line.newest() is not None
    _flip(Path(line.storage.path(published), "__0_0.distcp"))
    with pytest.raises(DataError, match=rf"LATEST names {published}, which is damaged or gone: .* --rollback"):
        line.newest()


def test_only_what_follows_the_published_counts(line: Line):
    """After a rollback the day that was taken back, of more steps, is taken for what the next run has trained."""
    begin_run(line, DAYS, run="a")
    first = save_checkpoint(line, 10, complete=True)
    publish_day(line, DAYS[0], first, "a")
    begin_run(line, DAYS[1:], line.read_manifest(first), run="b")
    second = save_checkpoint(line, 20, day=DAYS[1], attempt="0002", complete=True)
    found = line.newest()
    assert found is not None
    assert found.checkpoint == second  # not published yet: a run that is started again goes on from it
    publish_day(line, DAYS[1], second, "b")
    line.take("c")
    publish_day(line, DAYS[0], first, "c")  # back
    found = line.newest()
    assert found is not None
    assert found.checkpoint == first
    begin_run(line, DAYS[1:], found, run="d")
    again = save_checkpoint(line, 15, day=DAYS[1], attempt="0003")
    found = line.newest()
    assert found is not None
    assert found.checkpoint == again
    assert line.restart("d") == line.state().serial
    found = line.newest()
    assert found is not None
    assert found.checkpoint == first  # what was begun is forgotten


def test_what_a_manifest_says_about_where_the_model_is(line: Line):
    """The stream goes on with another pass, another seed, or another checkpoint's units."""
    name = save_checkpoint(line_begun(line), 7)
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
    older, newer = save_checkpoint(line_begun(line), 10), save_checkpoint(line, 20)
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
    published = save_checkpoint(line, 20, day=DAYS[1], complete=True)
    save_checkpoint(line, 30, day=DAYS[0])  # of another, abandoned, history
    begin_run(line, DAYS[1:], run="a")
    publish_day(line, DAYS[1], published, "a")
    found = line.newest()
    assert found is not None
    assert found.checkpoint == published


# --- LATEST ---


def test_latest_moves_forward(any_line: Line):
    """A finished day is not published, or one that is published again stops the run."""
    assert any_line.latest() is None
    begin_run(any_line, DAYS, run="a")
    assert any_line.latest() is None
    for serial, day in ((0, DAYS[0]), (1, DAYS[1]), (1, DAYS[1])):
        entry = Published(day=day, generation=1, checkpoint=f"checkpoints/{day}/0001/1")
        any_line.publish(entry, serial, "a")
        assert any_line.latest() == entry


def test_latest_does_not_move_from_elsewhere(line: Line):
    """A day that was begun from what was published then is published after it was taken back, or after another."""
    begin_run(line, DAYS, run="a")
    serial = line.state().serial
    publish_day(line, DAYS[1], "checkpoints/b", "a")
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
    begin_run(line, run="a")
    publish_day(line, DAYS[0], "checkpoints/a", "a")
    path = Path(line.storage.path("LATEST"))
    path.write_bytes(path.read_bytes().replace(b"checkpoints/a", b"checkpoints/b"))
    for read in (line.latest, lambda: begin_run(line), line.newest):
        with pytest.raises(
            DataError, match=r"/LATEST is damaged \(its checksum is not .*\): make it again from the ledger"
        ):
            read()


def test_a_move_that_was_sent_twice_is_one(line: Line, monkeypatch: pytest.MonkeyPatch):
    """S3's answer is lost, the put is sent again, finds itself, and the run fails after it has published."""
    begin_run(line, run="a")
    replace = Storage.replace

    def replace_twice(storage: Storage, name: str, data: bytes, version: str | None) -> bool:
        replace(storage, name, data, version)
        return replace(storage, name, data, version)

    monkeypatch.setattr(Storage, "replace", replace_twice)
    publish_day(line, DAYS[0], "checkpoints/a", "a")
    latest = line.latest()
    assert latest is not None
    assert latest.checkpoint == "checkpoints/a"
