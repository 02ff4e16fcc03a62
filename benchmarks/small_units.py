"""Time to read a day in row groups of two rows, over the same rows in four row groups, through Ray Data to batches."""

import time
from typing import Any

import ray

from benchmarks.ingest_cpu import Consumer, stream
from benchmarks.workload import WORKERS, load, project
from pipeline.cluster.session import ray_session

_ROWS, _QUICK_ROWS = 2000, 400


def run(quick: bool) -> dict[str, Any]:
    """Measure both ways of writing the same rows, after one reading to start the processes.

    Args:
        quick: A fifth of the rows.
    """
    rows = _QUICK_ROWS if quick else _ROWS
    seconds, units = {}, {}
    for name, row_group_rows in (("large", rows), ("small", 2)):
        with project(rows, row_group_rows, 500) as folder:
            config, encoder, day = load(folder)
            units[name] = len(day.units)
            with ray_session(config):
                consumers = [Consumer.remote() for _ in range(WORKERS)]
                stream(config, encoder, day, 1, consumers)
                started = time.perf_counter()
                stream(config, encoder, day, 1, consumers)
                seconds[name] = time.perf_counter() - started
                for consumer in consumers:
                    ray.kill(consumer)
    each = (seconds["small"] - seconds["large"]) / (units["small"] - units["large"])
    return {
        "ratio": round(seconds["small"] / seconds["large"], 1),
        "seconds": {name: round(value, 2) for name, value in seconds.items()},
        "row_groups": units,
        "milliseconds_per_row_group": round(1000 * each, 1),
    }
