"""Rows per CPU-second of all processes with 1, 2 and 4 workers: a training of few passes over one day, and of many."""

import os
import statistics
from functools import partial
from typing import Any

from benchmarks.processes import Cost, TreeWatcher
from benchmarks.workload import DAY, PAPER_HEAD, load, project
from pipeline.cluster.session import ray_session
from pipeline.config.project import Config
from pipeline.lineage.frozen_statistics import STATISTICS
from pipeline.lineage.line import Line
from pipeline.trainer.train_line import train

_WORKERS, _QUICK_WORKERS = (1, 2, 4), (1, 2)
_ROWS, _QUICK_ROWS = 2**16, 2**13
_PASSES = (1, 5)
_FLAT = 1.1


def run(quick: bool) -> dict[str, Any]:
    """Train the paper's head, each number of workers in turns, within one Ray; batches have 1,024 rows a worker.

    The slope between 1 and 5 passes over the day leaves the fixed cost of a training out of the figure; the workers
    have started before. All workers share the cores of
    this machine, so that the wall time says nothing about a cluster's.

    Args:
        quick: An eighth of the rows, one turn, 1 and 2 workers; otherwise 5 turns.
    """
    rows, turns, counts = (_QUICK_ROWS, 1, _QUICK_WORKERS) if quick else (_ROWS, 5, _WORKERS)
    counts = tuple(int(word) for word in os.environ.get("BENCH_WORKERS", "").split()) or counts
    turns = int(os.environ.get("BENCH_TURNS", turns))
    sections: dict[str, Any] = {"model": PAPER_HEAD, "ray": {"num_cpus": max(counts) + 2}}
    found: dict[int, list[Cost]] = {workers: [] for workers in counts}
    with project(rows, 2**12, 20_000, **sections) as folder:
        config, _, _ = load(folder)
        with ray_session(config), TreeWatcher(os.getpid()) as watcher:
            for turn in range(turns):
                for workers in counts:
                    found[workers].append(_slope(config, workers, turn, watcher))
    return _figures(found, rows)


def _slope(config: Config, workers: int, turn: int, watcher: TreeWatcher) -> Cost:
    """Return the cost of the passes by which a long training exceeds a short one, on workers that have trained."""
    days = [DAY.isoformat()]
    train(_of(config, workers, turn, 0), days, 1)
    short, long = (
        watcher.cost_of(partial(train, _of(config, workers, turn, passes), days, passes)) for passes in _PASSES
    )
    return long.less(short)


def _of(config: Config, workers: int, turn: int, passes: int) -> Config:
    """Return the config with so many workers, on a line of its own."""
    name = f"w{workers}-t{turn}-p{passes}"
    statistics = Line.of(config.root, config.line).storage.read(STATISTICS)
    Line.of(config.root, name).storage.write(STATISTICS, statistics)
    num = config.workers.model_copy(update={"num": workers})
    return config.model_copy(update={"line": name, "workers": num})


def _figures(found: dict[int, list[Cost]], rows: int) -> dict[str, Any]:
    measured = rows * (_PASSES[1] - _PASSES[0])
    rates = {workers: statistics.median(measured / cost.cpu for cost in costs) for workers, costs in found.items()}
    return {
        "rows": measured,
        "batch": 1024,
        "threads": 1,
        "cores": os.cpu_count(),
        "turns": len(next(iter(found.values()))),
        "rows_per_cpu_second": {str(workers): round(rate) for workers, rate in rates.items()},
        "cpu_s_per_million_rows": {str(workers): round(1e6 / rate, 1) for workers, rate in rates.items()},
        "wall_s_per_million_rows": {
            str(workers): round(1e6 * statistics.median(cost.wall for cost in costs) / measured, 1)
            for workers, costs in found.items()
        },
        "largest_over_smallest": round(max(rates.values()) / min(rates.values()), 3),
        "goal": _FLAT,
    }
