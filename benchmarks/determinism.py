"""Cost of deterministic kernels: time of a step with `workers.deterministic` over that without, in turns."""

import statistics
import tempfile
import time
from typing import Any

import torch

from benchmarks.one_rank import day_batches, gloo_rank, round_and_round, with_own_denominators
from benchmarks.workload import PAPER_HEAD, load, project
from models.batch import RankingBatch
from pipeline.trainer.worker_setup import Groups, build_state, build_train_pipeline, pin_arithmetic

_STEPS, _TURNS = 40, 5
_QUICK_STEPS, _QUICK_TURNS = 3, 2


def run(quick: bool) -> dict[str, Any]:
    """Train the paper's head on one rank, on the CPU, with and without deterministic kernels in turns.

    Args:
        quick: 2 turns of 3 steps.
    """
    steps, turns = (_QUICK_STEPS, _QUICK_TURNS) if quick else (_STEPS, _TURNS)
    with project(2**15, 2**15, 20_000) as folder, tempfile.TemporaryDirectory() as store:
        batches = [with_own_denominators(batch) for batch in day_batches(*load(folder, model=PAPER_HEAD))]
        with gloo_rank(f"{store}/store"):
            seconds = _measure(batches, folder, steps, turns)
        pin_arithmetic(False)
    ratios = [on / off for on, off in zip(seconds[True], seconds[False], strict=True)]
    return {
        "device": "cpu",
        "threads": 1,
        "steps_per_turn": steps,
        "ms_per_step": round(1e3 * statistics.median(seconds[True]), 2),
        "deterministic_over_not": round(statistics.median(ratios), 3),
    }


def _measure(batches: list[RankingBatch], folder: Any, steps: int, turns: int) -> dict[bool, list[float]]:
    """Return the seconds of a step in each turn, keyed by `deterministic`."""
    config, _, _ = load(folder, model=PAPER_HEAD)
    state = build_state(config, Groups.create(300).training, torch.device("cpu"))
    pipeline = build_train_pipeline(config, state, torch.device("cpu"))
    feed = round_and_round(batches)
    seconds: dict[bool, list[float]] = {True: [], False: []}
    for turn in range(turns + 1):
        for deterministic in (True, False):
            pin_arithmetic(deterministic)
            started = time.perf_counter()
            for _ in range(steps):
                pipeline.progress(feed)
            if turn:  # the first warms up
                seconds[deterministic].append((time.perf_counter() - started) / steps)
    return seconds
