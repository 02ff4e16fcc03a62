"""Storage of a root, its checkpoints and the logs: a local directory or an s3:// prefix, with few operations.

A file is either complete or absent. Exclusive creation and compare-and-swap are a lock-free hard link and a locked
rename on a local disk, conditional puts on S3. A file reported as written survives a power cut. Credentials and
endpoint come from the environment or the instance's role, never from a config.
"""

import contextlib
import errno
import fcntl
import os
import tempfile
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from fsspec.implementations.local import LocalFileSystem

from features.errors import NO_PLACE, ConfigError, DataError
from features.full_disk import naming_place
from pipeline.config.urls import S3, resolve_url, uri_of

_READ_AHEAD = 1 << 20  # bytes; neighbouring columns of a log are small
# Answers to a conditional put: another writer was first, or has removed the file to be replaced.
_CONDITION_FAILED = {"PreconditionFailed", "412", "NoSuchKey", "404"}


class Storage:
    """Files under one prefix.

    Args:
        url: A local directory or `s3://bucket/prefix`, as `resolve_url` takes it. A directory's path is made absolute
            at once: a worker that receives the storage may have another working directory.

    Raises:
        ConfigError: The url is of another kind.
    """

    def __init__(self, url: str) -> None:
        url = resolve_url(url)
        self.is_local = not url.startswith(S3)
        if self.is_local:
            self.filesystem: Any = LocalFileSystem()
        else:
            from pipeline.storage.s3 import PatientS3FileSystem  # a second's import, which a local run does without

            self.filesystem = PatientS3FileSystem()
        self._prefix = str(self.filesystem._strip_protocol(url))
        self.url = self._prefix if self.is_local else f"s3://{self._prefix}"

    def __reduce__(self) -> tuple[type["Storage"], tuple[str]]:
        return Storage, (self.url,)

    @property
    def uri(self) -> str:
        """Name of the prefix for libraries that parse URIs; `url` is for people, and for fsspec."""
        return uri_of(self.url)

    def path(self, name: str = "") -> str:
        """Return the path of a file or folder as the file system knows it."""
        return f"{self._prefix}/{name}" if name else self._prefix

    def under(self, name: str) -> "Storage":
        """Return the storage below a folder."""
        return Storage(f"{self.url}/{name}")

    def sibling(self, name: str) -> "Storage":
        """Return the storage of a folder beside this one."""
        return Storage(f"{self.url.rpartition('/')[0]}/{name}")

    def exists(self, name: str = "") -> bool:
        """Return True if a file or folder exists."""
        try:
            self.filesystem.info(self.path(name))  # `exists` of s3fs takes any error of a bucket for its absence
        except (FileNotFoundError, NotADirectoryError):
            return False
        return True

    def names(self, folder: str = "") -> list[str]:
        """Return the names of the files and folders directly in a folder, sorted; empty if the folder does not exist.

        Names that begin with a dot are left out, as in readers of data sets: files in the course of writing, and locks.
        """
        path = self.path(folder)
        try:
            found = self.filesystem.ls(path, detail=False) if self.is_local else self.filesystem.children(path)
        except (FileNotFoundError, NotADirectoryError):
            return []
        paths = {str(entry).rstrip("/") for entry in found} - {path}  # S3 may list a folder in itself
        names = (path.rsplit("/", 1)[-1] for path in paths)
        return sorted(name for name in names if not name.startswith("."))

    def sizes(self, folder: str) -> dict[str, int]:
        """Return the sizes in bytes of the files directly in a folder, hidden ones too, by name, from one listing."""
        path = self.path(folder)
        try:
            found = self.filesystem.ls(path, detail=True) if self.is_local else self.filesystem.entries(path)
        except (FileNotFoundError, NotADirectoryError):
            return {}
        files = (entry for entry in found if entry["type"] != "directory" and entry["name"] != path)
        return {str(entry["name"]).rsplit("/", 1)[-1]: entry["size"] for entry in files}

    def files_below(self, folder: str, is_hidden: Callable[[str], bool]) -> list[str]:
        """Return the paths of all files below a folder, at any depth, sorted, relative to the folder.

        Args:
            folder: Folder below the storage; a folder that does not exist has no files.
            is_hidden: Function of the name of a file or folder; a hidden folder is left out with all that is in it.

        Raises:
            DataError: An entry is neither a file nor a folder, or the same as another.
        """
        if self.is_local:
            return sorted(_local_files(self.path(folder), "", is_hidden, {}))
        top = f"{self.path(folder)}/"
        found = (str(path).removeprefix(top) for path in self.filesystem.find(top) if str(path).startswith(top))
        # S3 may have an object for a folder, whose name ends with a slash.
        files = (path for path in found if path and not path.endswith("/"))
        return sorted(path for path in files if not any(map(is_hidden, path.split("/"))))

    def open_read(self, name: str) -> BinaryIO:
        """Open a file for reading, mostly forwards."""
        return self.filesystem.open(self.path(name), "rb", block_size=_READ_AHEAD)

    def read(self, name: str) -> bytes:
        """Return the bytes of a file.

        Raises:
            FileNotFoundError: The file does not exist.
        """
        return self.filesystem.cat_file(self.path(name))

    def read_range(self, name: str, begin: int, end: int) -> bytes:
        """Return some bytes of a file, as by a slice.

        Raises:
            FileNotFoundError: The file does not exist.
        """
        return self.filesystem.cat_file(self.path(name), start=begin, end=end)

    def read_ranges(self, name: str, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
        """Return some ranges of bytes of a file, each as by `read_range`; on S3 they are asked for in parallel."""
        paths, begins, ends = [self.path(name)] * len(ranges), [one[0] for one in ranges], [one[1] for one in ranges]
        return self.filesystem.cat_ranges(paths, begins, ends, on_error="raise")

    def size(self, name: str) -> int:
        """Return the size of a file in bytes.

        Raises:
            FileNotFoundError: The file does not exist.
        """
        return self.filesystem.info(self.path(name))["size"]

    def write(self, name: str, data: bytes) -> None:
        """Write a whole file, replacing an older one; a reader sees the old or the new one."""
        if not self.is_local:
            self.filesystem.pipe_file(self.path(name), data)
            return
        with self._complete_file(name, data) as temporary:
            os.replace(temporary, self.path(name))

    def check_writable(self) -> None:
        """Write a file and remove it: a command that reads for hours first asks whether it may write its result.

        Raises:
            ConfigError: Nothing can be written there, and a retry would not help.
        """
        probe = f".probe-{uuid.uuid4().hex}"
        try:
            self.write(probe, b"")
            self.filesystem.rm_file(self.path(probe))
        except OSError as error:
            if self.is_local and error.errno not in {*NO_PLACE, errno.EEXIST}:
                raise
            if not self.is_local and not isinstance(error, PermissionError):
                raise
            reason = error.strerror or str(error)
            raise ConfigError(
                f"{self.url} cannot be written ({reason}): give a place that this user may write"
            ) from error

    def create(self, name: str, data: bytes) -> bool:
        """Write a file unless it exists; one of several racing writers wins.

        Returns:
            True if this call created the file.
        """
        if not self.is_local:
            return self._conditional_put(name, data, mode="create")
        with self._complete_file(name, data) as temporary:
            try:
                os.link(temporary, self.path(name))
            except FileExistsError:
                return False
        return True

    def read_versioned(self, name: str) -> tuple[bytes, str] | None:
        """Return a file's bytes and the version to pass to `replace`; None without a file."""
        try:
            if self.is_local:
                data = self.read(name)
                return data, data.hex()
            version = self.filesystem.info(self.path(name))["ETag"]
            return self.read(name), version
        except FileNotFoundError:
            return None

    def replace(self, name: str, data: bytes, version: str | None) -> bool:
        """Compare and swap: write only if the file still has the version (None: is still absent).

        Returns:
            True if the file was written. On S3 also False in one rare case: it was written, the answer was lost, and
            another writer replaced the file before the put could be sent again.
        """
        if version is None:
            return self.create(name, data)
        if not self.is_local:
            return self._conditional_put(name, data, IfMatch=version)
        folder, _, file = self.path(name).rpartition("/")
        if not os.path.isdir(folder):
            return False
        with open(f"{folder}/.{file}.lock", "wb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            current = self.read_versioned(name)
            if current is None or current[1] != version:
                return False
            self.write(name, data)
            return True

    def remove(self, folder: str) -> None:
        """Remove a folder and all that is in it."""
        with contextlib.suppress(FileNotFoundError):
            self.filesystem.rm(self.path(folder), recursive=True)

    def sync(self, folder: str = "") -> None:
        """Let files that were written and flushed past this class survive a power cut; S3 needs nothing.

        Args:
            folder: Folder whose entries are flushed, with those of the folders above it, up to the storage's parent.
        """
        if self.is_local:
            top = Path(self._prefix).parent
            _sync_folders(Path(self.path(folder)), top)

    def _conditional_put(self, name: str, data: bytes, **condition: Any) -> bool:
        from pipeline.storage.s3 import WRITER, error_code

        own = uuid.uuid4().hex
        try:
            self.filesystem.pipe_file(self.path(name), data, Metadata={WRITER: own}, **condition)
        except OSError as error:
            # s3fs turns a failed condition into OSError 22, and a dozen real errors as well.
            if error_code(error) not in _CONDITION_FAILED:
                raise
            # A completed put with a lost answer is sent again, and is refused because of itself.
            return self.filesystem.writer_of(self.path(name)) == own
        return True

    @contextlib.contextmanager
    def _complete_file(self, name: str, data: bytes) -> Iterator[str]:
        """Write a temporary file beside the named one, flush it to the disk, and yield it for a move or a link.

        A file left at the end is removed; a moved or linked one then survives a power cut.
        """
        folder = Path(self.path(name)).parent
        top = _make_folder(folder, Path(self._prefix))
        descriptor, temporary = tempfile.mkstemp(dir=folder, prefix=".writing-")
        try:
            os.fchmod(descriptor, 0o644)  # mkstemp's 0600 would hide the file from other users of a shared disk
            with naming_place(self.path(name)), os.fdopen(descriptor, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            yield temporary
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(temporary)
        _sync_folders(folder, top)


def _local_files(
    top: str, folder: str, is_hidden: Callable[[str], bool], seen: dict[tuple[int, int], str]
) -> Iterator[str]:
    """Yield the files below `top/folder`, relative to `top`; `seen` has the files and folders so far, by identity."""
    path = f"{top}/{folder}" if folder else top
    try:
        _refuse_twice(path, os.stat(path), seen)
        entries = list(os.scandir(path))
    except (FileNotFoundError, NotADirectoryError):
        return
    for entry in entries:
        name = f"{folder}/{entry.name}" if folder else entry.name
        if is_hidden(entry.name):
            continue
        if entry.is_dir():
            yield from _local_files(top, name, is_hidden, seen)
        elif entry.is_file():
            _refuse_twice(entry.path, entry.stat(), seen)
            yield name
        else:
            raise DataError(
                f"{top}/{name} is neither a file nor a folder but a pipe, a socket or a broken link: remove it"
            )


def _refuse_twice(path: str, status: os.stat_result, seen: dict[tuple[int, int], str]) -> None:
    """Refuse a link to a file or folder that is found by another path too: its rows would be read twice."""
    other = seen.setdefault((status.st_dev, status.st_ino), path)
    if other != path:
        raise DataError(f"{max(path, other)} is the same as {min(path, other)}: remove the link")


def _make_folder(folder: Path, prefix: Path) -> Path:
    """Make a folder; return the highest folder whose entries may be new: another process may have just made one."""
    top = folder
    while not top.exists():
        top = top.parent
    folder.mkdir(parents=True, exist_ok=True)
    return top if top in prefix.parents else prefix


def _sync_folders(folder: Path, top: Path) -> None:
    """Flush the entries of a folder and of those above it, up to and with `top`."""
    for place in (folder, *folder.parents):
        descriptor = os.open(place, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        if place == top:
            return
