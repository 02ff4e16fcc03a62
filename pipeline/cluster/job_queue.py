"""Queue between a command and the workers that it keeps: a job for all ranks, and the end of each.

The workers of one start belong together: they have one process group, and the stream of a job is split for their
number. When Ray Train starts the group again, the new workers join with another name of their start. Workers of an
earlier start get no more jobs, and what they report is dropped.
"""

import asyncio
import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import ray

_LONGEST_LOOK_S = 1.0


@dataclass(frozen=True, slots=True)
class Job:
    """Work for the workers of one start.

    Args:
        number: Its number, from 1 on; a job that is given again to a later start has a new one.
        work: A reference to the function of a worker and its argument, in a list: Ray would replace it by its value.
        lanes: Iterator over the rows of each rank.
    """

    number: int
    work: Sequence[Any]
    lanes: Sequence[Any]


class Share(NamedTuple):
    """Share of a job that one rank gets; the fields are those of `Job`."""

    number: int
    work: Sequence[Any]
    lane: Any


@dataclass(frozen=True, slots=True)
class Look:
    """News of the queue.

    Args:
        version: Number of changes until now.
        start: Name of the start whose workers are all there; None: none is complete.
        num_ranks: Number of these workers.
        finished: Number of the newest job that all of them have ended; 0: none.
        result: Result of rank 0 for it.
        controller: Handle of Ray Train's controller; None: it has not begun.
        loses_nodes: True once nodes of the present workers are about to be taken away.
    """

    version: int = 0
    start: str | None = None
    num_ranks: int = 0
    finished: int = 0
    result: Any = None
    controller: Any = None
    loses_nodes: bool = False


class JobQueue:
    """Queue of one group of workers; an actor of the command's node on Ray."""

    def __init__(self) -> None:
        self._changed = asyncio.Condition()
        self._version = 0
        self._start: str | None = None
        self._earlier: set[str] = set()
        self._num_ranks = 0
        self._present: set[int] = set()
        self._job: Job | None = None
        self._ended_by: set[int] = set()
        self._submitted, self._finished = 0, 0
        self._of_first, self._result = None, None
        self._work, self._loses_nodes = 0, False
        self._closed = False
        self._controller: Any = None

    # --- Workers ---

    async def join(self, start: str, rank: int, num_ranks: int) -> None:
        """Add a worker of a start; the first worker of a new start takes the place of all workers before it."""
        if start != self._start:
            if start in self._earlier:
                return
            self._forget()
            self._start, self._num_ranks = start, num_ranks
        self._present.add(rank)
        if len(self._present) == self._num_ranks:
            await self._tell()

    async def next_job(self, start: str, rank: int, after: int) -> Share | None:
        """Wait for the next job, and return this rank's share; None: there will be none."""
        async with self._changed:
            await self._changed.wait_for(lambda: not self._goes_on(start) or self._has_job(after))
        if self._job is None or not self._has_job(after) or self._closed or start != self._start:
            return None
        return Share(self._job.number, self._job.work, self._job.lanes[rank])

    def _goes_on(self, start: str) -> bool:
        return start == self._start and not self._closed and not self._loses_nodes

    def _has_job(self, after: int) -> bool:
        return self._job is not None and self._job.number > after

    async def finish(self, start: str, number: int, rank: int, result: Any) -> None:
        """Record the end of a job on a rank, with its result on rank 0."""
        if start != self._start or self._job is None or number != self._job.number:
            return
        self._ended_by.add(rank)
        self._of_first = result if rank == 0 else self._of_first
        if len(self._ended_by) == self._num_ranks:
            self._finished, self._result, self._of_first, self._job = number, self._of_first, None, None
            await self._tell()

    # --- Controller of Ray Train ---

    async def begin(self, controller: Any) -> None:
        """Record the controller."""
        self._controller = controller
        await self._tell()

    async def lose_nodes(self) -> None:
        """Let the present workers return after their present job: nodes of theirs are about to be taken away."""
        self._loses_nodes = True
        await self._tell()

    async def forget_workers(self) -> None:
        """Give no more jobs to the present workers: the controller is about to end them."""
        self._forget()
        await self._tell()

    # --- Command ---

    async def look(self, version: int) -> Look:
        """Return the state once it is newer than a version, or after a second."""
        async with self._changed:
            newer = self._changed.wait_for(lambda: self._version > version)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(newer, _LONGEST_LOOK_S)
        whole = self._start is not None and len(self._present) == self._num_ranks
        start = self._start if whole else None
        news = (self._finished, self._result, self._controller, self._loses_nodes)
        return Look(self._version, start, self._num_ranks, *news)

    async def submit(self, start: str, job: Job) -> bool:
        """Give a job to the workers of a start; return False if they take none any more."""
        if job.number == self._submitted:  # the call is repeated
            return True
        if not self._goes_on(start):
            return False
        self._job, self._ended_by, self._of_first, self._result = job, set(), None, None
        self._submitted = job.number
        await self._tell()
        return True

    async def begin_work(self, number: int) -> None:
        """Record that the command has other work, whose failures are counted from 0."""
        self._work = number

    async def work(self) -> int:
        """Return the number of the command's present work."""
        return self._work

    async def close(self) -> None:
        """Let the workers return after their present job."""
        self._closed = True
        await self._tell()

    def _forget(self) -> None:
        if self._start is not None:
            self._earlier.add(self._start)
        self._start, self._job, self._present, self._ended_by = None, None, set(), set()
        self._loses_nodes = False

    async def _tell(self) -> None:
        async with self._changed:
            self._version += 1
            self._changed.notify_all()


def queue_on_this_node() -> Any:
    """Return a new queue, which lives and ends with this process's node; calls are repeated where a network fails."""
    node = {ray._raylet.RAY_NODE_ID_KEY: ray.get_runtime_context().get_node_id()}
    options: dict[str, Any] = {"num_cpus": 0, "max_concurrency": 10_000, "max_task_retries": -1}
    return ray.remote(JobQueue).options(**options, label_selector=node).remote()
