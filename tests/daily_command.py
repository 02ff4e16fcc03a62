"""The daily command with one fault in it, for a process of its own: `python daily_command.py DAY POINT CONFIG`.

It is killed at a point, by itself or by one of its workers; at `none` it ends as it should.
"""

import functools
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import ray
from faults import after_step, before_manifest, kill_me, replace_worker
from local_training import on_processes

from models.ranker import StepOutput
from pipeline.daily.ray_work import RayWork
from pipeline.evaluation import evaluate
from pipeline.lineage.ledger import Ledger
from pipeline.lineage.line import Line
from pipeline.trainer.train import Trainer, train_worker

EVERY = 10  # steps between two checkpoints of a day
_STEPS = {"first step": 1, "mid-day": EVERY + 5}
_WORK = {"preflight": "profile", "predict": "measure"}

ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # Ray's workers cannot import this file


def main_on_processes(day: str, point: str, file: str, survivors: Path | None) -> int:
    """Run the command on processes of the test's own, which may outlive it; return its exit code."""
    with on_processes(survivors):
        return main(day, point, file)


def main(day: str, point: str, file: str) -> int:
    """Run the command, which is killed at a point; return its exit code."""
    from jobs import daily
    from jobs.command import command

    if point in _WORK:
        _die_after(RayWork, _WORK[point])
    elif point == "asked to end":
        asking = functools.partial(_worker_that_asks, pid=os.getpid())
        evaluate.evaluate_worker = asking  # pyright: ignore[reportAttributeAccessIssue]
    elif point == "before ledger":
        Ledger.enter = kill_me
    elif point == "before LATEST":
        Line.publish = kill_me
    elif point in _STEPS:
        replace_worker(setattr, _worker_that_kills, step=_STEPS[point], pid=os.getpid())
    elif point == "checkpoint write":
        replace_worker(setattr, _worker_that_kills_at_a_manifest, pid=os.getpid())
    sys.argv = ["daily", "--config", file, "--day", day]
    return command(daily.add_arguments, daily.run)


def _die_after(owner: Any, name: str) -> None:
    work = getattr(owner, name)
    setattr(owner, name, lambda *arguments: kill_me(work(*arguments)))


def _worker_that_kills(job: Any, lane: Any, step: int, pid: int) -> dict[str, Any]:
    """`train_worker`, whose rank 0 kills the driver after a number of its own steps."""
    own = [0]

    def kill(trainer: Trainer, output: StepOutput | None) -> None:
        own[0] += 1
        if own[0] == step and ray.train.get_context().get_world_rank() == 0:
            os.kill(pid, signal.SIGKILL)

    after_step(setattr, kill)
    return train_worker(job, lane)


def _worker_that_kills_at_a_manifest(job: Any, lane: Any, pid: int) -> dict[str, Any]:
    """`train_worker`, which kills the driver before the manifest of the day's third checkpoint, or a later one."""
    own = [0]

    def count(trainer: Trainer, output: StepOutput | None) -> None:
        own[0] += 1

    def kill() -> None:
        if own[0] > 2 * EVERY:
            os.kill(pid, signal.SIGKILL)
            time.sleep(0.2)

    after_step(setattr, count)
    before_manifest(setattr, kill)
    return train_worker(job, lane)


def _worker_that_asks(job: Any, lane: Any, pid: int) -> dict[str, Any]:
    """`evaluate_worker`, whose rank 0 first asks the driver to end."""
    if ray.train.get_context().get_world_rank() == 0:
        os.kill(pid, signal.SIGTERM)
    return evaluate.evaluate_worker(job, lane)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
