"""The error of a full disk with the place, which the operating system does not name for a write."""

import contextlib
import errno
from collections.abc import Iterator
from pathlib import Path

_FULL = {errno.ENOSPC, errno.EDQUOT}
_SIGNS = ("No space left on device", "Disk quota exceeded")


@contextlib.contextmanager
def naming_place(place: str | Path) -> Iterator[None]:
    """Name the place in the error of a full disk.

    Args:
        place: The file or folder that is written.

    Raises:
        OSError: The disk of the place is full; `filename` is the place.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in _FULL or error.filename is not None:
            raise
        sign = _SIGNS[error.errno == errno.EDQUOT]  # libraries have words of their own
        raise OSError(error.errno, sign, str(place)) from error


def with_advice(text: str) -> str:
    """Return an error's text, with what to do if it is that of a full disk, which may come from another process."""
    if not any(sign in text for sign in _SIGNS):
        return text
    return (
        f"{text}: make room there (old checkpoints, and in the folder for temporary files ray/session_* of runs that "
        "have ended and counterpoise-*.log), and run the same command again"
    )
