"""The queue between a command and its workers: who gets a job, and when it has ended."""

import asyncio
import time
from collections.abc import Callable, Coroutine
from typing import Any

from pipeline.cluster.job_queue import Job, JobQueue, Look


def _run(work: Callable[[JobQueue], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(work(JobQueue()))


def _job(number: int) -> Job:
    return Job(number, ["work"], ["lane of 0", "lane of 1"])


async def _join(queue: JobQueue, start: str) -> None:
    for rank in range(2):
        await queue.join(start, rank, 2)


def test_a_job_ends_with_its_last_rank() -> None:
    """Catches a job that is called done while a rank is within it: its error would be lost."""

    async def work(queue: JobQueue) -> None:
        await queue.join("a", 1, 2)
        assert (await queue.look(0)).start is None
        await queue.join("a", 0, 2)
        assert (await queue.look(0)).start == "a"
        await queue.submit("a", _job(1))
        assert await queue.next_job("a", 1, 0) == (1, ["work"], "lane of 1")
        await queue.finish("a", 1, 0, "result")
        assert (await queue.look(0)).finished == 0
        await queue.finish("a", 1, 1, None)
        found = await queue.look(0)
        assert (found.finished, found.result) == (1, "result")

    _run(work)


def test_workers_of_an_earlier_start_are_not_heard() -> None:
    """Catches a worker of an ended start that takes a lane, ends a job, or takes the place of the new workers."""

    async def work(queue: JobQueue) -> None:
        await _join(queue, "a")
        await queue.submit("a", _job(1))
        waiting = asyncio.create_task(queue.next_job("a", 0, 1))
        await _join(queue, "b")
        assert await waiting is None
        assert not await queue.submit("a", _job(2))  # planned for workers that have ended meanwhile
        await queue.submit("b", _job(3))
        await queue.join("a", 0, 2)
        assert await queue.next_job("a", 0, 0) is None
        for rank in range(2):
            await queue.finish("a", 3, rank, "of a")
        assert (await queue.look(0)).finished == 0
        assert (await queue.next_job("b", 0, 0)) == (3, ["work"], "lane of 0")

    _run(work)


def test_a_failed_job_is_given_to_no_later_start_by_itself() -> None:
    """Catches lanes that were planned for the ranks of an earlier start."""

    async def work(queue: JobQueue) -> None:
        await _join(queue, "a")
        await queue.submit("a", _job(1))
        await queue.forget_workers()
        assert (await queue.look(0)).start is None
        await _join(queue, "b")
        waiting = asyncio.create_task(queue.next_job("b", 0, 0))
        await asyncio.sleep(0.05)
        assert not waiting.done()
        await queue.close()
        assert await waiting is None

    _run(work)


def test_a_look_waits_for_news() -> None:
    """Catches a command that asks again and again for hours, and one that never looks whether Ray Train has ended."""

    async def work(queue: JobQueue) -> None:
        began = time.monotonic()
        assert await queue.look(0) == Look()
        assert 0.5 < time.monotonic() - began < 5
        looking = asyncio.create_task(queue.look(0))
        await queue.join("a", 0, 1)
        assert (await looking).start == "a"

    _run(work)


def test_a_repeated_call_changes_nothing() -> None:
    """Catches a call that Ray repeats after a fault of the network, and that makes a rank's end of a job forgotten."""

    async def work(queue: JobQueue) -> None:
        await _join(queue, "a")
        await queue.submit("a", _job(1))
        await queue.finish("a", 1, 0, "result")
        await queue.submit("a", _job(1))
        await queue.join("a", 0, 2)
        await queue.finish("a", 1, 1, None)
        await queue.finish("a", 1, 1, None)
        await queue.submit("a", _job(1))
        found = await queue.look(0)
        assert (found.finished, found.result) == (1, "result")
        waiting = asyncio.create_task(queue.next_job("a", 0, 1))
        await asyncio.sleep(0.05)
        assert not waiting.done()
        await queue.close()
        await waiting

    _run(work)


def test_workers_of_a_node_that_goes_away() -> None:
    """Catches a job that begins on them, a job within which they end, and ranks of which some get a job."""

    async def work(queue: JobQueue) -> None:
        await _join(queue, "a")
        assert await queue.submit("a", _job(1))
        assert await queue.next_job("a", 0, 0) is not None
        await queue.lose_nodes()
        assert await queue.next_job("a", 1, 0) is not None
        await queue.finish("a", 1, 0, "result")
        assert await queue.next_job("a", 0, 1) is None
        await queue.finish("a", 1, 1, None)
        assert (await queue.look(0)).result == "result"
        assert not await queue.submit("a", _job(2))
        assert await queue.next_job("a", 1, 1) is None
        await _join(queue, "b")
        assert await queue.submit("b", _job(3))

    _run(work)


def test_the_result_is_sent_with_the_end_alone() -> None:
    """Catches megabytes of figures that are sent for every rank that ends, 512 of them."""

    async def work(queue: JobQueue) -> None:
        await _join(queue, "a")
        await queue.submit("a", _job(1))
        version = (await queue.look(0)).version
        await queue.finish("a", 1, 0, "result")
        found = await queue.look(version)
        assert (found.version, found.result) == (version, None)

    _run(work)
