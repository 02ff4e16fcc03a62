"""CPU time of reading a unit of two rows, in days of 1,000, 10,000 and 150,000 units, through Ray Data to batches."""

import os
import shutil
import statistics
import time
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

from benchmarks.ingest_cpu import Consumer, stream
from benchmarks.processes import TreeWatcher
from benchmarks.workload import DAY, WORKERS, load, project
from pipeline.cluster.session import ray_session
from pipeline.ingest.units import DayLog, Units, list_days
from pipeline.storage.files import Storage

_SIZES, _QUICK_SIZES = (1_000, 10_000), (100, 400)
_LARGEST = 150_000  # read once
_ROWS_OF_A_UNIT, _UNITS_OF_A_FILE = 2, 100
_SMALLEST = 20  # units of the reading that is taken for the fixed costs
_FLAT = 1.2


def run(quick: bool) -> dict[str, Any]:
    """Measure readings of the first units of a day, one after the other, within one Ray.

    The cost of a reading of 20 units is taken out of each. A file has 100 row groups; all files have the same rows,
    under other names.

    Args:
        quick: 100 and 400 units, one turn each; otherwise 5 turns, and 150,000 units once.
    """
    sizes, turns = (_QUICK_SIZES, 1) if quick else (_SIZES, 5)
    turns = int(os.environ.get("BENCH_TURNS", turns))
    largest = max(sizes) if quick else _LARGEST
    with project(4 * _UNITS_OF_A_FILE * _ROWS_OF_A_UNIT, _ROWS_OF_A_UNIT, 500) as folder:
        _copy_files(folder, largest)
        config, encoder, _ = load(folder)
        began = time.process_time()
        (day,) = list_days(Storage(config.logs.path), [DAY.isoformat()], config.ingest.unit.max_rows)
        listing = time.process_time() - began
        with ray_session(config), TreeWatcher(os.getpid()) as watcher:
            consumers = [Consumer.remote() for _ in range(WORKERS)]

            def cpu_s(num_units: int) -> float:
                return watcher.cost_of(partial(stream, config, encoder, _first(day, num_units), 1, consumers)).cpu

            cpu_s(_SMALLEST)  # workers start and import
            found: dict[int, list[float]] = {size: [] for size in sizes}
            for _ in range(turns):
                fixed = cpu_s(_SMALLEST)
                for size in sizes:
                    found[size].append((cpu_s(size) - fixed) / (size - _SMALLEST))
            if largest not in sizes:
                found[largest] = [(cpu_s(largest) - cpu_s(_SMALLEST)) / (largest - _SMALLEST)]
    return _figures(found, listing / len(day.units))


def _figures(found: dict[int, list[float]], listing_s: float) -> dict[str, Any]:
    each = {size: statistics.median(costs) for size, costs in found.items()}
    return {
        "rows_of_a_unit": _ROWS_OF_A_UNIT,
        "workers": WORKERS,
        "turns": {str(size): len(costs) for size, costs in found.items()},
        "cpu_ms_per_unit": {str(size): round(1e3 * value, 3) for size, value in each.items()},
        "largest_over_smallest": round(max(each.values()) / min(each.values()), 2),
        "over_the_fewest_units": {str(size): round(value / each[min(each)], 2) for size, value in each.items()},
        "listing_cpu_ms_per_unit": round(1e3 * listing_s, 3),
        "goal": _FLAT,
    }


def _first(day: DayLog, num_units: int) -> DayLog:
    """Return a day's first units as a day."""
    units = Units(day.units[index] for index in range(num_units))
    names = {unit.file for unit in units}
    return DayLog(day.day, units, {name: mark for name, mark in day.files.items() if name in names})


def _copy_files(folder: Path, num_units: int) -> None:
    """Give the day's files further names, until the day has so many units."""
    place = folder / "logs" / f"dt={DAY}"
    files = sorted(place.glob("*.parquet"))
    for number in count():
        if (len(files) + number) * _UNITS_OF_A_FILE >= num_units:
            return
        shutil.copyfile(files[number % len(files)], place / f"part-again-{number:05d}.parquet")
