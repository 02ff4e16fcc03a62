"""A line of a root: which attempts were made, which checkpoints are complete, which one is the newest published."""

import contextlib
import hashlib
import logging
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from features.errors import DataError
from pipeline.lineage.seal import seal, unseal
from pipeline.storage import Storage
from pipeline.stream import ResumePoint

logger = logging.getLogger(__name__)

MANIFEST = "manifest.json"
LATEST = "LATEST"
FORMAT = 2  # of manifests
_CHUNK_BYTES = 1 << 22
_DIGEST_THREADS = 8
_PIN_S = 7 * 24 * 3600.0


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a complete checkpoint says of itself.

    Args:
        checkpoint: Its name below the line, `checkpoints/<day>/<attempt>/<step>`.
        content: The manifest's JSON.
    """

    checkpoint: str
    content: dict[str, Any]

    @property
    def step(self) -> int:
        """Steps that the model has made on its line."""
        return self.content["step"]

    @property
    def attempt(self) -> int:
        """The attempt that wrote it."""
        return int(self.content["attempt"])

    @property
    def day(self) -> str:
        """ISO date of the newest day that it has rows of."""
        return self.content["day"]

    def resume_point(self) -> ResumePoint:
        """Where the model is, as the stream needs it."""
        content = self.content
        return ResumePoint(
            checkpoint=self.checkpoint,
            pass_index=content["pass"],
            day=content["day"],
            seen=content["cursor"],
            lanes=content["lanes"],
            complete=content["complete"],
            seed=content["config"]["seed"],
            shuffle_rows=content["config"]["ingest"]["shuffle"]["rows"],
            files=content["files_of_log"],
        )


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

    def begin_attempt(
        self, days: Sequence[str], record: dict[str, Any], choose: Callable[[str | None], "Manifest | None"]
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

        Returns:
            The attempt's name, e.g. `0003`, which no other has or will have, and the checkpoint to start from.

        Raises:
            DataError: The run has begun before, and another one has taken the line over since.
        """
        while True:
            found = self.storage.read_versioned(LATEST)
            current = self._unsealed(LATEST, found[0]) if found else {"fence": 0}
            own = [attempt["attempt"] for attempt in self._attempts(days) if attempt["run"] == record["run"]]
            if own and not current["holder"].startswith(f"{record['run']}/"):  # its workers are started again
                raise self._lost(f"{own[-1]:04d}", current["fence"])
            start, number = choose(None), current["fence"] + 1
            # The holder makes the content unique: a put whose answer was lost recognises itself.
            taken = seal(current | {"fence": number, "holder": f"{record['run']}/{uuid.uuid4().hex}"})
            if self.storage.replace(LATEST, taken, found[1] if found else None):
                break
        start = choose(start.checkpoint if start else None)
        begun = {"attempt": number, "days": list(days), "start": start.checkpoint if start else None}
        begun |= {"start_step": start.step if start else 0}
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

    def _fence(self) -> int:
        found = self.storage.read_versioned(LATEST)
        return self._unsealed(LATEST, found[0])["fence"] if found else 0

    def check_holder(self, attempt: str) -> None:
        """Hold an attempt that wants to complete or publish something against the newest one.

        Raises:
            DataError: Another attempt has begun since.
        """
        fence = self._fence()
        if fence != int(attempt):
            raise self._lost(attempt, fence)

    def _lost(self, attempt: str, fence: int) -> DataError:
        return DataError(
            f"attempt {attempt} no longer holds {self.storage.url}: attempt {fence:04d} has begun since. This one "
            "stops; nothing that it did after that counts, and nothing has to be done"
        )

    def _unsealed(self, name: str, data: bytes) -> dict[str, Any]:
        try:
            return unseal(data)
        except ValueError as error:
            raise DataError(
                f"{self.storage.url}/{name} is damaged ({error}): restore it from a backup, or use a new line"
            ) from error

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

    def read_manifest(self, checkpoint: str) -> Manifest | None:
        """The manifest of a checkpoint; None where it is not complete."""
        try:
            content = unseal(self.storage.read(f"{checkpoint}/{MANIFEST}"))
        except FileNotFoundError:
            return None
        except ValueError as error:
            logger.warning("checkpoint %s is passed over: its manifest is damaged (%s)", checkpoint, error)
            return None
        found = content.get("format")
        if found != FORMAT:
            logger.warning("checkpoint %s is passed over: format %s, this version reads %s", checkpoint, found, FORMAT)
            return None
        return Manifest(checkpoint, content)

    def lineage(self, newest: Manifest) -> Iterator[Manifest]:
        """A checkpoint and, through their parents, the finished days before it; ends where one has been removed."""
        manifest: Manifest | None = newest
        while manifest is not None:
            yield manifest
            parent = manifest.content["parent"]
            manifest = self.read_manifest(parent) if parent else None

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
        name = f"{_pins(checkpoint)}/{uuid.uuid4().hex}.json"
        self.storage.write(name, seal({"holder": holder, "until": time.time() + _PIN_S}))
        try:
            yield
        finally:
            self.storage.remove(name)

    def is_pinned(self, checkpoint: str) -> bool:
        """Whether LATEST names a checkpoint or somebody reads it."""
        latest = self.latest()
        if latest is not None and latest["checkpoint"] == checkpoint:
            return True
        for name in self.storage.names(_pins(checkpoint)):
            with contextlib.suppress(FileNotFoundError, ValueError):  # it is just being removed, or was cut off
                if unseal(self.storage.read(f"{_pins(checkpoint)}/{name}"))["until"] > time.time():
                    return True
        return False

    def newest(self, trusted: str | None = None) -> Manifest | None:
        """The newest checkpoint that counts, is complete and intact: most steps, then the highest attempt.

        Checkpoints whose files differ from their manifest are passed over, with a line in the log.

        Args:
            trusted: A checkpoint whose files were read and found intact a moment ago.

        Raises:
            DataError: Something is published, and no checkpoint is intact: training must not start from nothing.
        """
        latest = self.latest()
        newest = self._newest_intact(latest["day"], trusted) if latest else None
        newest = newest or self._newest_intact("", trusted)
        if newest is None and latest is not None:
            raise DataError(
                f"{self.storage.url}/LATEST names {latest['checkpoint']}, and no checkpoint of the line is intact: "
                "restore its files, or start a new root"
            )
        return newest

    def _newest_intact(self, since: str, trusted: str | None) -> Manifest | None:
        def age(manifest: Manifest) -> tuple[int, bool, int]:
            return manifest.step, manifest.content["complete"], manifest.attempt

        attempts = self._attempts([day for day in self.storage.names("attempts") if day >= since])
        for manifest in sorted(self.manifests(since), key=age, reverse=True):
            later = [attempt for attempt in attempts if attempt["attempt"] > manifest.attempt]
            if any(manifest.step > attempt["start_step"] for attempt in later):
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
        files = manifest.content["files"]
        with ThreadPoolExecutor(_DIGEST_THREADS) as pool:
            problems = pool.map(lambda name: self._problem(manifest.checkpoint, name, files[name]), files)
            return next((problem for problem in problems if problem), None)

    def _problem(self, checkpoint: str, name: str, expected: dict[str, Any]) -> str | None:
        try:
            size, digest = self._digest(f"{checkpoint}/{name}")
        except FileNotFoundError:
            return f"{name} is missing"
        if (size, digest) == (expected["bytes"], expected["sha256"]):
            return None
        wanted = f"{expected['bytes']}, sha256 {expected['sha256'][:12]}"
        return f"{name} has {size} bytes, sha256 {digest[:12]}; expected {wanted}"

    def _digest(self, path: str) -> tuple[int, str]:
        digest, size = hashlib.sha256(), 0
        with self.storage.open_read(path) as file:
            while chunk := file.read(_CHUNK_BYTES):
                digest.update(chunk)
                size += len(chunk)
        return size, digest.hexdigest()

    def latest(self) -> dict[str, Any] | None:
        """The newest published (day, generation, checkpoint); None where nothing is published."""
        found = self.storage.read_versioned(LATEST)
        return _published(self._unsealed(LATEST, found[0])) if found else None

    def publish(self, day: str, checkpoint: str, attempt: str) -> None:
        """Move LATEST to a finished day, by compare-and-swap; it never moves back.

        Raises:
            DataError: It is at a later day, or another attempt has begun since.
        """
        found = self.storage.read_versioned(LATEST)
        self.check_holder(attempt)  # after reading: an attempt that begins from here on changes the version
        assert found is not None
        current = self._unsealed(LATEST, found[0])
        fence = {key: current[key] for key in ("fence", "holder")}
        record = fence | {"day": day, "generation": 1, "checkpoint": checkpoint}
        if current == record:
            return
        if current.get("day", "") > day:
            raise DataError(f"{self.storage.url}/LATEST is at {current['day']}, it does not move back to {day}")
        if not self.storage.replace(LATEST, seal(record), found[1]) and self.latest() != _published(record):
            self.check_holder(attempt)
            raise DataError(f"{self.storage.url}/LATEST was moved by another run: look who else trains this line")


def _pins(checkpoint: str) -> str:
    return f"pins/{checkpoint.removeprefix('checkpoints/').replace('/', '_')}"


def _published(record: dict[str, Any]) -> dict[str, Any] | None:
    shown = ("day", "generation", "checkpoint")
    return {key: record[key] for key in shown} if "checkpoint" in record else None
