"""Sizes and checksums of a checkpoint's files, by chunks: a reader of a range verifies the chunks that it needs."""

import hashlib
from typing import Any

from pipeline.lineage.records import FileMark

CHUNK_BYTES = 32 << 20
"""Bytes of a chunk: a request of S3 of this size is limited by the network, and a rank holds up to seven of them."""


class FileMarker:
    """Size and checksums of a file whose bytes pass by in order; each byte is hashed once.

    Args:
        chunk_bytes: Bytes of a chunk; None: the file has one checksum, whatever its size.
    """

    def __init__(self, chunk_bytes: int | None = CHUNK_BYTES) -> None:
        self._chunk_bytes = chunk_bytes
        self._chunks: list[str] = []
        self._digest = hashlib.sha256()
        self._left = chunk_bytes
        self._num_bytes = 0

    def update(self, data: Any) -> None:
        """Take the next bytes: an object with a contiguous buffer."""
        view = memoryview(data).cast("B")
        self._num_bytes += len(view)
        while len(view):
            if self._left == 0:  # only now: a file that ends with its first chunk has no list of chunks
                self._end_chunk()
            taken = view if self._left is None else view[: self._left]
            self._digest.update(taken)
            if self._left is not None:
                self._left -= len(taken)
            view = view[len(taken) :]

    def mark(self) -> FileMark:
        """Return the mark of the file; no bytes may follow."""
        if not self._chunks:
            return FileMark(bytes=self._num_bytes, sha256=self._digest.hexdigest())
        self._end_chunk()
        whole = hashlib.sha256("".join(self._chunks).encode()).hexdigest()
        chunks = tuple(self._chunks)
        return FileMark(bytes=self._num_bytes, sha256=whole, chunk_bytes=self._chunk_bytes, chunks=chunks)

    def _end_chunk(self) -> None:
        self._chunks.append(self._digest.hexdigest())
        self._digest, self._left = hashlib.sha256(), self._chunk_bytes


def mark_of(data: bytes) -> FileMark:
    """Return the mark of a file's content."""
    marker = FileMarker()
    marker.update(data)
    return marker.mark()
