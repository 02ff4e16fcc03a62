"""A line of a root: which attempts were made, which checkpoints are complete, which one is the newest published."""

import hashlib
import json
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from features.errors import DataError
from pipeline.storage import Storage
from pipeline.stream import ResumePoint

logger = logging.getLogger(__name__)

MANIFEST = "manifest.json"
_NEEDED = {"step", "day", "pass", "cursor", "lanes", "complete", "files", "config"}
_CHUNK_BYTES = 1 << 22


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

    def begin_attempt(self, days: Sequence[str], record: dict[str, Any]) -> str:
        """Take a fencing number that no other attempt at these days has or will have.

        Args:
            days: ISO dates that the attempt will train.
            record: What is known of the attempt when it begins.

        Returns:
            The attempt's name, e.g. `0003`.
        """
        taken = [name.partition(".")[0] for day in days for name in self.storage.names(f"attempts/{day}")]
        number = 1 + max(map(int, taken), default=0)
        while True:
            data = json.dumps(record | {"attempt": number}).encode()
            if all([self.storage.create(f"attempts/{day}/{number:04d}.json", data) for day in days]):
                return f"{number:04d}"
            number += 1

    def end_attempt(self, days: Sequence[str], attempt: str, record: dict[str, Any]) -> None:
        """Add to the record of an attempt how it ended."""
        for day in days:
            name = f"attempts/{day}/{attempt}.json"
            begun = json.loads(self.storage.read(name))
            self.storage.write(name, json.dumps(begun | record).encode())

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
            content = json.loads(self.storage.read(f"{checkpoint}/{MANIFEST}"))
        except FileNotFoundError:
            return None
        except ValueError:
            content = None
        if not isinstance(content, dict) or not content.keys() >= _NEEDED:
            logger.warning("%s has an unreadable manifest and is passed over", checkpoint)
            return None
        return Manifest(checkpoint, content)

    def remove(self, checkpoint: str) -> None:
        """Remove a checkpoint; it is no complete one any more from the first moment on."""
        self.storage.remove(f"{checkpoint}/{MANIFEST}")
        self.storage.remove(checkpoint)

    def newest(self) -> Manifest | None:
        """The newest checkpoint that is complete and intact: most steps, then the highest attempt.

        Checkpoints whose files differ from their manifest are passed over, with a line in the log.

        Raises:
            DataError: Something is published, and no checkpoint is intact: training must not start from nothing.
        """
        latest = self.latest()
        newest = self._newest_intact(self.manifests(since=latest["day"])) if latest else None
        newest = newest or self._newest_intact(self.manifests())
        if newest is None and latest is not None:
            raise DataError(
                f"{self.storage.url}/LATEST names {latest['checkpoint']}, and no checkpoint of the line is intact: "
                "restore its files, or start a new root"
            )
        return newest

    def _newest_intact(self, manifests: Iterator[Manifest]) -> Manifest | None:
        def age(manifest: Manifest) -> tuple[int, bool, str]:
            return manifest.step, manifest.content["complete"], manifest.checkpoint.split("/")[2]

        for manifest in sorted(manifests, key=age, reverse=True):
            problem = self.damage(manifest)
            if problem is None:
                return manifest
            logger.warning("checkpoint %s is passed over: %s", manifest.checkpoint, problem)
        return None

    def damage(self, manifest: Manifest) -> str | None:
        """What is wrong with a checkpoint's files, by size and checksum; None if nothing is."""
        for name, expected in manifest.content["files"].items():
            path = f"{manifest.checkpoint}/{name}"
            try:
                size, digest = self._digest(path)
            except FileNotFoundError:
                return f"{name} is missing"
            if (size, digest) != (expected["bytes"], expected["sha256"]):
                wanted = f"{expected['bytes']}, sha256 {expected['sha256'][:12]}"
                return f"{name} has {size} bytes, sha256 {digest[:12]}; expected {wanted}"
        return None

    def _digest(self, path: str) -> tuple[int, str]:
        digest, size = hashlib.sha256(), 0
        with self.storage.open_read(path) as file:
            while chunk := file.read(_CHUNK_BYTES):
                digest.update(chunk)
                size += len(chunk)
        return size, digest.hexdigest()

    def latest(self) -> dict[str, Any] | None:
        """The newest published (day, generation, checkpoint); None where nothing is published."""
        found = self.storage.read_versioned("LATEST")
        return json.loads(found[0]) if found else None

    def publish(self, day: str, checkpoint: str) -> None:
        """Move LATEST to a finished day, by compare-and-swap; it never moves back.

        Raises:
            DataError: It is at a later day, or somebody else moved it meanwhile.
        """
        found = self.storage.read_versioned("LATEST")
        current = json.loads(found[0]) if found else None
        record = {"day": day, "generation": 1, "checkpoint": checkpoint}
        if current == record:
            return
        if current and current["day"] > day:
            raise DataError(f"{self.storage.url}/LATEST is at {current['day']}, it does not move back to {day}")
        moved = self.storage.replace("LATEST", json.dumps(record).encode(), found[1] if found else None)
        if not moved and self.latest() != record:  # a put that was sent again finds itself
            raise DataError(f"{self.storage.url}/LATEST was moved by another run: look who else trains this line")
