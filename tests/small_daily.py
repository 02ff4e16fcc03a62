"""The daily job without its heavy parts, for tests of its steps.

The line, its ledger, lease and steps are the product's, on a real disk. What reads logs and trains is small here: a
model is the hash of its parent and of the files that were read, so that two models are equal if their histories are.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from faults import be_another_process
from records import manifest_of, write_manifest, write_position

from features.profile import DayProfile
from pipeline.config.load import parse_config
from pipeline.config.project import Config
from pipeline.daily.accepted import Accepted
from pipeline.daily.run_days import run_days
from pipeline.evaluation.evaluate import Measurement
from pipeline.ingest.cursor import StoredCursor
from pipeline.ingest.parts import before
from pipeline.ingest.units import DayLog, Unit, Units
from pipeline.lineage.ledger import Ledger
from pipeline.lineage.line import Line
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
    """Versions of the logs, and the moment at which the process is killed.

    Args:
        versions: The version of each day's log; 1 where nothing is said.
        held_out: Held-out rows and positives by task; None: the profile does not say.
        measured: Rows of each measurement, `all` or `held_out`.
        ops: Writes to the storage so far.
        kill_at: Before, or after, which of them the process is killed.
    """

    versions: dict[str, int] = field(default_factory=dict)
    anomalous: set[str] = field(default_factory=set)
    bad: set[str] = field(default_factory=set)
    held_out: dict[str, tuple[int, int]] | None = field(default_factory=lambda: {"ctr": (1000, 500), "vcr": (1000, 0)})
    measured: list[str] = field(default_factory=list)
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
        return {day: DayLog(day, Units([unit]), {unit.file: self.world.mark(day)})}

    def has_success_marker(self, day: str) -> bool:
        return True

    def profile(self, log: DayLog) -> DayProfile:
        rows = 10 if log.day in self.world.anomalous else 100
        labels = {"ctr": (rows, rows / 2, rows / 2), "vcr": (rows, rows / 2, rows / 3)}
        return DayProfile(rows, {"user_id": 0}, labels, {}, self.world.held_out or {})

    def measure(self, checkpoints: Sequence[str], day: str, rows: str) -> list[Measurement]:
        self.world.measured.append(rows)
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
            day_began_at=(step - 1) - (step - 1) % STEPS,
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


def reference_weights(parent: str, day: str, mark: str) -> str:
    """Return the weights that a day makes of its parent's: the reference."""
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
    be_another_process(patch.setattr, pid=2**22 + 1)  # no process has this number: it is dead at once


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


def run_range(config: Config, line: Line, world: World, first: int, last: int, **options: Any) -> Any:
    """One command for the days from one number to another."""
    days = [day_of(number) for number in range(first, last + 1)]
    return run_days(config, line, SmallWork(line, world), days, 7, Accepted(**options))


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


def train_first_days(config: Config, world: World, days: int) -> Line:
    line = Line.of(config.root, "main")
    for number in range(days):
        run(config, line, world, day_of(number))
    return line
