"""A step of the trainer over a step of the bare TorchRec pipeline, with the same model and batches in memory."""

import statistics
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from benchmarks.one_rank import day_batches, gloo_rank, with_own_denominators
from benchmarks.turns import seconds_in_turns
from benchmarks.workload import DAY, ONE_LAYER_HEAD, PAPER_HEAD, load, project
from models.batch import LogBatch
from pipeline.config.project import Config
from pipeline.ingest.batcher import Batcher, collate
from pipeline.ingest.cursor import BatchCursor
from pipeline.ingest.parts import whole_days
from pipeline.ingest.plan import Header
from pipeline.ingest.receive import Segment
from pipeline.ingest.units import DayLog
from pipeline.lineage.frozen_statistics import load_statistics
from pipeline.lineage.line import Line
from pipeline.log_passes.admission import Admission
from pipeline.trainer import train
from pipeline.trainer.train_job import TrainJob
from pipeline.trainer.worker_setup import Groups, build_state, build_train_pipeline, pin_arithmetic

_HEADS = {"paper": PAPER_HEAD, "one_layer": ONE_LAYER_HEAD}
_STEPS, _QUICK_STEPS, _TURNS = 16, 4, 7
_SIZE = 1024


def run(quick: bool) -> dict[str, Any]:
    """Train a part of a day as a worker does, from memory, and step the same batches by the pipeline alone.

    The trainer's loop is the real one: counted batches, seeds, losses, cursor, report. Its batches are made before, and
    nothing is saved at its end. The sum over the ranks has one rank.

    Args:
        quick: The one-layer head, and a quarter of the steps.
    """
    heads = {"one_layer": ONE_LAYER_HEAD} if quick else _HEADS
    steps, turns = (_QUICK_STEPS, 3) if quick else (_STEPS, _TURNS)
    with (
        project(steps * _SIZE, 2**14, 20_000) as folder,
        tempfile.TemporaryDirectory() as store,
        gloo_rank(f"{store}/store"),
    ):
        groups = Groups.create(300)
        results = {name: _measure(folder, head, groups, turns) for name, head in heads.items()}
    pin_arithmetic(False)
    return {"steps": steps, "batch": _SIZE, "threads": 1, "turns": turns, "goal": 1.05, "heads": results}


def _measure(folder: Path, head: dict[str, Any], groups: Groups, turns: int) -> dict[str, float]:
    config, encoder, day = load(folder, model=head)
    pin_arithmetic(config.workers.deterministic)
    batches = day_batches(config, encoder, day)
    works = {"trainer": _trainer(config, day, batches, groups), "bare": _bare(config, batches, groups)}
    seconds = seconds_in_turns(works, turns)
    differences = [mine - other for mine, other in zip(seconds["trainer"], seconds["bare"], strict=True)]
    ratios = [mine / other for mine, other in zip(seconds["trainer"], seconds["bare"], strict=True)]
    return {
        "trainer_ms": round(1e3 * statistics.median(seconds["trainer"]) / len(batches), 2),
        "bare_ms": round(1e3 * statistics.median(seconds["bare"]) / len(batches), 2),
        "trainer_over_bare": round(statistics.median(ratios), 3),
        "difference_ms": round(1e3 * statistics.median(differences) / len(batches), 2),
    }


def _bare(config: Config, batches: list[LogBatch], groups: Groups) -> Callable[[], None]:
    """Return the steps of a part by the pipeline alone."""
    state = build_state(config, groups.training, torch.device("cpu"))
    pipeline = build_train_pipeline(config, state, torch.device("cpu"))

    def step_all() -> None:
        pipeline.reset()
        feed: Iterator[Any] = map(with_own_denominators, batches)
        for _ in batches:
            pipeline.progress(feed)

    return step_all


def _trainer(config: Config, day: DayLog, batches: list[LogBatch], groups: Groups) -> Callable[[], None]:
    """Return the steps of a part by the trainer."""
    line = Line.of(config.root, config.line)
    statistics, parts, schema = load_statistics(config, line), whole_days([day]), config.log_schema
    job = TrainJob(config, statistics, line, (day.day,), parts, 1, schema, Admission({}, {}, {}), None)
    state = build_state(config, groups.training, torch.device("cpu"))
    with mock.patch("ray.get", lambda kept: kept):  # the admission, which is in no object store here
        trainer = train.Trainer(job, groups, state, torch.device("cpu"))
    header = Header(0, DAY.isoformat(), DAY.isoformat(), attempt="0001")

    def train_part() -> None:
        with (
            mock.patch.object(train, "Batcher", return_value=_Kept(config, batches)),
            mock.patch.object(trainer, "save"),
        ):
            trainer.train_part(Segment(header, iter(())))

    return train_part


class _Kept(Batcher):
    """Batcher whose batches are in memory; padding follows them."""

    def __init__(self, config: Config, batches: list[LogBatch]) -> None:
        self._kept = iter(batches)
        padding = collate(config.log_schema, [], _SIZE)
        padding.cursor = BatchCursor(len(batches), (), padding.in_space.sum(0).numpy())
        self._padding = padding

    def next_batch(self, step: int) -> LogBatch:
        return next(self._kept, self._padding)
