"""A stored file of a checkpoint that is verified while it is read.

A process that loads a part of a checkpoint reads the chunks that hold its part, compares each with the manifest, and
hands out no byte before that. So every byte that is loaded is verified, by the rank that loads it and in the same read,
whatever the number of ranks that wrote it or load it. Two ranks that load parts of one saved piece both read it: DCP
reads a piece as a whole. A checksum of the whole file would need a reading of its own: by one process for all files, or
by each rank of files of which it loads a part.
"""

import hashlib
import io
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from pipeline.lineage.file_marks import CHUNK_BYTES
from pipeline.lineage.records import FileMark
from pipeline.lineage.stored_checkpoint import DamagedFile, mark_stored
from pipeline.storage.files import Storage

_AHEAD = 2  # chunks that are read and hashed while the one before is copied


class VerifiedFile(io.RawIOBase):
    """A file of a checkpoint, read at any place; seven of its chunks are in memory at most.

    Args:
        line: The folder of the line.
        path: Path of the file below that folder.
        mark: Its size and checksums, from the manifest.
        wanted: Numbers of the chunks that will be read, in increasing order, so that they are read ahead; None: all.

    Raises:
        DamagedFile: The file is missing, or has no checksums of chunks and is not what was written.
    """

    def __init__(self, line: Storage, path: str, mark: FileMark, wanted: list[int] | None = None) -> None:
        super().__init__()
        self._line, self._path, self._mark = line, path, mark
        self._chunk_bytes = mark.chunk_bytes or CHUNK_BYTES
        self._digests = mark.chunks or (mark.sha256,)
        if mark.chunks is None and mark.bytes > self._chunk_bytes:  # of an older format
            self._digests = ()
            self._verify_whole()
        self._wanted = list(range(-(-mark.bytes // self._chunk_bytes))) if wanted is None else wanted
        self._place = 0
        self._recent: list[int] = []  # the newest chunks, each once, the newest last
        self._last = -1
        self._held: dict[int, Future[bytes]] = {}
        self._pool = ThreadPoolExecutor(_AHEAD)

    def readable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return True."""
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        """Move to a place in bytes, as in `io`."""
        self._place = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._place, io.SEEK_END: self._mark.bytes}[whence]
        return self._place

    def readinto(self, buffer: Any, /) -> int:
        """Read up to the end of a chunk, which is verified first; return the number of bytes.

        Raises:
            DamagedFile: The chunk is not what was written.
        """
        target = memoryview(buffer).cast("B")
        if self._place >= self._mark.bytes or not len(target):
            return 0
        number, begin = divmod(self._place, self._chunk_bytes)
        taken = memoryview(self._chunk(number))[begin : begin + len(target)]
        target[: len(taken)] = taken
        self._place += len(taken)
        return len(taken)

    def close(self) -> None:
        """Drop what was read."""
        if not self.closed:
            self._pool.shutdown(cancel_futures=True)
            self._held.clear()
        super().close()

    def _chunk(self, number: int) -> bytes:
        """Return a chunk, and begin to read those that come next.

        `torch.load` reads the first bytes of a tensor's piece, then its end, which may lie across two chunks, then all
        of it from its beginning. So three recent chunks are kept, and the two highest, up to which it reads ahead.
        """
        if self._recent[-1:] != [number]:
            self._recent = [*(one for one in self._recent if one != number), number][-3:]
            self._last = max(self._last, number)
            ahead = [one for one in self._wanted if number < one <= self._last][:_AHEAD]
            for one in (number, *ahead):
                if one not in self._held:
                    self._held[one] = self._pool.submit(self._read, one)
            for one in set(self._held) - {*self._recent, *ahead, self._last - 1, self._last}:
                del self._held[one]
        return self._held[number].result()

    def _read(self, number: int) -> bytes:
        begin = number * self._chunk_bytes
        end = min(begin + self._chunk_bytes, self._mark.bytes)
        file = self._path.rpartition("/")[2]
        try:
            data = self._line.read_range(self._path, begin, end)
        except FileNotFoundError as error:
            raise DamagedFile(f"{file} is missing", file) from error
        if len(data) != end - begin or (self._digests and hashlib.sha256(data).hexdigest() != self._digests[number]):
            raise DamagedFile(f"{file} is not what was written, at bytes {begin:,} to {end:,}", file)
        return data

    def _verify_whole(self) -> None:
        file = self._path.rpartition("/")[2]
        try:
            found = mark_stored(self._line, self._path, None)
        except FileNotFoundError as error:
            raise DamagedFile(f"{file} is missing", file) from error
        if found != self._mark:
            raise DamagedFile(f"{file} is not what was written", file)
