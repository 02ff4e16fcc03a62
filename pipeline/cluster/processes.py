"""Processes of a command: the age of its own, and the end of all that it started."""

import contextlib
import ctypes
import logging
import os
import time
from collections.abc import Iterator
from pathlib import Path

_IMPORTED = time.monotonic()
_ADOPTS_ORPHANS = 36  # PR_SET_CHILD_SUBREAPER of prctl(2)

logger = logging.getLogger(__name__)


def process_age() -> float:
    """Return the seconds since this process began, to one digit: Python's start and all imports are counted.

    On a system that does not tell, it is the time since the import of this module.
    """
    try:
        fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
        began = int(fields[19]) / os.sysconf("SC_CLK_TCK")  # `starttime` of proc(5), since the boot
        return round(time.clock_gettime(time.CLOCK_BOOTTIME) - began, 1)
    except (OSError, ValueError, IndexError, AttributeError):
        return round(time.monotonic() - _IMPORTED, 1)


@contextlib.contextmanager
def no_process_left(grace_s: float = 3.0) -> Iterator[None]:
    """End all processes that are started within, and are still there some time after its end.

    A process whose parent ends at the end is found too: this process adopts it. On a system without that, and without
    /proc, such a process stays.

    Args:
        grace_s: Time in seconds that they have to end by themselves.
    """
    import psutil  # here, since every worker imports this room

    own = psutil.Process()
    before = set(own.children(recursive=True))
    try:
        yield
    finally:
        left = [process for process in own.children(recursive=True) if process not in before]
        for process in psutil.wait_procs(left, timeout=grace_s)[1]:
            with contextlib.suppress(psutil.NoSuchProcess):
                logger.debug("process %d is still there: it is ended", process.pid)
                process.kill()
        psutil.wait_procs(left, timeout=grace_s)


def adopt_orphans() -> None:
    """Make this process the parent of descendants whose own parent ends, from now on."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_ADOPTS_ORPHANS, 1, 0, 0, 0)
