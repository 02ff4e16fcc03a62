"""A complete checkpoint as it is stored: its manifest, whether its files are what it says, and who keeps it."""

import contextlib
import hashlib
import logging
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from pipeline.ingest.plan import ResumePoint
from pipeline.storage.files import Storage
from pipeline.storage.sealed_json import seal, unseal

logger = logging.getLogger(__name__)

MANIFEST = "manifest.json"
FORMAT = 3  # of manifests
_CHUNK_BYTES = 1 << 22
_DIGEST_THREADS = 8


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
            log_day=content["log_day"],
            seen=content["cursor"],
            lanes=content["lanes"],
            complete=content["complete"],
            seed=content["config"]["seed"],
            shuffle_rows=content["config"]["ingest"]["shuffle"]["rows"],
            files=content["files_of_log"],
        )


def read_manifest(storage: Storage, name: str, checkpoint: str) -> Manifest | None:
    """The manifest of a checkpoint; None where it is not complete, damaged, or of another format.

    Args:
        storage: The folder of its line.
        name: Of its folder below that.
        checkpoint: What it is called where it is asked for.
    """
    try:
        content = unseal(storage.read(f"{name}/{MANIFEST}"))
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


def damage(storage: Storage, name: str, manifest: Manifest) -> str | None:
    """What is wrong with a checkpoint's files, by size and checksum; None if nothing is."""
    files = manifest.content["files"]
    with ThreadPoolExecutor(_DIGEST_THREADS) as pool:
        problems = pool.map(lambda file: _problem(storage, name, file, files[file]), files)
        return next((problem for problem in problems if problem), None)


def pin(storage: Storage, checkpoint: str, holder: str, until: float, name: str | None = None) -> str:
    """Keep a checkpoint from being retired, until a moment in seconds since the epoch or until the file is removed.

    Args:
        storage: The folder of its line.
        checkpoint: Its name.
        holder: Who keeps it, for whoever finds the pin.
        until: When the pin ends by itself.
        name: Of the pin; None: one that no other has.

    Returns:
        The file.
    """
    file = f"{_pins(checkpoint)}/{name or uuid.uuid4().hex}.json"
    storage.write(file, seal({"holder": holder, "until": until}))
    return file


def is_pinned(storage: Storage, checkpoint: str) -> bool:
    """Whether somebody keeps a checkpoint."""
    for name in storage.names(_pins(checkpoint)):
        with contextlib.suppress(FileNotFoundError, ValueError):  # it is just being removed, or was cut off
            if unseal(storage.read(f"{_pins(checkpoint)}/{name}"))["until"] > time.time():
                return True
    return False


def _problem(storage: Storage, folder: str, name: str, expected: dict[str, Any]) -> str | None:
    try:
        size, digest = _digest(storage, f"{folder}/{name}")
    except FileNotFoundError:
        return f"{name} is missing"
    if (size, digest) == (expected["bytes"], expected["sha256"]):
        return None
    wanted = f"{expected['bytes']}, sha256 {expected['sha256'][:12]}"
    return f"{name} has {size} bytes, sha256 {digest[:12]}; expected {wanted}"


def _digest(storage: Storage, path: str) -> tuple[int, str]:
    digest, size = hashlib.sha256(), 0
    with storage.open_read(path) as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
            size += len(chunk)
    return size, digest.hexdigest()


def _pins(checkpoint: str) -> str:
    return f"pins/{checkpoint.rpartition(':')[2].removeprefix('checkpoints/').replace('/', '_')}"
