"""A line of a root: which attempts were made, which checkpoints are complete, which one is the newest published."""

import contextlib
import logging
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from features.errors import DataError
from pipeline.lineage.stored_checkpoint import MANIFEST, Manifest, damage, is_pinned, pin, read_manifest
from pipeline.storage.files import Storage
from pipeline.storage.sealed_json import seal, unseal

logger = logging.getLogger(__name__)

LATEST = "LATEST"
_PIN_S = 7 * 24 * 3600.0
_FOREVER = 1e18
_REBUILD = "make it again from the ledger with jobs.daily --rollback DAY REASON, DAY being the newest that is right"
_PUBLISHED = ("day", "generation", "checkpoint")
_NOTHING = {"fence": 0, "holder": "", "serial": 0}  # what LATEST says before it is there


@dataclass(frozen=True, slots=True)
class Line:
    """One chain of days below a root.

    Args:
        storage: The folder `ROOT/lines/<line>`.
    """

    storage: Storage

    @classmethod
    def of(cls, root: str, name: str) -> "Line":
        """The line of a root by its name."""
        return cls(Storage(root).under(f"lines/{name}"))

    @property
    def name(self) -> str:
        """What the line is called."""
        return self.storage.url.rsplit("/", 1)[-1]

    def take(self, run: str) -> None:
        """Make a run the line's holder: no other can complete a checkpoint from its next attempt on, or publish.

        Args:
            run: Names the command; whoever held the line before has lost it.
        """
        while True:
            current, version = self._current()
            if self._replaced(current | {"holder": _holder(run)}, version):
                return

    def begin_attempt(
        self,
        days: Sequence[str],
        record: dict[str, Any],
        choose: Callable[[str | None], "Manifest | None"],
        *,
        held: bool = False,
    ) -> tuple[str, "Manifest | None"]:
        """Take the line over: from now on this attempt's checkpoints count, and those of earlier ones no more.

        An earlier attempt may be alive still (the workers of a run whose Ray head was killed step for a minute more).
        Its number is no longer LATEST's fence, so it can neither complete a checkpoint nor publish; and what it
        completed after `choose` has looked has more steps than this attempt's start, and is passed over for that.

        Args:
            days: ISO dates that the attempt will train.
            record: What is known of the attempt when it begins; `run` names the command that it belongs to.
            choose: Finds the checkpoint to start from, given one that was found intact a moment ago, if there is one.
                Called again once the line is taken: until then an attempt that lives on may retire what was chosen.
            held: The run has taken the line, and goes on only while it holds it.

        Returns:
            The attempt's name, e.g. `0003`, which no other has or will have, and the checkpoint to start from.

        Raises:
            DataError: The run has begun before, or taken the line, and another one has taken it over since.
        """
        while True:
            current, version = self._current()
            own = [attempt["attempt"] for attempt in self._attempts(days) if attempt["run"] == record["run"]]
            if (own or held) and not _holds(record["run"], current):  # its workers are started again
                raise self._lost(f"attempt {own[-1]:04d}" if own else "this run", current)
            start, number = choose(None), current["fence"] + 1
            if self._replaced(current | {"fence": number, "holder": _holder(record["run"])}, version):
                break
        start = choose(start.checkpoint if start else None)
        begun = {"attempt": number, "days": list(days), "start": start.checkpoint if start else None}
        begun |= {"start_step": start.step if start else 0, "serial": current["serial"]}
        for day in days:
            self.storage.write(f"attempts/{day}/{number:04d}.json", seal(record | begun))
        return f"{number:04d}", start

    def end_attempts(self, days: Sequence[str], run: str, record: dict[str, Any]) -> None:
        """Add to the records of a run's attempts how they ended; all but the last were restarted."""
        mine = [attempt for attempt in self._attempts(days) if attempt["run"] == run and "result" not in attempt]
        for attempt in mine:
            ended = record if attempt is mine[-1] else {"result": "restarted"}
            for day in attempt["days"]:
                self.storage.write(f"attempts/{day}/{attempt['attempt']:04d}.json", seal(attempt | ended))

    def attempt_of(self, days: Sequence[str], run: str) -> str:
        """The newest attempt of a run."""
        mine = [attempt["attempt"] for attempt in self._attempts(days) if attempt["run"] == run]
        return f"{mine[-1]:04d}"

    def _attempts(self, days: Sequence[str]) -> list[dict[str, Any]]:
        """Records of the attempts at some days, by number."""
        records = {}
        for day in days:
            for name in self.storage.names(f"attempts/{day}"):
                record = self._unsealed(f"attempts/{day}/{name}", self.storage.read(f"attempts/{day}/{name}"))
                records[record["attempt"]] = record
        return [records[number] for number in sorted(records)]

    def state(self) -> dict[str, Any]:
        """LATEST as it is: fence, holder and serial, and once something is published day, generation and checkpoint.

        The serial is raised by every move of LATEST: what was trained, or entered in the ledger, under another serial
        than the present one does not follow what is published now.
        """
        return self._current()[0]

    def _current(self) -> tuple[dict[str, Any], str | None]:
        """LATEST as it is, and its version.

        Raises:
            DataError: It is damaged, or gone although the line has been trained.
        """
        found = self.storage.read_versioned(LATEST)
        if found is None and self.storage.names("attempts"):
            raise DataError(f"{self.storage.url}/LATEST is gone, and the line has been trained: {_REBUILD}")
        return (self._unsealed(LATEST, found[0]), found[1]) if found else (dict(_NOTHING), None)

    def rebuild(self, entry: Mapping[str, Any], serial: int) -> None:
        """Write LATEST anew where it is damaged or gone.

        Args:
            entry: Of the ledger, to which it is to move.
            serial: Above that of every entry.
        """
        days = self.storage.names("attempts")
        fence = max((attempt["attempt"] for attempt in self._attempts(days)), default=0) + 1
        record = _NOTHING | {"fence": fence, "serial": serial} | {key: entry[key] for key in _PUBLISHED}
        self.storage.write(LATEST, seal(record))

    def _replaced(self, record: dict[str, Any], version: str | None) -> bool:
        return self.storage.replace(LATEST, seal(record), version)

    def check_holder(self, attempt: str) -> None:
        """Hold an attempt that wants to complete or publish something against the newest one.

        Raises:
            DataError: Another attempt has begun since.
        """
        state = self.state()
        if state["fence"] != int(attempt):
            raise self._lost(f"attempt {attempt}", state)

    def check_run(self, run: str) -> None:
        """Hold a run that has taken the line against its holder.

        Raises:
            DataError: Another run has taken the line over since.
        """
        state = self.state()
        if not _holds(run, state):
            raise self._lost("this run", state)

    def _lost(self, who: str, state: dict[str, Any]) -> DataError:
        return DataError(
            f"{who} no longer holds {self.storage.url}: another has taken it over since (its newest attempt is "
            f"{state['fence']:04d}). This one stops; nothing that it did after that counts, and nothing has to be done"
        )

    def _unsealed(self, name: str, data: bytes) -> dict[str, Any]:
        try:
            return unseal(data)
        except ValueError as error:
            what = _REBUILD if name == LATEST else "restore it from a backup, or use a new line"
            raise DataError(f"{self.storage.url}/{name} is damaged ({error}): {what}") from error

    def manifests(self, since: str = "") -> Iterator[Manifest]:
        """Manifests of complete checkpoints of days not before `since`, in no order."""
        for day in self.storage.names("checkpoints"):
            if day < since:
                continue
            for attempt in self.storage.names(f"checkpoints/{day}"):
                for step in self.storage.names(f"checkpoints/{day}/{attempt}"):
                    manifest = self.read_manifest(f"checkpoints/{day}/{attempt}/{step}")
                    if manifest is not None:
                        yield manifest

    def place(self, checkpoint: str) -> tuple[Storage, str]:
        """Where a checkpoint is: the folder of its line, and its name below it.

        A branch names what it was forked from with the line before it, as in `main:checkpoints/...`.
        """
        line, _, name = checkpoint.rpartition(":")
        if not line or line == self.name:
            return self.storage, name
        return self.storage.sibling(line), name

    def read_manifest(self, checkpoint: str) -> Manifest | None:
        """The manifest of a checkpoint; None where it is not complete."""
        storage, name = self.place(checkpoint)
        return read_manifest(storage, name, checkpoint)

    def lineage(self, newest: Manifest) -> Iterator[Manifest]:
        """A checkpoint and, through their parents, the finished days before it; ends where one has been removed."""
        manifest: Manifest | None = newest
        while manifest is not None:
            yield manifest
            parent = manifest.content["parent"]
            manifest = self.read_manifest(qualified(manifest.checkpoint, parent)) if parent else None

    def remove(self, checkpoint: str) -> None:
        """Remove a checkpoint; it is no complete one any more from the first moment on."""
        self.storage.remove(f"{checkpoint}/{MANIFEST}")
        self.storage.remove(checkpoint)

    @contextlib.contextmanager
    def pinned(self, checkpoint: str, holder: str) -> Iterator[None]:
        """Keep a checkpoint from being retired while somebody reads it; ends by itself after a week.

        Args:
            checkpoint: Its name below the line.
            holder: Who reads it, for whoever finds the pin.
        """
        name = pin(self.storage, checkpoint, holder, time.time() + _PIN_S)
        try:
            yield
        finally:
            self.storage.remove(name)

    def is_pinned(self, checkpoint: str) -> bool:
        """Whether LATEST names a checkpoint or somebody reads it."""
        latest = self.latest()
        if latest is not None and latest["checkpoint"] == checkpoint:
            return True
        return is_pinned(self.storage, checkpoint)

    def newest(self, trusted: str | None = None) -> Manifest | None:
        """The newest checkpoint that counts, is complete and intact: most steps, then the highest attempt.

        Those count that follow what is published: they were begun since LATEST was moved to where it is. Checkpoints
        whose files differ from their manifest are passed over, with a line in the log.

        Args:
            trusted: A checkpoint whose files were read and found intact a moment ago.

        Raises:
            DataError: What is published is damaged, and nothing intact follows it: training must not start from
                nothing.
        """
        state = self.state()
        newest = self._newest_intact(state, trusted)
        if newest is None and _published(state) is not None:
            raise DataError(
                f"{self.storage.url}/LATEST names {state['checkpoint']}, which is damaged or gone: restore its files, "
                "or go back to an earlier day with jobs.daily --rollback DAY REASON"
            )
        return newest

    def _newest_intact(self, state: dict[str, Any], trusted: str | None) -> Manifest | None:
        def age(manifest: Manifest) -> tuple[int, bool, int]:
            return manifest.step, manifest.content["complete"], manifest.attempt

        published, since = state.get("checkpoint"), state.get("day", "")
        attempts = self._attempts([day for day in self.storage.names("attempts") if day >= since])
        # A migrated checkpoint counts once it is published, and not as what was trained since.
        trained = [attempt for attempt in attempts if "migrates" not in attempt]
        current = [attempt for attempt in trained if attempt["serial"] == state["serial"]]
        numbers = {attempt["attempt"] for attempt in current}
        found = [manifest for manifest in self.manifests(since) if manifest.attempt in numbers]
        base = self.read_manifest(published) if published else None
        for manifest in [*sorted(found, key=age, reverse=True), *([base] if base else [])]:
            later = [attempt for attempt in current if attempt["attempt"] > manifest.attempt]
            if manifest is not base and any(manifest.step > attempt["start_step"] for attempt in later):
                logger.warning(
                    "checkpoint %s is passed over: attempt %04d had begun from an earlier one when it was completed",
                    manifest.checkpoint,
                    later[0]["attempt"],
                )
                continue
            problem = None if manifest.checkpoint == trusted else self.damage(manifest)
            if problem is None:
                return manifest
            logger.warning("checkpoint %s is passed over: %s", manifest.checkpoint, problem)
        return None

    def damage(self, manifest: Manifest) -> str | None:
        """What is wrong with a checkpoint's files, by size and checksum; None if nothing is."""
        return damage(*self.place(manifest.checkpoint), manifest)

    def latest(self) -> dict[str, Any] | None:
        """The newest published (day, generation, checkpoint); None where nothing is published."""
        return _published(self.state())

    def publish(self, entry: Mapping[str, Any], serial: int, run: str) -> None:
        """Move LATEST to an entry of the ledger, by compare-and-swap.

        Args:
            entry: Its day, generation and checkpoint.
            serial: Of LATEST when what is published was begun.
            run: The run that holds the line.

        Raises:
            DataError: LATEST has been moved since, or another run holds the line.
        """
        target = {key: entry[key] for key in _PUBLISHED}
        current, version = self._current()
        if _published(current) == target:
            return
        if not _holds(run, current):
            raise self._lost("this run", current)
        record = {key: value for key, value in current.items() if key != "branch"} | target | {"serial": serial + 1}
        if current["serial"] != serial or not self._replaced(record, version):
            self.check_run(run)
            if self.latest() != target:  # else it was moved, and the answer was lost
                raise DataError(f"{self.storage.url}/LATEST was moved by another run: look who else trains this line")

    def fork(self, entry: Mapping[str, Any]) -> None:
        """Let this line, which has nothing yet, go on from an entry of another one.

        Args:
            entry: Its line, day, generation and checkpoint, which is kept from now on.
        """
        owner, name = Line(self.storage.sibling(entry["line"])).place(entry["checkpoint"])
        pin(owner, name, f"line {self.name}", _FOREVER, self.name)
        record = {key: entry[key] for key in _PUBLISHED} | {"checkpoint": f"{Line(owner).name}:{name}"}
        branch = {key: entry[key] for key in ("line", "day", "generation")}
        self.storage.create(LATEST, seal(_NOTHING | record | {"branch": branch}))

    def tidy(self, day: str) -> None:
        """Remove the checkpoints within a day that is published; nobody starts from them any more."""
        for manifest in list(self.manifests(day)):
            if manifest.day == day and not manifest.content["complete"] and not self.is_pinned(manifest.checkpoint):
                self.remove(manifest.checkpoint)

    def restart(self, run: str) -> int:
        """Let nothing count that was begun and not published: training starts again from what is published.

        Args:
            run: The run that holds the line.

        Returns:
            The serial that LATEST has now.
        """
        current, version = self._current()
        if not _holds(run, current):
            raise self._lost("this run", current)
        serial = current["serial"] + 1
        if not self._replaced(current | {"serial": serial}, version) and self.state()["serial"] != serial:
            self.check_run(run)
            raise DataError(f"{self.storage.url}/LATEST was moved by another run: look who else trains this line")
        return serial


def qualified(checkpoint: str, parent: str) -> str:
    """A parent's name as the line knows it that `checkpoint` is named in: beside its child, unless it says otherwise.

    Args:
        checkpoint: The child's name, with or without a line before it.
        parent: What the child's manifest calls its parent.
    """
    line, separator, _ = checkpoint.rpartition(":")
    return parent if ":" in parent else f"{line}{separator}{parent}"


def _holder(run: str) -> str:
    return f"{run}/{uuid.uuid4().hex}"  # unique: a put whose answer was lost recognises itself


def _holds(run: str, state: dict[str, Any]) -> bool:
    return state["holder"].startswith(f"{run}/")


def _published(record: dict[str, Any]) -> dict[str, Any] | None:
    return {key: record[key] for key in _PUBLISHED} if "checkpoint" in record else None
