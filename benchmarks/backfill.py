"""CPU-seconds of a backfill of 5 checkpoints on 5 days, over one pass of reading and over 25 single evaluations."""

import contextlib
import os
import statistics
import time
from collections.abc import Iterator, Sequence
from datetime import date
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest import mock

import yaml

from benchmarks.processes import Cost, TreeWatcher
from benchmarks.workload import WORKERS, raw_config
from features.synthetic.logs import SyntheticConfig, write_day
from pipeline.cluster.session import ray_session
from pipeline.config.load import parse_config
from pipeline.config.project import Config
from pipeline.evaluation import backfill as of_backfill
from pipeline.evaluation.backfill import backfill
from pipeline.evaluation.cells import AskedCells
from pipeline.evaluation.evaluate import evaluate
from pipeline.ingest.bundles import group_bundles
from pipeline.ingest.datasource import read_bundles
from pipeline.ingest.plan import RunPlan, StreamStart
from pipeline.log_passes.statistics import fit_statistics
from pipeline.storage.files import Storage
from pipeline.trainer.train_line import train

_ROWS, _QUICK_ROWS, _TRAINED_ROWS = 2**17, 2**14, 2**12
_DAYS = [f"2026-11-{number:02d}" for number in range(1, 11)]
_CHECKPOINTS, _MEASURED = _DAYS[:5], _DAYS[5:]
_STARTS = 3


def run(quick: bool) -> dict[str, Any]:
    """Measure a backfill, and single evaluations of the same cells, within one Ray.

    Reading is the work of the data tasks of each plan, done in this process: decoding, encoding and packing. The fixed
    cost is what the same command costs, with as many checkpoints, on a day of few rows: a stream, and the loading of
    each model. The workers have started before. It is taken out of the backfill, and of the evaluation of one
    checkpoint on the five days, which counts five times. Each fixed cost is the median of 3.

    Args:
        quick: An eighth of the rows.
    """
    rows = _QUICK_ROWS if quick else _ROWS
    with _history(rows) as config, ray_session(config), TreeWatcher(os.getpid()) as watcher:
        fit_statistics(config, _CHECKPOINTS)
        train(config, _CHECKPOINTS, passes=1)
        asked = AskedCells(f"{_CHECKPOINTS[0]}..{_CHECKPOINTS[-1]}", _MEASURED)
        tiny = AskedCells(asked.checkpoints, _CHECKPOINTS[:1])
        evaluate(config, tiny.days, None, [])  # workers start and import
        start = _median([watcher.cost_of(lambda: _anew(config, tiny)) for _ in range(_STARTS)])
        single_start = _median([watcher.cost_of(lambda: evaluate(config, tiny.days, None, [])) for _ in range(_STARTS)])
        row = watcher.cost_of(lambda: evaluate(config, _MEASURED, None, [])).less(single_start)
        Storage(config.root).remove("metrics")
        reading = _reading_s(config, asked)
        one_pass = _reading_s(config, AskedCells(_CHECKPOINTS[-1], _MEASURED))
        whole = watcher.cost_of(lambda: backfill(config, asked)).less(start)
    return {
        "rows_per_day": rows,
        "reading_over_one_pass": round(reading / one_pass, 2),
        "reading_goal": 1.2,
        "cpu_over_25_evaluations": round(whole.cpu / (len(_CHECKPOINTS) * row.cpu), 3),
        "wall_over_25_evaluations": round(whole.wall / (len(_CHECKPOINTS) * row.wall), 3),
        "whole_goal": 0.4,
        "backfill_cpu_s": round(whole.cpu, 1),
        "backfill_reading_cpu_s": round(reading, 2),
        "one_pass_reading_cpu_s": round(one_pass, 2),
        "five_evaluations_cpu_s": round(row.cpu, 2),
        "backfill_wall_s": round(whole.wall, 1),
        "five_evaluations_wall_s": round(row.wall, 2),
        "fixed_cpu_s": round(start.cpu, 1),
        "evaluation_fixed_cpu_s": round(single_start.cpu, 1),
    }


@contextlib.contextmanager
def _history(rows: int) -> Iterator[Config]:
    """Make a project with five short days to train, five days of rows to measure, and statistics; remove it."""
    with TemporaryDirectory(prefix="counterpoise-bench-") as folder:
        for days, each in ((_CHECKPOINTS, _TRAINED_ROWS), (_MEASURED, rows)):
            world = SyntheticConfig(
                seed=7,
                first_day=date(2026, 11, 1),
                rows_per_day=each,
                num_users=20_000,
                num_videos=20_000,
                num_authors=2_000,
                files_per_day=4,
                row_group_rows=2**14,
            )
            for day in days:
                write_day(world, date.fromisoformat(day), f"{folder}/logs")
        raw = raw_config(folder)
        Path(folder, "config.yaml").write_text(yaml.safe_dump(raw, sort_keys=False))
        config = parse_config(raw, "benchmark")
        yield config


def _anew(config: Config, asked: AskedCells) -> None:
    """Measure cells again: those that are done would be left out."""
    Storage(config.root).remove("metrics")
    backfill(config, asked)


def _median(costs: Sequence[Cost]) -> Cost:
    return Cost(statistics.median(cost.cpu for cost in costs), statistics.median(cost.wall for cost in costs))


def _reading_s(config: Config, asked: AskedCells) -> float:
    """Return the CPU-seconds of the data tasks of a backfill, done in this process; nothing is measured."""
    plans: list[RunPlan] = []

    def keep(config: Config, plan: RunPlan, *rest: Any) -> dict[str, Any]:
        plans.append(plan)
        return {}

    with mock.patch.object(of_backfill, "run_workers", keep):
        backfill(config, asked)
    (plan,) = plans
    segments = plan.segments([StreamStart()], WORKERS)
    read, blank = plan.read_plan(segments), plan.encoder.empty()
    began = time.process_time()
    for task in group_bundles(plan.bundles(segments, WORKERS), plan.block_rows):
        for _ in read_bundles(read, task, blank):
            pass
    return time.process_time() - began
