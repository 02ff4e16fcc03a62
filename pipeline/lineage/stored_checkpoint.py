"""A complete checkpoint in storage: its manifest, the check of its files, and its pins."""

import contextlib
import hashlib
import logging
import time
import uuid
from concurrent.futures import ThreadPoolExecutor

from features.errors import DataError
from pipeline.ingest.cursor import StoredCursor, lanes_from_arrow
from pipeline.ingest.lanes import ResumePoint
from pipeline.lineage.records import FileMark, Manifest, Pin
from pipeline.storage.files import Storage
from pipeline.storage.record import LaterVersion

logger = logging.getLogger(__name__)

MANIFEST = "manifest.json"
CURSOR, LANES = "cursor.arrow", "lanes.arrow"
_CHUNK_BYTES = 1 << 22
_DIGEST_THREADS = 8


def read_manifest(storage: Storage, name: str, checkpoint: str) -> Manifest | None:
    """Read the manifest of a checkpoint; None if it is missing, damaged, or of an unknown format.

    Args:
        storage: Folder of its line.
        name: Its folder below that.
        checkpoint: Name by which it is asked for.
    """
    try:
        manifest = Manifest.from_bytes(storage.read(f"{name}/{MANIFEST}"))
    except FileNotFoundError:
        return None
    except LaterVersion as error:
        logger.warning("checkpoint %s is passed over: its manifest cannot be read: %s", checkpoint, error)
        return None
    except ValueError as error:
        logger.warning(
            "checkpoint %s is passed over: its manifest is damaged (%s)", checkpoint, " ".join(str(error).split())
        )
        return None
    return manifest.model_copy(update={"checkpoint": checkpoint})


def read_cursor(storage: Storage, name: str, manifest: Manifest) -> StoredCursor:
    """Read the cursor of a checkpoint.

    Args:
        storage: Folder of its line.
        name: Its folder below that.
        manifest: Its manifest.
    """
    if manifest.cursor is not None:  # format 3
        return manifest.cursor
    return StoredCursor.from_arrow(_intact_file(storage, name, manifest, CURSOR))


def read_lanes(storage: Storage, name: str, manifest: Manifest) -> tuple[tuple[str, ...], ...]:
    """Read the lanes of a checkpoint: unit keys per rank; arguments as for `read_cursor`."""
    if manifest.lanes is not None:  # format 3
        return manifest.lanes
    return lanes_from_arrow(_intact_file(storage, name, manifest, LANES))


def _intact_file(storage: Storage, name: str, manifest: Manifest, file: str) -> bytes:
    """Read a small file of a checkpoint, and compare it with the manifest.

    Raises:
        DataError: It is missing, or is not what was written.
    """
    expected = manifest.files.get(file)
    try:
        data = storage.read(f"{name}/{file}")
    except FileNotFoundError:
        data = b""
    if expected is None or (len(data), hashlib.sha256(data).hexdigest()) != (expected.bytes, expected.sha256):
        raise DataError(
            f"{storage.url}/{name}/{file} is missing or not what was written: restore it, or go back to an earlier "
            "checkpoint with jobs.daily --rollback DAY REASON"
        )
    return data


def resume_point(storage: Storage, name: str, manifest: Manifest) -> ResumePoint:
    """Return the model's position, for the stream; arguments as for `read_cursor`."""
    at_end = manifest.complete  # nothing is left of the log
    return ResumePoint(
        checkpoint=manifest.checkpoint,
        pass_index=manifest.pass_index,
        day=manifest.day,
        log_day=manifest.log_day,
        seen=StoredCursor() if at_end else read_cursor(storage, name, manifest),
        lanes=() if at_end else read_lanes(storage, name, manifest),
        complete=at_end,
        seed=manifest.config["seed"],
        shuffle_rows=manifest.config["ingest"]["shuffle"]["rows"],
        files=manifest.files_of_log,
    )


def damage(storage: Storage, name: str, manifest: Manifest) -> str | None:
    """Return the damage of a checkpoint's files, by size and checksum; None if there is none."""
    files = manifest.files
    with ThreadPoolExecutor(_DIGEST_THREADS) as pool:
        problems = pool.map(lambda file: _problem(storage, name, file, files[file]), files)
        return next((problem for problem in problems if problem), None)


def pin(storage: Storage, checkpoint: str, holder: str, until: float, name: str | None = None) -> str:
    """Keep a checkpoint from being retired, until a moment in seconds since the epoch or until the file is removed.

    Args:
        storage: The folder of its line.
        checkpoint: Its name.
        holder: Name of the job that keeps it, shown to a job that finds the pin.
        until: Moment at which the pin ends by itself.
        name: Name of the pin; None: a unique one.

    Returns:
        The file.
    """
    file = f"{_pins(checkpoint)}/{name or uuid.uuid4().hex}.json"
    storage.write(file, Pin(holder=holder, until=until).to_bytes())
    return file


def is_pinned(storage: Storage, checkpoint: str) -> bool:
    """Return True if a pin keeps a checkpoint."""
    for name in storage.names(_pins(checkpoint)):
        with contextlib.suppress(FileNotFoundError, ValueError):  # it is just being removed, or was cut off
            try:
                if Pin.from_bytes(storage.read(f"{_pins(checkpoint)}/{name}")).until > time.time():
                    return True
            except LaterVersion:  # whoever keeps it knows why
                return True
    return False


def _problem(storage: Storage, folder: str, name: str, expected: FileMark) -> str | None:
    try:
        size, digest = _digest(storage, f"{folder}/{name}")
    except FileNotFoundError:
        return f"{name} is missing"
    if (size, digest) == (expected.bytes, expected.sha256):
        return None
    wanted = f"{expected.bytes}, sha256 {expected.sha256[:12]}"
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
