"""Attempts at a line: their numbers, their records, and what an overtaken one can no longer do."""

import logging
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import pytest
from small_lines import DAYS, any_line, begin_run, line, publish_day, save_checkpoint

from features.errors import DataError
from pipeline.lineage.line import Line
from pipeline.lineage.records import Attempt, Manifest
from pipeline.storage.files import Storage

__all__ = ["any_line", "line"]  # fixtures


def attempt_named(line: Line, day: str, name: str) -> Attempt:
    return Attempt.from_bytes(line.storage.read(f"attempts/{day}/{name}.json"))


def test_racing_attempts_have_different_numbers(any_line: Line):
    """Two attempts write into one directory, or both believe that they hold the line."""
    start = Barrier(8)

    def begin(_: int) -> str:
        start.wait()
        return begin_run(any_line, DAYS)

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
    older, newer = save_checkpoint(line, 10, complete=True), save_checkpoint(line, 20, day=DAYS[1], complete=True)
    begin_run(line, run="holder")
    chosen: list[Manifest | None] = []

    def choose() -> Manifest | None:
        chosen.append(line.read_manifest(newer if chosen else older))
        if len(chosen) == 1:
            publish_day(line, DAYS[1], newer, "holder")
        return chosen[-1]

    attempt, start = line.begin_attempt(DAYS, "mine", choose)
    assert (attempt, len(chosen)) == ("0002", 3)
    assert start is not None
    assert start.checkpoint == newer


def test_the_record_of_an_attempt(line: Line):
    """When it ends, it is forgotten what it was; or a restart of the workers leaves no trace."""
    older = save_checkpoint(line, 10)
    begin_run(line, DAYS, run="a", passes=2)
    attempt = begin_run(line, DAYS, line.read_manifest(older), run="a", passes=2)
    other = begin_run(line, DAYS[:1], run="b")
    assert line.attempt_of(DAYS, "a") == attempt == "0002"
    line.end_attempts(DAYS, "a", "done")
    for day in DAYS:
        first, last = (attempt_named(line, day, name) for name in ("0001", attempt))
        begun = Attempt(run="a", passes=2, days=tuple(DAYS), serial=0, attempt=1)
        assert first == begun.model_copy(update={"result": "restarted"})
        assert last == begun.model_copy(
            update={"attempt": 2, "start": older, "start_step": 10, "result": "done"},
        )
    assert attempt_named(line, DAYS[0], other).result is None


def test_what_an_overtaken_attempt_completes_does_not_count(any_line: Line, caplog: pytest.LogCaptureFixture):
    """The old workers of a run whose Ray head was killed step on, and the new run's successor goes on from theirs."""
    old = begin_run(any_line)
    seen = save_checkpoint(any_line, 10, attempt=old)
    new = begin_run(any_line, start=any_line.newest())
    assert any_line.newest() is not None
    save_checkpoint(any_line, 20, attempt=old)  # between the look and the number, or past the check
    with caplog.at_level(logging.WARNING):
        found = any_line.newest()
    assert found is not None
    assert found.checkpoint == seen
    assert "0000000020 is passed over: attempt 0002 had begun from an earlier one" in caplog.text
    mine = save_checkpoint(any_line, 15, attempt=new)
    found = any_line.newest()
    assert found is not None
    assert found.checkpoint == mine
    changed = attempt_named(any_line, DAYS[0], new).model_copy(update={"start_step": 20})
    # Negative control: had it begun from there, it would be the newest.
    any_line.storage.write(f"attempts/{DAYS[0]}/{new}.json", changed.to_bytes())
    found = any_line.newest()
    assert found is not None
    assert found.step == 20


def test_a_line_that_was_taken_over_is_not_published_on(any_line: Line):
    """A run that hung for a minute wakes up and moves LATEST under the feet of the one that took over."""
    old = begin_run(any_line, run="old")
    finished = save_checkpoint(any_line, 10, attempt=old, complete=True)
    any_line.take("new")
    with pytest.raises(DataError, match="this run no longer holds"):
        publish_day(any_line, DAYS[0], finished, "old")
    assert any_line.latest() is None
    publish_day(any_line, DAYS[0], finished, "new")  # negative control: the holder can
    assert any_line.latest() is not None


def test_a_run_whose_record_was_not_written_begins_again(line: Line, monkeypatch: pytest.MonkeyPatch):
    """It has taken the line, the storage fails, and it takes itself for somebody else who holds it."""
    begin_run(line, run="mine")
    with monkeypatch.context() as patch:
        patch.setattr(Storage, "write", _fail)
        with pytest.raises(OSError, match="away"):
            begin_run(line, run="mine")
    assert begin_run(line, run="mine") == "0003"


def _fail(storage: Storage, name: str, data: bytes) -> None:
    if name.startswith("attempts/"):
        raise OSError("away")
    Path(storage.path(name)).write_bytes(data)


def test_the_choice_is_made_again_once_the_line_is_taken(line: Line):
    """An attempt that lives on retires what was chosen, while its files were being read."""
    first, second = save_checkpoint(line, 10), save_checkpoint(line, 20)
    found = [line.read_manifest(first), line.read_manifest(second)]
    left = list(found)
    attempt, start = line.begin_attempt(DAYS, "a", lambda: left.pop(0))
    assert left == []
    assert start is found[1]
    assert attempt_named(line, DAYS[0], attempt).start_step == 20


def test_a_run_that_was_taken_over_does_not_take_the_line_back(line: Line):
    """Its workers hang, somebody starts a second run, the time-out fires, and Ray starts the workers of the first."""
    begin_run(line, run="first")
    second = begin_run(line, run="second")
    with pytest.raises(DataError, match=r"attempt 0001 no longer holds .*: another .* newest attempt is 0002"):
        begin_run(line, run="first")
    assert begin_run(line, run="second") > second  # negative control: its own workers may be started again


def test_a_line_that_is_taken_over_during_a_publication(line: Line, monkeypatch: pytest.MonkeyPatch):
    """The check and the move are two operations, and between them somebody else begins."""
    old = begin_run(line, run="old")
    finished = save_checkpoint(line, 10, attempt=old, complete=True)
    replace = Storage.replace

    def be_overtaken_and_replace(self: Storage, name: str, data: bytes, version: str | None) -> bool:
        monkeypatch.undo()
        line.take("new")
        return replace(self, name, data, version)

    monkeypatch.setattr(Storage, "replace", be_overtaken_and_replace)
    with pytest.raises(DataError, match="this run no longer holds"):
        publish_day(line, DAYS[0], finished, "old")
    assert line.latest() is None
