"""The daily job in small (small_daily.py), cut off anywhere, by commands in any order."""

from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from small_daily import World, config_of, day_of, history, kill_at_writes, killable, reference_weights, run

from features.errors import DataError
from pipeline.lineage.ledger import Ledger
from pipeline.lineage.line import Line
from pipeline.lineage.manual_moves import discard, rollback

__all__ = ["killable"]  # fixtures


def test_a_day_that_is_cut_off_at_every_write(killable: World, tmp_path: Path) -> None:
    """Catches a step that cannot be done again: an entry that is written twice, a LATEST that is never moved.

    Every write of two days is a point where the process is killed, once before and once after it; preflight, predict,
    the first and the middle checkpoint, between manifest and ledger and between ledger and LATEST are all among them.
    """
    config = config_of(tmp_path / "whole")
    line = Line.of(config.root, "main")
    for number in range(2):
        run(config, line, killable, day_of(number))
    expected, writes = history(line), killable.ops
    assert [entry[:2] for entry in expected] == [(day_of(0), 1), (day_of(1), 1)]
    assert writes > 12
    cut_after_ledger = 0
    for after in (False, True):
        for kill_at in range(1, writes + 1):
            config = config_of(tmp_path / f"{kill_at}-{after}")
            line = Line.of(config.root, "main")
            run(config, line, killable, day_of(0))
            killable.after = after
            killed = run(config, line, killable, day_of(1), kill_at=kill_at)
            assert killed is None or kill_at >= writes
            entries = len(Ledger(line).generations(day_of(1)))
            cut_after_ledger += entries and len(history(line)) == 1
            run(config, line, killable, day_of(1))
            assert history(line) == expected, (kill_at, after)
            assert len(Ledger(line).generations(day_of(1))) == 1
            assert run(config, line, killable, day_of(1))["result"] == "nothing to do"
    assert cut_after_ledger >= 2


def test_nothing_to_do_writes_nothing(killable: World, tmp_path: Path) -> None:
    """Catches a scheduler's second start that takes the line, or leaves a trace, although the day is done."""
    config = config_of(tmp_path)
    line = Line.of(config.root, "main")
    run(config, line, killable, day_of(0))
    files = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert run(config, line, killable, day_of(0)) == {"result": "nothing to do", "line": "main", "latest": day_of(0)}
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == files


class DailyMachine(RuleBasedStateMachine):
    """Commands, kills and rewritten logs in any order, against a plain list of what should be published."""

    @initialize(target=None)
    def begin(self) -> None:
        import tempfile

        self.folder = tempfile.TemporaryDirectory()
        self.patch = pytest.MonkeyPatch()
        self.world = World()
        kill_at_writes(self.world, self.patch)
        self.config = config_of(Path(self.folder.name))
        self.line = Line.of(self.config.root, "main")
        self.model: list[tuple[str, str | None]] = []  # day, and the mark of the log that was read; None: skipped
        self.pending: str | None = None  # the mark of the next day's log, if a command on it was killed

    def teardown(self) -> None:
        if hasattr(self, "patch"):
            self.patch.undo()
            self.folder.cleanup()

    @property
    def next_day(self) -> str:
        return day_of(len(self.model))

    def _expected(self) -> list[str]:
        weights, found = "nothing", []
        for day, mark in self.model:
            weights = reference_weights(weights, day, mark) if mark is not None else weights
            found.append(weights)
        return found

    @rule(kill_at=st.none() | st.integers(1, 30), after=st.booleans(), ahead=st.integers(0, 2))
    def do_days(self, kill_at: int | None, after: bool, ahead: int) -> None:
        day = day_of(len(self.model) + ahead) if self.model else self.next_day
        self.world.after = after
        result = run(self.config, self.line, self.world, day, kill_at)
        published = [found for found, _, _ in history(self.line)]
        if result is not None:
            assert published[-1] == day
        for found in published[len(self.model) :]:
            entry = Ledger(self.line).find(found)
            assert entry is not None
            self.model.append((found, next(iter(entry.logs.values()))))
        if result is not None:  # what is published is the log as it is now, but for what had its entry already
            assert all(mark is not None for _, mark in self.model[-1:])

    @rule()
    def write_the_next_day_anew(self) -> None:
        self.world.versions[self.next_day] = self.world.versions.get(self.next_day, 1) + 1

    @precondition(lambda self: len(self.model) > 0)
    @rule()
    def a_changed_day_is_refused(self) -> None:
        day, mark = self.model[-1]
        if mark is None:
            return
        now = self.world.versions.get(day, 1)
        self.world.versions[day] = now + 100
        with pytest.raises(DataError, match=rf"1 files of {day} have changed since line 'main' trained it"):
            run(self.config, self.line, self.world, day)
        self.world.versions[day] = int(mark.rpartition("-")[2])

    @precondition(lambda self: len(self.model) > 1)
    @rule(back=st.integers(1, 3))
    def roll_back(self, back: int) -> None:
        left = self.model[: max(1, len(self.model) - back)]
        rollback(self.config, self.line, left[-1][0], "a reason")
        self.model = left

    @precondition(lambda self: len(self.model) > 0)
    @rule()
    def skip(self) -> None:
        day = self.next_day
        run(self.config, self.line, self.world, day, skip="holiday")
        entry = Ledger(self.line).find(day)
        assert entry is not None
        mark = None if entry.skipped is not None else next(iter(entry.logs.values()))
        self.model.append((day, mark))

    @rule()
    def forget(self) -> None:
        discard(self.config, self.line, "a reason")

    @invariant()
    def what_is_published_is_the_model(self) -> None:
        if not hasattr(self, "line"):
            return
        found = history(self.line)
        assert [day for day, _, _ in found][: len(self.model)] == [day for day, _ in self.model]
        assert [weights for _, _, weights in found][: len(self.model)] == self._expected()
        for folder in self.line.storage.names("ledger"):
            numbers = [entry.generation for entry in Ledger(self.line).generations(folder)]
            assert numbers == list(range(1, len(numbers) + 1))


TestDailyMachine = DailyMachine.TestCase
TestDailyMachine.settings = settings(max_examples=40, stateful_step_count=12, deadline=None)
