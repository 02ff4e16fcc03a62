"""Where a root, its checkpoints and the logs live: a local directory or an s3:// prefix, behind five operations.

A file is either there whole or not there. Exclusive creation and compare-and-swap are a lock-free hard link and a
locked rename on a local disk, conditional puts on S3. Credentials and endpoint come from the environment or the
instance's role, never from a config.
"""

import contextlib
import fcntl
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import fsspec
from fsspec.implementations.local import LocalFileSystem

# Of a conditional put: somebody was first, is just writing, or has removed the file that was to be replaced.
_CONDITION_FAILED = {"PreconditionFailed", "412", "ConditionalRequestConflict", "409", "NoSuchKey", "404"}


class Storage:
    """Files under one prefix.

    Args:
        url: A local directory or `s3://bucket/prefix`. A directory's path is made absolute at once: a worker that the
            storage travels to may have another working directory.
    """

    def __init__(self, url: str) -> None:
        # Other processes write here too: a listing that was remembered would hide what they wrote.
        self.filesystem, self._prefix = fsspec.core.url_to_fs(url.rstrip("/"), use_listings_cache=False)
        self.is_local = isinstance(self.filesystem, LocalFileSystem)
        self.url = self._prefix if self.is_local else url.rstrip("/")

    def __reduce__(self) -> tuple[type["Storage"], tuple[str]]:
        return Storage, (self.url,)

    def path(self, name: str = "") -> str:
        """The path of a file or folder as the file system knows it."""
        return f"{self._prefix}/{name}" if name else self._prefix

    def under(self, name: str) -> "Storage":
        """The storage below a folder."""
        return Storage(f"{self.url}/{name}")

    def exists(self, name: str = "") -> bool:
        """Whether a file or folder is there."""
        return self.filesystem.exists(self.path(name))

    def names(self, folder: str = "") -> list[str]:
        """Names of the files and folders directly in a folder, sorted; empty where there is no such folder.

        Names that begin with a dot are left out, as readers of data sets do: among them are what is just being
        written, and locks.
        """
        try:
            found = self.filesystem.ls(self.path(folder), detail=False)
        except FileNotFoundError:
            return []
        paths = {str(entry).rstrip("/") for entry in found} - {self.path(folder)}  # S3 may list a folder in itself
        names = (path.rsplit("/", 1)[-1] for path in paths)
        return sorted(name for name in names if not name.startswith("."))

    def open_read(self, name: str) -> BinaryIO:
        """Open for reading."""
        return self.filesystem.open(self.path(name), "rb")

    def read(self, name: str) -> bytes:
        """The bytes of a file.

        Raises:
            FileNotFoundError: There is none.
        """
        return self.filesystem.cat_file(self.path(name))

    def write(self, name: str, data: bytes) -> None:
        """Write a whole file, replacing an older one; a reader sees the old or the new one."""
        if not self.is_local:
            self.filesystem.pipe_file(self.path(name), data)
            return
        with _complete_file(self.path(name), data) as temporary:
            os.replace(temporary, self.path(name))
        _sync_folder(self.path(name))

    def create(self, name: str, data: bytes) -> bool:
        """Write a file unless it is there already; of racing writers one wins.

        Returns:
            Whether this call created it.
        """
        if not self.is_local:
            return self._conditional_put(name, data, mode="create")
        with _complete_file(self.path(name), data) as temporary:
            try:
                os.link(temporary, self.path(name))
            except FileExistsError:
                return False
        _sync_folder(self.path(name))
        return True

    def read_versioned(self, name: str) -> tuple[bytes, str] | None:
        """A file's bytes and the version to hand to `replace`; None where there is none."""
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
            Whether it was written.
        """
        if version is None:
            return self.create(name, data)
        if not self.is_local:
            return self._conditional_put(name, data, IfMatch=version)
        folder, _, file = self.path(name).rpartition("/")
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

    def _conditional_put(self, name: str, data: bytes, **condition: Any) -> bool:
        try:
            self.filesystem.pipe_file(self.path(name), data, **condition)
        except OSError as error:
            # s3fs turns a failed condition into OSError 22, and a dozen real errors as well.
            if _s3_code(error) in _CONDITION_FAILED:
                return False
            raise
        return True


def _s3_code(error: OSError) -> str | None:
    return getattr(error.__cause__, "response", {}).get("Error", {}).get("Code")


@contextlib.contextmanager
def _complete_file(path: str, data: bytes) -> Iterator[str]:
    """A temporary file beside `path`, written and flushed to the disk; removed if it is still there at the end."""
    folder = Path(path).parent
    folder.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(dir=folder, prefix=".writing-")
    try:
        os.fchmod(descriptor, 0o644)  # mkstemp's 0600 would hide the file from other users of a shared disk
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        yield temporary
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)


def _sync_folder(path: str) -> None:
    descriptor = os.open(Path(path).parent, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
