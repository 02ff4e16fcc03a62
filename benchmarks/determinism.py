"""Cost of deterministic kernels: time of a step with `workers.deterministic` over that without, in turns."""

import statistics
import tempfile
import time
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from benchmarks.workload import PAPER_HEAD, load, project
from models.batch import RankingBatch
from pipeline.ingest.batcher import Batcher
from pipeline.ingest.bundles import PlannedParcel
from pipeline.ingest.datasource import ReadPlan, read_parcels
from pipeline.storage.files import Storage
from pipeline.trainer.worker_setup import Groups, build_state, build_train_pipeline, pin_arithmetic

_STEPS, _QUICK_STEPS, _TURNS = 40, 10, 5


def run(quick: bool) -> dict[str, Any]:
    """Train the paper's head on one rank, on the CPU, with and without deterministic kernels in turns.

    Args:
        quick: A quarter of the steps of a turn.
    """
    steps = _QUICK_STEPS if quick else _STEPS
    with project(2**15, 2**15, 20_000) as folder, tempfile.TemporaryDirectory() as store:
        torch.set_num_threads(1)
        dist.init_process_group("gloo", f"file://{store}/store", timedelta(minutes=5), rank=0, world_size=1)
        try:
            seconds = _measure(_batches(folder), folder, steps)
        finally:
            dist.destroy_process_group()
            pin_arithmetic(False)
    ratios = [on / off for on, off in zip(seconds[True], seconds[False], strict=True)]
    return {
        "device": "cpu",
        "threads": 1,
        "steps_per_turn": steps,
        "ms_per_step": round(1e3 * statistics.median(seconds[True]), 2),
        "deterministic_over_not": round(statistics.median(ratios), 3),
    }


def _measure(batches: list[RankingBatch], folder: Any, steps: int) -> dict[bool, list[float]]:
    """Return the seconds of a step in each turn, keyed by `deterministic`."""
    config, _, _ = load(folder, model=PAPER_HEAD)
    state = build_state(config, Groups.create(300).training, torch.device("cpu"))
    pipeline = build_train_pipeline(config, state, torch.device("cpu"))
    feed = _round_and_round(batches)
    seconds: dict[bool, list[float]] = {True: [], False: []}
    for turn in range(_TURNS + 1):
        for deterministic in (True, False):
            pin_arithmetic(deterministic)
            started = time.perf_counter()
            for _ in range(steps):
                pipeline.progress(feed)
            if turn:  # the first warms up
                seconds[deterministic].append((time.perf_counter() - started) / steps)
    return seconds


def _batches(folder: Any) -> list[RankingBatch]:
    config, encoder, day = load(folder, model=PAPER_HEAD)
    plan = ReadPlan(Storage(config.logs.path), encoder, (0,), config.seed, shuffle_rows=True)
    parcels = read_parcels(plan, [PlannedParcel("unit", 0, index, unit) for index, unit in enumerate(day.units)])
    size = config.ingest.batch_size
    batcher = Batcher(config.log_schema, day.units, parcels, size, interleave=1)
    batches = [batcher.next_batch(step) for step in range(day.num_rows // size)]
    ones = torch.ones(len(config.log_schema.tasks))
    return [batch.for_step((batch.in_space * batch.weight).sum(0), ones) for batch in batches]


def _round_and_round(batches: list[RankingBatch]) -> Iterator[RankingBatch]:
    while True:
        yield from batches
