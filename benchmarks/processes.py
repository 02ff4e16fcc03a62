"""CPU time and memory of a process and all its descendants, sampled from /proc.

CPU is the user and system time of every process of the tree. The newest sample of each is kept: an ended process
counts up to its last sample, even if no process waits for it. (Ray's raylet does not wait for its workers, whose time
is then in no `cutime`.) The kernel counts in ticks of 10 ms.
"""

import os
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_TICK_S = 1 / os.sysconf("SC_CLK_TCK")
_GONE = (FileNotFoundError, ProcessLookupError, PermissionError)


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes of a process tree.

    Args:
        private: Proportional set size (shared pages divided among their users) without shared memory.
        shared: Proportional set size of shared memory, namely Ray's object store.
    """

    private: int
    shared: int


@dataclass(frozen=True, slots=True)
class Cost:
    """Cost of a piece of work.

    Args:
        cpu: CPU-seconds of all processes.
        wall: Seconds.
    """

    cpu: float
    wall: float

    def less(self, other: "Cost") -> "Cost":
        """Return the cost without another's."""
        return Cost(self.cpu - other.cpu, self.wall - other.wall)


class TreeWatcher:
    """Sampler of a process tree in a thread, as a context manager.

    Args:
        root: Process id of the tree's root; if it is this process, the thread's own time counts.
        memory: True to sample the memory too.
        every_s: Time between samples.

    Attributes:
        peak: The memory at the largest private part.
    """

    def __init__(self, root: int, *, memory: bool = False, every_s: float = 0.2) -> None:
        self._root, self._memory, self._every_s = root, memory, every_s
        self._processes: dict[tuple[int, str], tuple[str, float]] = {}
        self._lock, self._stop = threading.Lock(), threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self.peak = Memory(0, 0)

    def __enter__(self) -> "TreeWatcher":
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._stop.set()
        self._thread.join()

    def cpu_seconds(self) -> dict[str, float]:
        """Return the seconds since each process began, ended ones included, by process name."""
        total: dict[str, float] = defaultdict(float)
        with self._lock:
            self._sample()
            for name, seconds in self._processes.values():
                total[name] += seconds
        return dict(total)

    def now(self) -> Memory:
        """Return the present memory."""
        return tree_memory(tree_of(self._root))

    def cost_of(self, work: Callable[[], Any]) -> Cost:
        """Return the cost of a piece of work."""
        before, began = sum(self.cpu_seconds().values()), time.monotonic()
        work()
        wall = time.monotonic() - began
        return Cost(sum(self.cpu_seconds().values()) - before, wall)

    def _watch(self) -> None:
        while not self._stop.wait(self._every_s):
            with self._lock:
                self._sample()

    def _sample(self) -> None:
        pids = tree_of(self._root)
        for pid in pids:
            if fields := _stat(pid):
                seconds = (int(fields[11]) + int(fields[12])) * _TICK_S
                self._processes[pid, fields[19]] = (_name(pid), seconds)  # the start time disambiguates reused ids
        if self._memory:
            self.peak = max(self.peak, tree_memory(pids), key=lambda memory: memory.private)


def tree_of(root: int) -> list[int]:
    """Return the ids of a process and its descendants."""
    children = defaultdict(list)
    for pid in (int(name) for name in os.listdir("/proc") if name.isdigit()):
        if fields := _stat(pid):
            children[int(fields[1])].append(pid)
    found = [root]
    for pid in found:
        found += children[pid]
    return found


def tree_memory(pids: list[int]) -> Memory:
    """Return the current memory of processes."""
    private = shared = 0
    for pid in pids:
        try:
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
        except _GONE:
            continue
        sizes = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in lines}
        shared += sizes.get("Pss_Shmem", 0)
        private += sizes.get("Pss", 0) - sizes.get("Pss_Shmem", 0)
    return Memory(private, shared)


def _stat(pid: int) -> list[str]:
    """Return the fields of /proc/PID/stat after the name, state first; none if the process has ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except _GONE:
        return []


def _name(pid: int) -> str:
    """Return a process's kind: Ray's workers by name without their method; tasks and idle workers are one kind."""
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").replace("\0", " ").split()
    except _GONE:
        words = []
    if words and words[0].startswith("ray::"):
        return words[0].partition(".")[0]
    return next((name for name in ("raylet", "gcs_server", "dashboard", "agent") if name in " ".join(words)), "other")
