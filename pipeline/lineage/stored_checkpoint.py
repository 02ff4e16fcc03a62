"""A complete checkpoint in storage: its manifest, the check of its files, and its pins."""

import contextlib
import hashlib
import logging
import time
import uuid
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

from features.errors import DataError
from pipeline.ingest.cursor import StoredCursor, lanes_from_arrow
from pipeline.ingest.lanes import ResumePoint
from pipeline.lineage.file_marks import FileMarker
from pipeline.lineage.records import FileMark, FoundDamage, Manifest, Pin
from pipeline.storage.files import Storage
from pipeline.storage.record import LaterVersion

logger = logging.getLogger(__name__)

MANIFEST = "manifest.json"
CURSOR, LANES = "cursor.arrow", "lanes.arrow"
FOUND_DAMAGE = "found_damage.json"
_TENSORS = ".distcp"  # end of the names of DCP's files of tensors
_SMALL_BYTES = 1 << 20  # up to these, a file of tensors costs little more to read than to ask for
_READ_BYTES = 1 << 24
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


class DamagedFile(DataError):  # noqa: N818 - it is what was found
    """A file of a checkpoint that is not what was written.

    Args:
        problem: Difference from the manifest.
        file: Name of the file in the checkpoint's folder.
    """

    def __init__(self, problem: str, file: str) -> None:
        super().__init__(problem)
        self.file = file

    def __reduce__(self) -> tuple[type["DamagedFile"], tuple[str, str]]:
        return type(self), (str(self), self.file)  # it travels between ranks


def visible_damage(storage: Storage, name: str, manifest: Manifest) -> str | None:
    """Return the damage of a checkpoint that can be seen without reading its tensors; None if there is none.

    Every file has to have its size. All files but the large ones of tensors have to have their checksums. The ranks
    verify the tensors while they load them (`pipeline.checkpoint.verified_file`). Damage that they found is in the
    folder, and lets the whole checkpoint be read here: a person may have restored the file since.
    """
    sizes = storage.sizes(name)
    if FOUND_DAMAGE in sizes:
        return damage(storage, name, manifest, _suspects(storage, name))
    files = manifest.files
    return _first_problem(
        storage,
        name,
        {
            file: mark
            for file, mark in files.items()
            if sizes.get(file) != mark.bytes or mark.bytes <= _SMALL_BYTES or not file.endswith(_TENSORS)
        },
    )


def damage(storage: Storage, name: str, manifest: Manifest, suspects: Sequence[str] = ()) -> str | None:
    """Return the damage of a checkpoint's files, by size and checksums; None if there is none. Reads all of them.

    Args:
        storage: Folder of its line.
        name: Its folder below that.
        manifest: Its manifest.
        suspects: Files to read first; the others are read only if these are intact.
    """
    first = {file: mark for file, mark in manifest.files.items() if file in suspects}
    others = {file: mark for file, mark in manifest.files.items() if file not in suspects}
    return _first_problem(storage, name, first) or _first_problem(storage, name, others)


def note_damage(storage: Storage, name: str, found: DamagedFile) -> None:
    """Let the next choice of a checkpoint see the damage that the ranks found as they loaded this one."""
    storage.write(f"{name}/{FOUND_DAMAGE}", FoundDamage(file=found.file, problem=str(found)).to_bytes())


def _suspects(storage: Storage, name: str) -> tuple[str, ...]:
    try:
        return (FoundDamage.from_bytes(storage.read(f"{name}/{FOUND_DAMAGE}")).file,)
    except (FileNotFoundError, ValueError):  # all files are read then
        return ()


def _first_problem(storage: Storage, name: str, files: Mapping[str, FileMark]) -> str | None:
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
        found = mark_stored(storage, f"{folder}/{name}", expected.chunk_bytes)
    except FileNotFoundError:
        return f"{name} is missing"
    if found == expected:
        return None
    wanted = f"{expected.bytes}, sha256 {expected.sha256[:12]}"
    return f"{name} has {found.bytes} bytes, sha256 {found.sha256[:12]}; expected {wanted}"


def mark_stored(storage: Storage, path: str, chunk_bytes: int | None) -> FileMark:
    """Read a file to its end; return its mark, with chunks as the file was written with (`FileMark.chunk_bytes`)."""
    marker = FileMarker(chunk_bytes)
    with storage.open_read(path) as file:
        while data := file.read(_READ_BYTES):
            marker.update(data)
    return marker.mark()


def _pins(checkpoint: str) -> str:
    return f"pins/{checkpoint.rpartition(':')[2].removeprefix('checkpoints/').replace('/', '_')}"
