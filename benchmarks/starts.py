"""Starts of Ray Train and CPU-seconds of a daily run of one small day, and of one more day of a range of small days."""

import argparse
import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest import mock

from benchmarks.processes import Cost, TreeWatcher
from benchmarks.workload import write_config
from features.synthetic.logs import SyntheticConfig, make_part, write_day
from jobs import daily
from pipeline.cluster.trainer_of_jobs import TorchTrainer

_FIRST = date(2026, 11, 1)
_ROWS, _DAYS, _QUICK_DAYS = 1_000, 30, 3
_GOALS = {"starts": 1, "seconds_a_further_day": 3.0}


def run(quick: bool) -> dict[str, Any]:
    """Run `jobs.daily` on the first day, on a second one, and on the days after it in one command.

    The first day has no model to measure yet, so the second one is the single daily run. A further day is the range's
    cost without the single day's, over the days by which it is longer. Every command starts and ends its Ray. Three
    tenths of the users are held out, which gives the gate enough rows to measure.

    Args:
        quick: 3 days in the range instead of 30.
    """
    days = _QUICK_DAYS if quick else _DAYS
    days = int(os.environ.get("BENCH_DAYS", days))
    with _history(days + 2) as folder, TreeWatcher(os.getpid()) as watcher:
        found = {
            name: _run(folder, first, number, watcher)
            for name, first, number in (("first", 0, 1), ("single", 1, 1), ("range", 2, days))
        }
    single, several = found["single"], found["range"]
    further = several["cost"].less(single["cost"])
    return {
        "rows_a_day": _ROWS,
        "workers": 2,
        "days_of_the_range": days,
        "starts_of_ray_train": {name: one["starts"] for name, one in found.items()},
        "cpu_s": {name: round(one["cost"].cpu, 1) for name, one in found.items()},
        "seconds": {name: round(one["cost"].wall, 1) for name, one in found.items()},
        "cpu_s_a_further_day": round(further.cpu / (days - 1), 1),
        "seconds_a_further_day": round(further.wall / (days - 1), 1),
        "goals": _GOALS,
    }


@contextmanager
def _history(num_days: int) -> Iterator[Path]:
    """Make a project with so many days of small logs, and statistics of the first; remove it at the end."""
    with TemporaryDirectory(prefix="counterpoise-bench-") as folder:
        world = SyntheticConfig(
            seed=7, first_day=_FIRST, rows_per_day=_ROWS, num_users=500, num_videos=500, num_authors=50
        )
        for number in range(num_days):
            write_day(world, _FIRST + timedelta(number), f"{folder}/logs")
        write_config(folder, make_part(world, _FIRST, 0), holdout={"column": "user_id", "share": 0.3})
        yield Path(folder)


def _run(folder: Path, first: int, number: int, watcher: TreeWatcher) -> dict[str, Any]:
    """Run the daily job on a range of days; return its cost, and how often Ray Train started."""
    parser = argparse.ArgumentParser()
    daily.add_arguments(parser)
    days = "..".join((_FIRST + timedelta(offset)).isoformat() for offset in (first, first + number - 1))
    reasons = ["--accept-anomaly", "a benchmark", "--accept-gate", "a benchmark"]
    arguments = parser.parse_args(["--config", str(folder / "config.yaml"), "--days", days, *reasons])
    starts: list[object] = []
    fit = TorchTrainer.fit

    def counted(trainer: TorchTrainer) -> Any:
        starts.append(trainer)
        return fit(trainer)

    with mock.patch.object(TorchTrainer, "fit", counted):
        cost: Cost = watcher.cost_of(lambda: daily.run(arguments))
    return {"cost": cost, "starts": len(starts)}
