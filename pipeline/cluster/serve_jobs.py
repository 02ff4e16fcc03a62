"""Loop that Ray Train runs on each of its workers: one job after the other, until the command has no more.

Ray Train's controller unpickles what it passes on. Imports that only the workers need, torch and TorchRec first of all,
travel as a reference, unpickled at their use: each process needs 4 s of a core for them, and the controller's would
delay the start of the workers.
"""

import gc
import uuid
from typing import Any

import ray
import ray.train
from ray.train.collective import broadcast_from_rank_zero

from pipeline.cluster.job_queue import Share


def serve_jobs(settings: dict[str, Any]) -> None:
    """Do the jobs of `settings["queue"]`, a `JobQueue`; an error of a job ends the group's start.

    A job's function is called with its argument, and with this rank's iterator over rows.
    """
    queue, context = settings["queue"], ray.train.get_context()
    rank, number = context.get_world_rank(), 0
    start: Any = broadcast_from_rank_zero(uuid.uuid4().hex if rank == 0 else None)
    ray.get(queue.join.remote(start, rank, context.get_world_size()))
    while (share := _next(queue, start, rank, number)) is not None:
        number, result = share.number, _do(share)
        del share  # it holds the stream
        ray.get(queue.finish.remote(start, number, rank, result if rank == 0 else None))


def _next(queue: Any, start: str, rank: int, after: int) -> Share | None:
    share: Any = ray.get(queue.next_job.remote(start, rank, after))
    return share


def _do(share: Share) -> dict[str, Any]:
    """Do a job, and leave no memory of it: a model and its pipeline are in cycles, and the next job has its own."""
    worker, job = ray.get(share.work[0])
    try:
        return worker(job, share.lane)
    finally:
        del worker, job
        gc.collect()
