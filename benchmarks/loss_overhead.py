"""Masked loss with counts summed over 2 ranks, against a mean over the rank's own rows, as a share of a step."""

import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.multiprocessing.spawn import spawn

from benchmarks.one_rank import day_batches, gloo_rank, round_and_round, with_own_denominators
from benchmarks.workload import ONE_LAYER_HEAD, PAPER_HEAD, WORKERS, load, project
from models.assembly import task_heads
from models.batch import LogBatch
from models.loss import UnionSpaceLoss
from pipeline.config.project import Config
from pipeline.trainer.step_sync import CountedBatches
from pipeline.trainer.worker_setup import Groups, build_state, build_train_pipeline, pin_arithmetic

_STEPS, _QUICK_STEPS, _TURNS = 10, 2, 9
_SIZE, _BATCHES = 1024, 8


class LocalMean(nn.Module):
    """Mean of the row losses over all rows of this rank, a label outside a space taken for 0: the least possible work.

    Args:
        regressions: Mask of the tasks with a squared error after a sigmoid; the others are binary.
    """

    def __init__(self, regressions: list[bool]) -> None:
        super().__init__()
        self.binary = [task for task, regression in enumerate(regressions) if not regression]
        self.regression = [task for task, regression in enumerate(regressions) if regression]

    def forward(self, outputs: Tensor, labels: Tensor, *_: Tensor) -> tuple[Tensor, Tensor]:
        """Compute the sum of the tasks' losses, and each of them."""
        binary, regression = self.binary, self.regression
        crossed = F.binary_cross_entropy_with_logits(outputs[:, binary], labels[:, binary], reduction="none").mean(0)
        squared = F.mse_loss(outputs[:, regression].sigmoid(), labels[:, regression], reduction="none").mean(0)
        losses = torch.cat([crossed, squared])
        return losses.sum(), losses


def run(quick: bool) -> dict[str, Any]:
    """Measure both losses alone, with the way of their denominators, and within a step.

    Alone, the sum of the counts is waited for at once; in a step it has a whole step to arrive. The share of the loss
    alone is thus an upper bound, and the difference of two steps carries the noise of two steps.

    Args:
        quick: The one-layer head, and a fifth of the steps of a turn.
    """
    head = ONE_LAYER_HEAD if quick else PAPER_HEAD
    steps, turns = (_QUICK_STEPS, 3) if quick else (_STEPS, _TURNS)
    with project(WORKERS * _BATCHES * _SIZE, 2**14, 20_000) as folder, tempfile.TemporaryDirectory() as store:
        spawn(_on_a_rank, args=(str(folder), store, head, steps, turns), nprocs=WORKERS)
        found = [torch.load(Path(store, str(rank)), weights_only=True) for rank in range(WORKERS)]
    slowest = {name: [max(turn) for turn in zip(*(one[name] for one in found), strict=True)] for name in found[0]}
    middle = {name: statistics.median(seconds) for name, seconds in slowest.items()}
    pairs = zip(slowest["step"], slowest["step_local"], strict=True)
    return {
        "ranks": WORKERS,
        "batch": _SIZE,
        "threads": 1,
        "turns": turns,
        "head": "one_layer" if quick else "paper",
        "milliseconds": {name: round(1e3 * value, 3) for name, value in middle.items()},
        "share_alone": round((middle["loss"] - middle["loss_local"]) / middle["step"], 4),
        "share_within_a_step": round(statistics.median((a - b) / a for a, b in pairs), 4),
        "goal": 0.02,
    }


def _on_a_rank(rank: int, folder: str, store: str, head: dict[str, Any], steps: int, turns: int) -> None:
    """Measure on one rank, and save its seconds by name and turn."""
    config, encoder, day = load(Path(folder), model=head)
    batches = day_batches(config, encoder, day)[rank::WORKERS]
    with gloo_rank(f"{store}/store", rank, WORKERS):
        pin_arithmetic(config.workers.deterministic)
        groups = Groups.create(300)
        works = _losses(config, batches) | _steps(config, batches, groups, steps)
        together = {name: partial(_at_once, work, groups) for name, work in works.items()}
        measured: dict[str, list[float]] = {name: [] for name in together}
        for _ in range(turns + 1):
            for name, work in together.items():
                measured[name].append(work())
        torch.save({name: seconds[1:] for name, seconds in measured.items()}, Path(store, str(rank)))


def _at_once(work: Callable[[], int], groups: Groups) -> float:
    """Return the seconds of one of the repetitions that a work makes, begun on all ranks together."""
    dist.barrier(group=groups.control)
    started = time.perf_counter()
    repeats = work()
    return (time.perf_counter() - started) / repeats


def _local(config: Config) -> LocalMean:
    return LocalMean([task.kind == "regression" for task in config.log_schema.tasks])


def _counted(batches: list[LogBatch]) -> CountedBatches:
    """Return the batches with summed counts, over a group that nothing else uses; collective."""
    num_tasks = batches[0].labels.shape[1]
    ones, zeros, feed = torch.ones(num_tasks), torch.zeros(num_tasks), round_and_round(batches)
    group: Any = dist.new_group(backend="gloo")
    return CountedBatches(lambda _: next(feed), 0, lambda _: ones, lambda: zeros, group)


def _losses(config: Config, batches: list[LogBatch]) -> dict[str, Callable[[], int]]:
    """Return the loss forward and backward with its batches, in both forms."""
    heads = task_heads(config.log_schema.tasks)
    outputs = torch.randn(_SIZE, sum(head.num_outputs for head in heads), requires_grad=True)
    feeds = {
        "loss": (_counted(batches), UnionSpaceLoss(heads)),
        "loss_local": (map(with_own_denominators, round_and_round(batches)), _local(config)),
    }

    def work(name: str) -> int:
        feed, loss = feeds[name]
        for _ in range(50):
            batch = next(feed)
            terms = (batch.labels, batch.in_space, batch.weight, batch.denominators, batch.loss_weights)
            loss(outputs, *terms)[0].backward()
        return 50

    return {name: partial(work, name) for name in feeds}


def _steps(config: Config, batches: list[LogBatch], groups: Groups, steps: int) -> dict[str, Callable[[], int]]:
    """Return steps of two equal models by TorchRec's pipeline, in both forms."""
    works: dict[str, Callable[[], int]] = {}
    for name in ("step", "step_local"):
        state = build_state(config, groups.training, torch.device("cpu"))
        feed: Any = _counted(batches)
        if name == "step_local":
            state.model.module.loss = _local(config)
            feed = map(with_own_denominators, round_and_round(batches))
        pipeline = build_train_pipeline(config, state, torch.device("cpu"))
        works[name] = partial(_progress, pipeline, feed, steps)
    return works


def _progress(pipeline: Any, feed: Any, steps: int) -> int:
    for _ in range(steps):
        pipeline.progress(feed)
    return steps
