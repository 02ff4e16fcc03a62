"""The daily job without its heavy parts: cut off anywhere, accepted, skipped, taken back, forked; and its two checks.

The line, its ledger, lease and steps are the product's, on a real disk. What reads logs and trains is small here: a
model is the hash of its parent and of the files that were read, so that two models are equal if their histories are.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from records import manifest_of, write_manifest, write_position

from features.errors import ConfigError, DataError
from features.profile import DayProfile
from pipeline.config.load import parse_config
from pipeline.config.project import Config
from pipeline.daily.run_days import Accepted, Refused, run_days
from pipeline.evaluation.evaluate import Measurement
from pipeline.ingest.cursor import StoredCursor
from pipeline.ingest.parts import before
from pipeline.ingest.units import DayLog, Unit
from pipeline.lineage import lease as lease_file
from pipeline.lineage.ledger import Ledger
from pipeline.lineage.line import Line
from pipeline.lineage.manual_moves import branch, discard, rollback
from pipeline.lineage.records import FileMark, Manifest, RunScope
from pipeline.storage.files import Storage

FIRST = "2026-03-01"
STEPS = 3  # of a day; a checkpoint after each


def day_of(number: int) -> str:
    return before(FIRST, -number)


def config_of(root: Path, **daily: Any) -> Config:
    return parse_config(
        {
            "name": "tests",
            "root": str(root),
            "logs": {"path": str(root / "logs")},
            "schema": {
                "tables": [{"name": "user", "num_rows": 10, "dim": 4}],
                "features": [{"kind": "id", "name": "user_id", "table": "user"}],
                "tasks": [{"name": "ctr", "label": "click"}, {"name": "vcr", "kind": "regression", "label": "play"}],
            },
            "model": {"network": {"kind": "hard_sharing", "layers": [4]}, "towers": [4]},
            "optimizer": {"tables": {"learning_rate": 0.1}, "dense": {"learning_rate": 0.01}},
            "holdout": {"column": "user_id"},
            "daily": {"lease_s": 0.3} | daily,
        },
        "test",
    )


class Killed(BaseException):
    """The process is no more."""


@dataclass
class World:
    """What the logs are, and when the process is killed.

    Args:
        files: The version of each day's log; 1 where nothing is said.
        ops: Writes to the storage so far.
        kill_at: Before, or after, which of them the process is killed.
    """

    versions: dict[str, int] = field(default_factory=dict)
    anomalous: set[str] = field(default_factory=set)
    bad: set[str] = field(default_factory=set)
    ops: int = 0
    kill_at: int | None = None
    after: bool = False
    dead: bool = False

    def mark(self, day: str) -> str:
        return f"100-{self.versions.get(day, 1)}"


@dataclass
class SmallWork:
    """The heavy parts of a day, in small."""

    line: Line
    world: World
    trained: list[str] = field(default_factory=list)

    def logs(self, day: str) -> dict[str, DayLog]:
        unit = Unit(day, f"dt={day}/a.parquet", 0, 0, 100, whole=True)
        return {day: DayLog(day, (unit,), {unit.file: self.world.mark(day)})}

    def has_success_marker(self, day: str) -> bool:
        return True

    def profile(self, log: DayLog) -> DayProfile:
        rows = 10 if log.day in self.world.anomalous else 100
        return DayProfile(rows, {"user_id": 0}, {"ctr": (rows, rows / 2, rows / 2), "vcr": (rows, rows / 2, rows / 3)})

    def measure(self, checkpoints: Sequence[str], day: str, rows: str) -> list[Measurement]:
        auc = 0.5 if day in self.world.bad else 0.8
        model = {"rows": 1000, "positives": 500, "auc": auc, "calibration": 1.0, "mean_prediction": 0.5}
        return [Measurement([{"task": "ctr", "kind": "binary", "model": model}], {}) for _ in checkpoints]

    def train(self, day: str, run: str) -> Manifest:
        line = self.line
        wanted = RunScope(days=(day,), passes=1)
        start = line.newest()
        if start is not None and start.run == wanted and start.complete:
            return start
        attempt, start = line.begin_attempt([day], run, line.newest, held=True)
        weights, step, parent = "nothing", 0, None
        if start is not None:
            weights, step = _weights_of(line, start), start.step
            parent = start.checkpoint if start.complete else start.parent
        files = self.logs(day)[day].files
        first = step - step % STEPS
        for number in range(step - first, STEPS):
            self.trained.append(f"{day}/{number}")
            weights = hashlib.sha256(json.dumps([weights, day, files, number]).encode()).hexdigest()[:8]
            step += 1
            line.check_holder(attempt)
            manifest = self._save(day, attempt, step, complete=number == STEPS - 1, weights=weights, parent=parent)
        return manifest

    def _save(self, day: str, attempt: str, step: int, *, complete: bool, weights: str, parent: Any) -> Manifest:
        name = f"checkpoints/{day}/{attempt}/{step:010d}{'-day' if complete else ''}"
        data = weights.encode()
        self.line.storage.write(f"{name}/weights", data)
        written = manifest_of(
            day=day,
            step=step,
            complete=complete,
            attempt=attempt,
            parent=parent,
            run=RunScope(days=(day,), passes=1),
            files_of_log=self.logs(day)[day].files,
            files={"weights": FileMark(bytes=len(data), sha256=hashlib.sha256(data).hexdigest())},
            rows=100,
            held_out=1,
            seconds=1.0,
        )
        write_position(self.line, name, StoredCursor({"a": (100, 1)}), [["a"]])
        write_manifest(self.line, name, written)
        manifest = self.line.read_manifest(name)
        assert manifest is not None
        return manifest


def _weights_of(line: Line, manifest: Manifest) -> str:
    storage, name = line.place(manifest.checkpoint)
    return storage.read(f"{name}/weights").decode()


def _weights(parent: str, day: str, mark: str) -> str:
    """What a day makes of its parent's weights: the reference."""
    weights = parent
    for number in range(STEPS):
        files = {f"dt={day}/a.parquet": mark}
        weights = hashlib.sha256(json.dumps([weights, day, files, number]).encode()).hexdigest()[:8]
    return weights


@pytest.fixture
def killable() -> Iterator[World]:
    """A world whose process can be killed at a write."""
    world = World()
    with pytest.MonkeyPatch.context() as patch:
        kill_at_writes(world, patch)
        yield world


def kill_at_writes(world: World, patch: pytest.MonkeyPatch) -> None:
    for name in ("write", "create", "replace", "remove"):
        patch.setattr(Storage, name, _counted(world, getattr(Storage, name)))
    process = lease_file._this_process().model_copy(
        update={"pid": 2**22 + 1}
    )  # none has this number: it is dead at once
    patch.setattr(lease_file, "_this_process", lambda: process)


def _counted(world: World, operation: Callable[..., Any]) -> Callable[..., Any]:
    def counted(self: Storage, name: str, *arguments: Any) -> Any:
        if name.startswith((".", "LEASE")):
            return operation(self, name, *arguments)
        if world.dead:
            raise Killed
        world.ops += 1
        dies = world.ops == world.kill_at
        world.dead = dies and not world.after
        result = None if world.dead else operation(self, name, *arguments)
        world.dead = world.dead or dies
        if world.dead:
            raise Killed
        return result

    return counted


def run(config: Config, line: Line, world: World, day: str, kill_at: int | None = None, **options: Any) -> Any:
    """One command; `None` if it was killed."""
    world.ops, world.kill_at, world.dead = 0, kill_at, False
    accepted = Accepted(**options)
    try:
        return run_days(config, line, SmallWork(line, world), [day], 7, accepted)
    except Killed:
        return None
    finally:
        world.dead, world.kill_at = False, None


def history(line: Line) -> list[tuple[str, int, str]]:
    """Day, generation and weights of what is published, oldest first."""
    found = []
    for entry in Ledger(line).chain():
        owner = Line(line.storage.sibling(entry.line))
        manifest = owner.read_manifest(entry.checkpoint)
        assert manifest is not None, entry.checkpoint
        assert owner.damage(manifest) is None
        found.append((entry.day, entry.generation, _weights_of(owner, manifest)))
    return found[::-1]


# --- Cut off anywhere ---


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
            weights = _weights(weights, day, mark) if mark is not None else weights
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


# --- Refusals, and what goes on after them ---


def _trained(config: Config, world: World, days: int) -> Line:
    line = Line.of(config.root, "main")
    for number in range(days):
        run(config, line, world, day_of(number))
    return line


def test_an_anomalous_day_is_refused_until_it_is_accepted(killable: World, tmp_path: Path) -> None:
    """Catches a day cut short that is trained, an acceptance that a restart forgets, or later days that do not wait."""
    config = config_of(tmp_path)
    line = _trained(config, killable, 4)
    killable.anomalous.add(day_of(4))
    text = (
        rf"^{day_of(4)} is refused by preflight: 10 rows, usual are 100 \(daily.preflight.rows_ratio 1.5\)\. nothing "
        rf"of it is trained, LATEST stays at {day_of(3)}, later days wait: .* --accept-anomaly REASON, .* --skip-day"
    )
    for day in (day_of(4), day_of(5)):
        with pytest.raises(Refused, match=text):
            run(config, line, killable, day)
    assert run(config, line, killable, day_of(4), kill_at=4, anomaly="a public holiday") is None
    assert run(config, line, killable, day_of(4))["result"] == "published"
    entry = Ledger(line).find(day_of(4))
    assert entry is not None
    assert entry.preflight.accepted == "a public holiday"
    assert len(entry.preflight.problems) == 1


def test_what_is_accepted_of_one_day_is_not_accepted_of_others(killable: World, tmp_path: Path) -> None:
    """Catches a reason for one day that lets the missing days before it pass, whatever is wrong with them."""
    config = config_of(tmp_path)
    line = _trained(config, killable, 4)
    killable.anomalous |= {day_of(4), day_of(5)}
    with pytest.raises(Refused, match=rf"^{day_of(4)} is refused by preflight"):
        run(config, line, killable, day_of(5), anomaly="a public holiday")


def test_a_log_that_was_written_again_is_looked_at_again(killable: World, tmp_path: Path) -> None:
    """Catches a day whose log was completed after it was refused, and that is refused for what it was."""
    config = config_of(tmp_path)
    line = _trained(config, killable, 4)
    killable.anomalous.add(day_of(4))
    with pytest.raises(Refused):
        run(config, line, killable, day_of(4))
    killable.anomalous, killable.versions[day_of(4)] = set(), 2
    assert run(config, line, killable, day_of(4))["result"] == "published"


def test_a_bad_day_is_refused_by_the_gate(killable: World, tmp_path: Path) -> None:
    """Catches a model that was trained on shuffled labels and published, or trained anew at every start."""
    config = config_of(tmp_path)
    line = _trained(config, killable, 4)
    killable.bad.add(day_of(4))
    text = rf"^{day_of(4)} is refused by gate: task 'ctr': yesterday's model .*0.5"
    for _ in range(2):
        with pytest.raises(Refused, match=text):
            run(config, line, killable, day_of(4))
    found = line.newest()
    assert found is not None
    assert found.complete
    assert found.attempt_number == 5  # one attempt: the second start looked at the same model
    killable.versions[day_of(4)], killable.bad = 2, set()  # the log is written again, and right
    run(config, line, killable, day_of(4))
    (entry,) = Ledger(line).generations(day_of(4))
    assert entry.logs == {f"dt={day_of(4)}/a.parquet": "100-2"}
    killable.bad.add(day_of(5))
    run(config, line, killable, day_of(5), gate="labels are late")
    entry = Ledger(line).find(day_of(5))
    assert entry is not None
    assert entry.gate.accepted == "labels are late"


def test_a_skipped_day_leaves_the_model_as_it_is(killable: World, tmp_path: Path) -> None:
    """Catches a day that is left out and trained all the same, or that stops the days after it."""
    config = config_of(tmp_path)
    line = _trained(config, killable, 2)
    run(config, line, killable, day_of(2), skip="no log")
    run(config, line, killable, day_of(3))
    found = history(line)
    assert [(day, generation) for day, generation, _ in found] == [(day_of(number), 1) for number in range(4)]
    assert found[2][2] == found[1][2]
    assert found[3][2] == _weights(found[1][2], day_of(3), "100-1")
    empty = Line.of(f"{config.root}/other", "main")
    with pytest.raises(ConfigError, match="nothing is published, so begin with a later day"):
        run(config, empty, killable, day_of(0), skip="no log")


def test_days_that_are_missing_are_caught_up(killable: World, tmp_path: Path) -> None:
    """Catches a scheduler that was away for a week, and a week that is never trained; or a year that is by mistake."""
    config = config_of(tmp_path)
    line = _trained(config, killable, 1)
    result = run(config, line, killable, day_of(4))
    assert [day["day"] for day in result["days"]] == [day_of(number) for number in range(1, 5)]
    with pytest.raises(DataError, match=rf"is at {day_of(4)}, 8 days before {day_of(13)} are missing, at most 7"):
        run(config, line, killable, day_of(13))
    with pytest.raises(DataError, match=rf"has not trained {before(FIRST, 1)}: days are not put in between.*--branch"):
        run(config, line, killable, before(FIRST, 1))


def test_a_retrained_day_is_the_next_generation(killable: World, tmp_path: Path) -> None:
    """Catches a rollback that deletes, or a day that is taken back and published again as it was."""
    config = config_of(tmp_path)
    line = _trained(config, killable, 3)
    first = Ledger(line).find(day_of(2))
    assert rollback(config, line, day_of(1), "bad labels")["latest"] == day_of(1)
    killable.versions[day_of(2)] = 2
    run(config, line, killable, day_of(2))
    assert [(day, generation) for day, generation, _ in history(line)][-1] == (day_of(2), 2)
    assert Ledger(line).generations(day_of(2))[0] == first
    move = json.loads(line.storage.read("moves/4.json"))
    assert (move["reason"], move["from"]["day"], move["to"]["day"]) == ("bad labels", day_of(2), day_of(1))
    with pytest.raises(DataError, match=rf"has no done day {day_of(9)}, it has {day_of(2)}, {day_of(1)}"):
        rollback(config, line, day_of(9), "a reason")


def test_a_branch_goes_on_from_the_day_before(killable: World, tmp_path: Path) -> None:
    """Catches a fork that begins from another day's model, moves the line it was forked from, or loses its root."""
    config = config_of(tmp_path)
    line = _trained(config, killable, 3)
    latest = line.latest()
    killable.versions[day_of(2)] = 7
    forked = branch(line, "again", day_of(2), from_nothing=False)
    run(config, forked, killable, day_of(2))
    ours, theirs = history(forked), history(line)
    assert line.latest() == latest
    assert ours[:2] == theirs[:2]
    assert ours[2] == (day_of(2), 1, _weights(theirs[1][2], day_of(2), "100-7"))
    assert line.is_pinned(Ledger(line).generations(day_of(1))[0].checkpoint)
    run(config, branch(line, "again", day_of(3), from_nothing=False), killable, day_of(3))  # it goes on
    assert len(history(forked)) == 4
    anew = branch(line, "anew", day_of(1), from_nothing=True)
    run(config, anew, killable, day_of(1))
    assert history(anew) == [(day_of(1), 1, _weights("nothing", day_of(1), "100-1"))]
    with pytest.raises(ConfigError, match=rf"has trained nothing before {day_of(0)}: add --from-nothing"):
        branch(line, "early", day_of(0), from_nothing=False)


def test_a_branch_of_a_branch(killable: World, tmp_path: Path) -> None:
    """Catches a fork from a day that was skipped on a branch: its checkpoint is on the line before that."""
    config = config_of(tmp_path)
    line = _trained(config, killable, 2)
    forked = branch(line, "again", day_of(2), from_nothing=False)
    run(config, forked, killable, day_of(2), skip="no log")
    twice = branch(forked, "third", day_of(3), from_nothing=False)
    run(config, twice, killable, day_of(3))
    assert [day for day, _, _ in history(twice)] == [day_of(number) for number in range(4)]
    assert line.is_pinned(Ledger(line).generations(day_of(1))[0].checkpoint)
    with pytest.raises(ConfigError, match="expected letters, digits"):
        branch(line, "../x", day_of(2), from_nothing=False)
    (tmp_path / "lines/fitted").mkdir()
    (tmp_path / "lines/fitted/statistics.json").write_bytes(b"{}")  # jobs.fit_features came first
    run(config, branch(line, "fitted", day_of(1), from_nothing=False), killable, day_of(1))
    assert len(history(Line.of(config.root, "fitted"))) == 2


@pytest.mark.parametrize("damage", ["gone", "damaged"])
def test_latest_is_made_again_from_the_ledger(killable: World, tmp_path: Path, damage: str) -> None:
    """Catches a lost LATEST that is taken for a new line, and a line that only a backup could help."""
    config = config_of(tmp_path)
    line = _trained(config, killable, 3)
    expected = history(line)
    path = tmp_path / "lines/main/LATEST"
    path.unlink() if damage == "gone" else path.write_bytes(b"{}")
    with pytest.raises(DataError, match=rf"LATEST is {damage}.*: make it again .* --rollback DAY REASON"):
        run(config, line, killable, day_of(3))
    rollback(config, line, day_of(2), "a disk")
    assert history(line) == expected
    run(config, line, killable, day_of(3))
    assert history(line) == [*expected, (day_of(3), 1, _weights(expected[-1][2], day_of(3), "100-1"))]
    newest = Ledger(line).generations(day_of(3))[0]
    assert newest.serial > max(Ledger(line).generations(day_of(number))[0].serial for number in range(3))


def test_long_past_days_are_removed(killable: World, tmp_path: Path) -> None:
    """Catches a disk that fills over the years, a parent of a branch that is removed, or the entries with it."""
    config = config_of(tmp_path)
    config = config.model_copy(update={"checkpoint": config.checkpoint.model_copy(update={"keep_days": 2})})
    line = Line.of(config.root, "main")
    for number in range(3):
        run(config, line, killable, day_of(number))
        if number == 0:
            branch(line, "again", day_of(1), from_nothing=False)
    run(config, line, killable, day_of(3))
    left = [line.read_manifest(entry.checkpoint) is not None for entry in Ledger(line).chain()]
    assert left == [True, True, False, True]  # the newest first; the first day has a branch


def test_a_refusal_is_told(killable: World, tmp_path: Path) -> None:
    """Catches a webhook that is not called, that stops the job when it is away, or that is written down somewhere."""
    heard: list[dict[str, Any]] = []

    class Hook(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            heard.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *arguments: Any) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Hook)
    Thread(target=server.serve_forever, daemon=True).start()
    config = config_of(tmp_path, on_refusal={"webhook": f"http://127.0.0.1:{server.server_port}/secret"})
    line = _trained(config, killable, 4)
    killable.anomalous.add(day_of(4))
    with pytest.raises(Refused):
        run(config, line, killable, day_of(4))
    server.shutdown()
    server.server_close()
    with pytest.raises(Refused):  # nobody listens any more
        run(config, line, killable, day_of(4))
    (told,) = heard
    assert (told["project"], told["line"], told["day"], told["step"]) == ("tests", "main", day_of(4), "preflight")
    assert told["text"].startswith(f"{day_of(4)} is refused by preflight")
    assert "secret" not in json.dumps(config.model_dump(mode="json")) + repr(config)
    assert not any(b"secret" in path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
