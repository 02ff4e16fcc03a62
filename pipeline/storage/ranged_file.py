"""A file on S3 for a reader that says in advance which bytes it needs: few large requests, in parallel."""

import io
from collections.abc import Iterable

from pipeline.storage.files import Storage

_MOST_BYTES = 64 << 20  # of a request: more of them would only wait for the network
_GAP_BYTES = 1 << 20  # bytes that nobody needs cost less than another request


class RangedFile(io.RawIOBase):
    """A file of a storage, opened for reading; other bytes than the fetched ones are asked for one by one.

    Args:
        storage: The storage.
        name: Name of the file.

    Raises:
        FileNotFoundError: The file does not exist.
    """

    def __init__(self, storage: Storage, name: str) -> None:
        super().__init__()
        self._storage, self._name = storage, name
        self._size = storage.size(name)
        self._place = 0
        self._held: list[tuple[int, bytes]] = []

    def fetch(self, ranges: Iterable[tuple[int, int]]) -> None:
        """Read ranges of bytes, and hold them in the place of those held before.

        Args:
            ranges: Begin and end of each, in any order; they may touch. Bytes outside the file are left out.
        """
        self._held = []
        inside = ((max(begin, 0), min(end, self._size)) for begin, end in ranges)
        joined = coalesced((begin, end) for begin, end in inside if begin < end)
        found = self._storage.read_ranges(self._name, joined)
        self._held = [(begin, data) for (begin, _), data in zip(joined, found, strict=True)]

    def readable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return True."""
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        """Move to a place in bytes, as in `io`."""
        self._place = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._place, io.SEEK_END: self._size}[whence]
        return self._place

    def read(self, size: int | None = -1, /) -> bytes:
        """Return the next bytes: fewer than `size` at the end of the file alone."""
        end = self._size if size is None or size < 0 else min(self._place + size, self._size)
        begin, pieces = self._place, []
        while begin < end:
            piece = self._piece(begin, end)
            pieces.append(piece)
            begin += len(piece)
        self._place = max(begin, self._place)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def _piece(self, begin: int, end: int) -> bytes:
        """Return bytes from `begin` on, up to `end` or to the end of a held range."""
        for first, data in self._held:
            if first <= begin < first + len(data):
                return data[begin - first : end - first]
        return self._storage.read_range(self._name, begin, end)


def coalesced(ranges: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """Return ranges that contain the given ones: neighbours are joined, and large ones are cut, up to 64 MiB each."""
    joined: list[tuple[int, int]] = []
    for begin, end in sorted(ranges):
        if joined and begin <= joined[-1][1] + _GAP_BYTES:
            joined[-1] = (joined[-1][0], max(joined[-1][1], end))
        else:
            joined.append((begin, end))
    return [(place, min(place + _MOST_BYTES, end)) for begin, end in joined for place in range(begin, end, _MOST_BYTES)]
