"""A line of a root: its attempts, its complete checkpoints, and the newest published one."""

import contextlib
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from features.errors import ConfigError, DataError
from pipeline.ingest.cursor import StoredCursor
from pipeline.ingest.lanes import ResumePoint
from pipeline.lineage.line_state import LATEST, read_attempts, read_latest, write_attempt
from pipeline.lineage.newest_checkpoint import choose_newest
from pipeline.lineage.records import Attempt, AttemptResult, EntryReference, Latest, Manifest, Published
from pipeline.lineage.stored_checkpoint import (
    MANIFEST,
    damage,
    is_pinned,
    pin,
    read_cursor,
    read_lanes,
    read_manifest,
    resume_point,
    visible_damage,
)
from pipeline.storage.files import Storage

_PIN_S = 7 * 24 * 3600.0
_FOREVER = 1e18


class LineLost(DataError):  # noqa: N818 - it is what the command says
    """Refusal since another run has taken the line over; it says nothing of the day.

    Attributes:
        figures: Part of the command's JSON line.
    """

    figures: ClassVar[dict[str, Any]] = {"held_by": "another run"}


@dataclass(frozen=True, slots=True)
class Line:
    """One chain of days below a root.

    Args:
        storage: The folder `ROOT/lines/<line>`.
    """

    storage: Storage

    @classmethod
    def of(cls, root: str, name: str) -> "Line":
        """Return the line of a root by its name."""
        return cls(Storage(root).under(f"lines/{name}"))

    @property
    def name(self) -> str:
        """Name of the line."""
        return self.storage.url.rsplit("/", 1)[-1]

    def take(self, run: str) -> None:
        """Make a run the line's holder: no other run can publish, or complete a checkpoint from the next attempt on.

        Args:
            run: Name of the run; the previous holder loses the line.
        """
        while True:
            current, version = read_latest(self.storage)
            if self._replaced(current.model_copy(update={"holder": _holder(run)}), version):
                return

    def begin_attempt(
        self,
        days: Sequence[str],
        run: str,
        choose: Callable[[], Manifest | None],
        *,
        passes: int | None = None,
        migrates: str | None = None,
        held: bool = False,
    ) -> tuple[str, Manifest | None]:
        """Begin an attempt; from then on only its checkpoints count, not those of earlier attempts.

        An earlier attempt may still be alive: after the death of a Ray head its workers step for another minute. Its
        number is no longer LATEST's fence, so it can neither complete a checkpoint nor publish. A checkpoint that it
        completed after the call of `choose` has more steps than this attempt's start, and is therefore passed over.

        Args:
            days: ISO dates that the attempt will train.
            run: Run that the attempt belongs to.
            choose: Function that finds the checkpoint to start from. It is called again after the attempt has begun,
                since an earlier attempt may retire its first choice until then.
            passes: Passes over the days.
            migrates: Checkpoint that the attempt migrates.
            held: True if the run has taken the line, and continues only while it holds the line.

        Returns:
            The attempt's unique name, e.g. `0003`, and the checkpoint to start from.

        Raises:
            DataError: The run has begun before or taken the line, and another run has taken the line over since.
        """
        while True:
            current, version = read_latest(self.storage)
            own = [attempt.attempt for attempt in self.attempts(days) if attempt.run == run]
            if (own or held) and not current.is_held_by(run):  # its workers are started again
                raise self._lost(f"attempt {own[-1]:04d}" if own else "this run", current)
            choose()  # its refusal takes no number
            number = current.fence + 1
            if self._replaced(current.model_copy(update={"fence": number, "holder": _holder(run)}), version):
                break
        start = choose()
        begun = Attempt(
            run=run,
            attempt=number,
            days=tuple(days),
            passes=passes,
            start=start.checkpoint if start else None,
            start_step=start.step if start else 0,
            serial=current.serial,
            migrates=migrates,
        )
        write_attempt(self.storage, begun)
        return f"{number:04d}", start

    def end_attempts(self, days: Sequence[str], run: str, result: AttemptResult, reason: str | None = None) -> None:
        """Add the results to the records of a run's attempts; all but the last were restarted."""
        mine = [attempt for attempt in self.attempts(days) if attempt.run == run and attempt.result is None]
        for attempt in mine:
            is_last = attempt is mine[-1]
            ended = {"result": result, "reason": reason} if is_last else {"result": "restarted"}
            write_attempt(self.storage, attempt.model_copy(update=ended))

    def attempt_of(self, days: Sequence[str], run: str) -> str:
        """Return the newest attempt of a run."""
        mine = [attempt.attempt for attempt in self.attempts(days) if attempt.run == run]
        return f"{mine[-1]:04d}"

    def attempts(self, days: Sequence[str]) -> list[Attempt]:
        """Return the attempts at some days, by number."""
        return read_attempts(self.storage, days)

    def state(self) -> Latest:
        """Return LATEST."""
        return read_latest(self.storage)[0]

    def rebuild(self, entry: Published, serial: int) -> None:
        """Write LATEST anew after it was damaged or lost.

        Args:
            entry: Entry of the ledger that LATEST names from then on.
            serial: New serial, above that of every entry.
        """
        days = self.storage.names("attempts")
        fence = max((attempt.attempt for attempt in self.attempts(days)), default=0) + 1
        self.storage.write(LATEST, Latest(fence=fence, serial=serial, **entry.model_dump()).to_bytes())

    def _replaced(self, record: Latest, version: str | None) -> bool:
        return self.storage.replace(LATEST, record.to_bytes(), version)

    def check_holder(self, attempt: str) -> None:
        """Check that an attempt that is about to complete or publish something is the newest one.

        Raises:
            DataError: Another attempt has begun since.
        """
        state = self.state()
        if state.fence != int(attempt):
            raise self._lost(f"attempt {attempt}", state)

    def check_run(self, run: str) -> None:
        """Check that a run that has taken the line still holds it.

        Raises:
            DataError: Another run has taken the line over since.
        """
        state = self.state()
        if not state.is_held_by(run):
            raise self._lost("this run", state)

    def _lost(self, who: str, state: Latest) -> DataError:
        return LineLost(
            f"{who} no longer holds {self.storage.url}: another has taken it over since (its newest attempt is "
            f"{state.fence:04d}). This one stops; nothing that it did after that counts, and nothing has to be done"
        )

    def checkpoints(self, since: str = "") -> Iterator[str]:
        """Yield names of checkpoints, complete or not, of days not before `since`."""
        for day in self.storage.names("checkpoints"):
            if day < since:
                continue
            for attempt in self.storage.names(f"checkpoints/{day}"):
                for step in self.storage.names(f"checkpoints/{day}/{attempt}"):
                    yield f"checkpoints/{day}/{attempt}/{step}"

    def manifests(self, since: str = "") -> Iterator[Manifest]:
        """Yield manifests of complete checkpoints of days not before `since`, in no order."""
        found = (self.read_manifest(name) for name in self.checkpoints(since))
        return (manifest for manifest in found if manifest is not None)

    def place(self, checkpoint: str) -> tuple[Storage, str]:
        """Return the place of a checkpoint: the folder of its line, and its name below that folder.

        A branch names the checkpoint of its origin with the line before it, as in `main:checkpoints/...`.
        """
        line, _, name = checkpoint.rpartition(":")
        if not line or line == self.name:
            return self.storage, name
        return self.storage.sibling(line), name

    def read_manifest(self, checkpoint: str) -> Manifest | None:
        """Read the manifest of a checkpoint; None if the checkpoint is not complete."""
        storage, name = self.place(checkpoint)
        return read_manifest(storage, name, checkpoint)

    def cursor(self, manifest: Manifest) -> StoredCursor:
        """Read the cursor of a checkpoint."""
        return read_cursor(*self.place(manifest.checkpoint), manifest)

    def lanes(self, manifest: Manifest) -> tuple[tuple[str, ...], ...]:
        """Read the lanes of a checkpoint: unit keys per rank."""
        return read_lanes(*self.place(manifest.checkpoint), manifest)

    def resume_point(self, manifest: Manifest) -> ResumePoint:
        """Return the position of a checkpoint's model, for the stream."""
        return resume_point(*self.place(manifest.checkpoint), manifest)

    def intact_manifest(self, checkpoint: str) -> Manifest:
        """Return the manifest of a complete checkpoint without visible damage; who loads its tensors verifies them.

        Raises:
            ConfigError: The checkpoint does not exist.
            DataError: Its files do not match the manifest.
        """
        manifest = self.read_manifest(checkpoint)
        if manifest is None:
            raise ConfigError(
                f"{self.storage.url}/{checkpoint} has no intact manifest: restore it, or name a complete checkpoint"
            )
        problem = visible_damage(*self.place(manifest.checkpoint), manifest)
        if problem is not None:
            raise DataError(f"{self.storage.url}/{checkpoint} is damaged: {problem}")
        return manifest

    def lineage(self, newest: Manifest) -> Iterator[Manifest]:
        """Yield a checkpoint and, through parents, the finished days before it; end at a removed one."""
        manifest: Manifest | None = newest
        while manifest is not None:
            yield manifest
            parent = manifest.parent
            manifest = self.read_manifest(qualified(manifest.checkpoint, parent)) if parent else None

    def remove(self, checkpoint: str) -> None:
        """Remove a checkpoint; from the first moment of removal it is not complete."""
        self.storage.remove(f"{checkpoint}/{MANIFEST}")
        self.storage.remove(checkpoint)

    @contextlib.contextmanager
    def pinned(self, checkpoint: str, holder: str) -> Iterator[None]:
        """Keep a checkpoint from being retired while a job reads it; the pin ends by itself after a week.

        The pin lies with the line that has the checkpoint: that one retires it, and looks nowhere else.

        Args:
            checkpoint: Its name below the line.
            holder: Name of the reader, shown to a job that finds the pin.
        """
        owner, own_name = self.place(checkpoint)
        name = pin(owner, own_name, holder, time.time() + _PIN_S)
        try:
            yield
        finally:
            owner.remove(name)

    def is_pinned(self, checkpoint: str) -> bool:
        """Return True if LATEST names a checkpoint or a pin keeps it."""
        latest = self.latest()
        if latest is not None and latest.checkpoint == checkpoint:
            return True
        return is_pinned(self.storage, checkpoint)

    def newest(self) -> Manifest | None:
        """Return the newest checkpoint that counts and is complete: most steps, then the highest attempt.

        A checkpoint counts if it follows the published one: it was begun since the last move of LATEST. Checkpoints
        with visible damage are passed over, with a line in the log (`stored_checkpoint.visible_damage`).

        Raises:
            DataError: The published checkpoint is damaged, and no intact one follows it: training must not start from
                nothing.
        """
        state = self.state()
        newest = self._newest_intact(state)
        if newest is None and state.published is not None:
            raise DataError(
                f"{self.storage.url}/LATEST names {state.checkpoint}, which is damaged or gone: restore its files, "
                "or go back to an earlier day with jobs.daily --rollback DAY REASON"
            )
        return newest

    def _newest_intact(self, state: Latest) -> Manifest | None:
        since = state.day or ""
        attempts = self.attempts([day for day in self.storage.names("attempts") if day >= since])
        # A migrated checkpoint counts once it is published, and not as what was trained since.
        current = [attempt for attempt in attempts if attempt.migrates is None and attempt.serial == state.serial]
        numbers = {attempt.attempt for attempt in current}
        found = [manifest for manifest in self.manifests(since) if manifest.attempt_number in numbers]
        published = self.read_manifest(state.checkpoint) if state.checkpoint else None
        seen = lambda one: visible_damage(*self.place(one.checkpoint), one)  # noqa: E731
        return choose_newest(found, current, published, seen)

    def damage(self, manifest: Manifest) -> str | None:
        """Return the damage of a checkpoint's files; None if there is none. Reads all of them in this process."""
        return damage(*self.place(manifest.checkpoint), manifest)

    def latest(self) -> Published | None:
        """Return the newest published (day, generation, checkpoint); None if nothing is published."""
        return self.state().published

    def publish(self, entry: Published, serial: int, run: str) -> None:
        """Move LATEST to an entry of the ledger, by compare-and-swap.

        Args:
            entry: The entry's day, generation and checkpoint.
            serial: Serial of LATEST at the beginning of the training that is published.
            run: Run that holds the line.

        Raises:
            DataError: LATEST has been moved since, or another run holds the line.
        """
        current, version = read_latest(self.storage)
        if current.published == entry:
            return
        if not current.is_held_by(run):
            raise self._lost("this run", current)
        moved = current.model_copy(update=entry.model_dump() | {"branch": None, "serial": serial + 1})
        if current.serial != serial or not self._replaced(moved, version):
            self.check_run(run)
            if self.latest() != entry:  # else it was moved, and the answer was lost
                raise DataError(f"{self.storage.url}/LATEST was moved by another run: look who else trains this line")

    def fork(self, origin: EntryReference, checkpoint: str) -> None:
        """Make this empty line continue from an entry of another line.

        Args:
            origin: The entry.
            checkpoint: Checkpoint of the entry, as its own line names it; it is kept from then on.
        """
        owner, name = Line(self.storage.sibling(origin.line)).place(checkpoint)
        pin(owner, name, f"line {self.name}", _FOREVER, self.name)
        forked = Latest(
            day=origin.day, generation=origin.generation, checkpoint=f"{Line(owner).name}:{name}", branch=origin
        )
        self.storage.create(LATEST, forked.to_bytes())

    def tidy(self, day: str) -> None:
        """Remove the checkpoints within a published day, from which no run starts any more."""
        for manifest in list(self.manifests(day)):
            if manifest.day == day and not manifest.complete and not self.is_pinned(manifest.checkpoint):
                self.remove(manifest.checkpoint)

    def restart(self, run: str) -> int:
        """Discard begun and unpublished work: training starts again from the published checkpoint.

        Args:
            run: The run that holds the line.

        Returns:
            The serial that LATEST has now.
        """
        current, version = read_latest(self.storage)
        if not current.is_held_by(run):
            raise self._lost("this run", current)
        serial = current.serial + 1
        moved = current.model_copy(update={"serial": serial})
        if not self._replaced(moved, version) and self.state().serial != serial:
            self.check_run(run)
            raise DataError(f"{self.storage.url}/LATEST was moved by another run: look who else trains this line")
        return serial


def qualified(checkpoint: str, parent: str) -> str:
    """Return a parent's name as seen from the line in which `checkpoint` is named; by default on its child's line.

    Args:
        checkpoint: The child's name, with or without a line before it.
        parent: Name of the parent in the child's manifest.
    """
    line, separator, _ = checkpoint.rpartition(":")
    return parent if ":" in parent else f"{line}{separator}{parent}"


def _holder(run: str) -> str:
    return f"{run}/{uuid.uuid4().hex}"  # unique: a put whose answer was lost recognises itself
