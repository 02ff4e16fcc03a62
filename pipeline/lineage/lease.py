"""The lease of a line: one job at a time; a silent holder counts as dead, and no clock is compared.

The holder rewrites a file in the line every third of the lease. Another job that wants the lease watches that file. A
file that changes shows a live holder. A file that stays the same for a whole lease, by the watcher's own monotonic
clock, shows a dead one, and the watcher takes the lease over. No time is compared between machines, so a wrong clock,
or one that is set back, has no effect. A holder of the same machine counts as dead at once when its process is gone.

A lease alone cannot prevent a job that was suspended for longer from continuing. The holder in LATEST refuses the
writes of such a job; every job that takes the lease sets this holder (`Line.take`).
"""

import contextlib
import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path

from features.errors import ConfigError, DataError
from pipeline.lineage.line import Line
from pipeline.lineage.records import LeaseRecord, ProcessIdentity
from pipeline.storage.files import Storage
from pipeline.storage.record import LaterVersion

logger = logging.getLogger(__name__)

LEASE = "LEASE"
_LOOKS = 20  # at the file, in one lease


class Held(DataError):  # noqa: N818 - it is what the command says
    """Refusal since a live job holds the line; the same command can succeed later.

    Args:
        text: The error.
        by: Description of that job.

    Attributes:
        figures: Part of the command's JSON line.
    """

    def __init__(self, text: str, by: str) -> None:
        super().__init__(text)
        self.figures = {"held_by": by}


@contextlib.contextmanager
def lease(line: Line, what: str, seconds: float) -> Iterator[str]:
    """Hold a line for the duration of a job.

    Args:
        line: The line.
        what: Description of the job, shown to a job that finds the line held.
        seconds: Silence after which a holder counts as dead; the lease is renewed three times as often.

    Yields:
        Name of this run, which holds the line now.

    Raises:
        Held: A live job holds the line; names the job.
    """
    with leases([line], what, seconds) as (run,):
        yield run


@contextlib.contextmanager
def leases(lines: Sequence[Line], what: str, seconds: float) -> Iterator[list[str]]:
    """Hold several lines for the duration of a job; holders that died are waited for together.

    Args:
        lines: The lines.
        what: Description of the job, shown to a job that finds a line held.
        seconds: Silence after which a holder counts as dead; the lease is renewed three times as often.

    Yields:
        Name of this run for each line; the run holds the lines now.

    Raises:
        Held: A live job holds one of them; names the job.
    """
    runs = [uuid.uuid4().hex for _ in lines]
    mine = LeaseRecord(what=what, seconds=seconds, process=this_process())
    holdings = [
        _Holding(line.storage, mine.model_copy(update={"run": run})) for line, run in zip(lines, runs, strict=True)
    ]
    try:
        waiting = holdings
        while waiting := [holding for holding in waiting if not holding.look()]:
            time.sleep(min(holding.pause for holding in waiting))
        for line, run in zip(lines, runs, strict=True):
            line.take(run)
        yield runs
    finally:
        for holding in holdings:
            holding.release()


def living_holder(line: Line) -> str | None:
    """Return the description of the job that holds a line and lives; None: a job can take the line.

    The file is watched for up to a lease, as by a job that wants it, and is not changed.
    """
    first: tuple[str, float] | None = None
    while True:
        found = line.storage.read_versioned(LEASE)
        held = _read(found[0]) if found else None
        if found is None or held is None or is_gone(held.process):
            return None
        if first is None:
            first = (found[1], time.monotonic())
        elif found[1] != first[0]:
            return _described(held)
        elif _over(first[1], held):
            return None
        time.sleep(held.seconds / _LOOKS)


class _Holding:
    """A lease that is being taken, renewed by a thread, and given back."""

    def __init__(self, storage: Storage, record: LeaseRecord) -> None:
        self._storage, self._record = storage, record
        self._version: str | None = None
        self._first: tuple[str, float] | None = None  # what the file was at first, and since when
        self.pause = 0.0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._renew, daemon=True)

    def look(self) -> bool:
        """Take the lease unless a job that may be alive has it; return False to look again after a `pause`.

        Raises:
            Held: A live job holds it.
        """
        found, first = self._storage.read_versioned(LEASE), self._first
        held = _read(found[0]) if found else None
        version = found[1] if found else None
        if held is None or is_gone(held.process) or (first and first[0] == version and _over(first[1], held)):
            if held is not None:
                logger.warning("%s: taking over from %s, which has died", self._storage.url, _described(held))
            if self._write(version):
                self._thread.start()
                return True
            self._first, self.pause = None, 0.0
            return False
        assert version is not None
        if first is None:
            self._first = (version, time.monotonic())
        elif version != first[0]:
            raise Held(
                f"{self._storage.url} is held by {_described(held)}: wait until it has ended, or end it and start "
                "this again",
                _described(held),
            )
        self.pause = held.seconds / _LOOKS
        return False

    def release(self) -> None:
        self._ended.set()
        if self._thread.ident is None:  # it was not taken
            return
        self._thread.join()
        with contextlib.suppress(OSError):
            if self._version is not None:
                self._storage.replace(LEASE, LeaseRecord(released=self._record.run).to_bytes(), self._version)

    def _write(self, version: str | None) -> bool:
        self._record = self._record.model_copy(update={"beat": self._record.beat + 1})
        data = self._record.to_bytes()
        written = self._storage.replace(LEASE, data, version)
        now = self._storage.read_versioned(LEASE)
        self._version = now[1] if now and now[0] == data else None
        return written or self._version is not None

    def _renew(self) -> None:
        while not self._ended.wait(self._record.seconds / 3):
            try:
                if not self._write(self._version):
                    logger.error(
                        "%s was taken over while this job did not answer: it will be refused", self._storage.url
                    )
                    return
            except Exception as error:  # noqa: BLE001 - a storage that is away: others cannot look either
                logger.warning("the lease of %s was not renewed: %s", self._storage.url, error)


def _read(data: bytes) -> LeaseRecord | None:
    """Read the holder of a lease; None if the lease was given back."""
    try:
        record = LeaseRecord.from_bytes(data)
    except LaterVersion as error:
        raise ConfigError(f"the lease of the line cannot be read: {error}") from error
    except ValueError:  # whoever it is: its silence is what counts
        return LeaseRecord(what="a job whose LEASE is damaged")
    return None if record.released is not None else record


def _over(since: float, held: LeaseRecord) -> bool:
    return time.monotonic() - since > held.seconds


def _described(held: LeaseRecord) -> str:
    return f"{held.what} (process {held.process.pid} on {held.process.host})"


def this_process() -> ProcessIdentity:
    """Return the identity of this process."""
    pid = os.getpid()
    return _machine().model_copy(update={"pid": pid, "started": _started(pid)})


def _machine() -> ProcessIdentity:
    """Return the identity of this machine's last start, and of the container of these process numbers."""
    with contextlib.suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return ProcessIdentity(host=socket.gethostname(), boot=boot, pids=os.readlink("/proc/self/ns/pid"))
    return ProcessIdentity(host=socket.gethostname())


def _started(pid: int | None) -> int | None:
    """Return the start of a process, in ticks since the machine's start, which no clock changes; None: it is gone."""
    try:
        state, *rest = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if state in "ZX" else int(rest[18])


def is_gone(process: ProcessIdentity) -> bool:
    """Return True if a process is certainly gone: it ran on this machine, in this container's view, and has ended."""
    here, then = _machine(), process.model_copy(update={"pid": None, "started": None})
    known = here.boot is not None and then == here and process.pid is not None
    return known and _started(process.pid) != process.started
