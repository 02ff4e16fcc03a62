"""CPU of all processes per row, Parquet to RankingBatch through Ray Data, over a bare pyarrow decode of the columns."""

import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import ray
import ray.data
from ray.data import DataContext

from benchmarks.processes import TreeWatcher
from benchmarks.workload import WORKERS, load, project
from features.encoding import Encoder
from pipeline.cluster.session import ray_session
from pipeline.config.project import Config
from pipeline.ingest.batcher import Batcher
from pipeline.ingest.cursor import DayCursor, union
from pipeline.ingest.parts import whole_days
from pipeline.ingest.plan import RunPlan, StreamStart
from pipeline.ingest.receive import read_segments, receive_blocks
from pipeline.ingest.units import DayLog
from pipeline.storage.files import Storage

_ROWS = 2**20
_QUICK_ROWS = 2**18
_ROW_GROUP_ROWS = 65_536
_PASSES, _QUICK_PASSES = (10, 20), (1, 4)  # over the day


@ray.remote(num_cpus=1)
class Consumer:
    """Rank that makes batches as `pipeline.trainer.train` does, and steps nothing."""

    def consume(self, shard: Any, config: Config, day: DayLog) -> DayCursor:
        """Read a lane to its end; return the cursor of its rows, of all passes together."""
        cursor, ingest = DayCursor(), config.ingest
        for segment in read_segments(receive_blocks(shard, ingest.prefetch_units)):
            batcher = Batcher(
                config.log_schema, day.units, segment.parcels, ingest.batch_size, ingest.shuffle.interleave
            )
            step = 0
            while (taken := batcher.next_batch(step).cursor).num_rows:
                cursor.advance(taken)
                step += 1
        return cursor


def run(quick: bool) -> dict[str, Any]:
    """Measure our stream, a bare Ray read and a bare pyarrow decode, in turns.

    Each is run over few and over many passes of the day. The slope between the two sizes is the cost of a row; its
    rest, paid once a reading, is reported apart. Our figure includes encoding, shuffling, collating, object store and
    the idle parts of Ray.

    Args:
        quick: A quarter of the rows, 1 and 4 passes, 3 turns; otherwise 10 and 20 passes, 5 turns.
    """
    rows, turns = (_QUICK_ROWS, 3) if quick else (_ROWS, 5)
    turns = int(os.environ.get("BENCH_TURNS", turns))
    passes = _QUICK_PASSES if quick else _PASSES
    with project(rows, _ROW_GROUP_ROWS, 20_000) as folder:
        config, encoder, day = load(folder)
        with ray_session(config), TreeWatcher(os.getpid()) as watcher:
            consumers = [Consumer.remote() for _ in range(WORKERS)]
            readings: dict[str, Callable[[int], int]] = {
                "ours": lambda passes: stream(config, encoder, day, passes, consumers),
                "bare_ray": lambda passes: _bare_ray(folder, encoder.columns, passes),
                "bare_pyarrow": lambda passes: _bare_pyarrow(folder, encoder.columns, passes),
            }
            for read in readings.values():
                read(1)  # workers start and import
            costs = [{name: _cost(read, watcher, passes) for name, read in readings.items()} for _ in range(turns)]
    return _figures(costs, rows, passes, config)


def stream(config: Config, encoder: Encoder, day: DayLog, passes: int, consumers: list[Any]) -> int:
    """Read a day several times through the stream of training; return the rows."""
    return read_by(config, encoder, day, passes, consumers).num_rows


def read_by(config: Config, encoder: Encoder, day: DayLog, passes: int, consumers: list[Any]) -> DayCursor:
    """Read a day several times through the stream of training; return the cursor of all ranks and passes."""
    plan = RunPlan(
        Storage(config.logs.path), whole_days([day]), passes, encoder, config.ingest, config.seed, (StreamStart,)
    )
    shards = plan.begin_stream(WORKERS).streaming_split(WORKERS, equal=False)
    return union(ray.get([c.consume.remote(s, config, day) for c, s in zip(consumers, shards, strict=True)]))


def _bare_ray(folder: Path, columns: list[str], passes: int) -> int:
    context = DataContext()
    context.enable_progress_bars = False
    with DataContext.current(context):  # with Ray's own settings, not our stream's
        read = ray.data.read_parquet(_files(folder, passes), columns=columns)
        return sum(batch.num_rows for batch in read.iter_batches(batch_size=32_768, batch_format="pyarrow"))


def _bare_pyarrow(folder: Path, columns: list[str], passes: int) -> int:
    rows = 0
    for file in _files(folder, passes):
        opened = pq.ParquetFile(file, memory_map=True)
        for group in range(opened.num_row_groups):
            rows += opened.read_row_group(group, columns=columns, use_threads=False).num_rows
    return rows


def _files(folder: Path, passes: int) -> list[str]:
    """Return the day's files several times over, each time by another name: Ray reads a repeated file only once."""
    found = []
    for number in range(passes):
        again = folder / f"again-{number}"
        again.mkdir(exist_ok=True)
        for file in sorted(folder.glob("logs/*/*.parquet")):
            if not (again / file.name).exists():
                os.link(file, again / file.name)
            found.append(str(again / file.name))
    return found


def _cost(read: Callable[[int], int], watcher: TreeWatcher, passes: tuple[int, int]) -> dict[str, Any]:
    """Return CPU-seconds and wall seconds per million rows, and the CPU-seconds paid once, by process."""
    sizes = []
    for count in passes:
        started, before = time.monotonic(), watcher.cpu_seconds()
        rows = read(count)
        after, wall = watcher.cpu_seconds(), time.monotonic() - started
        sizes.append((rows / 1e6, wall, {name: after[name] - before.get(name, 0.0) for name in after}))
    (short_rows, short_wall, short), (rows, wall, cpu) = sizes
    millions = rows - short_rows
    by_process = {name: (cpu[name] - short.get(name, 0.0)) / millions for name in cpu}
    once = {name: cpu[name] - by_process[name] * rows for name in cpu}
    total = sum(by_process.values())
    return {"cpu": total, "wall": (wall - short_wall) / millions, "by_process": by_process, "once": once}


def _figures(
    costs: list[dict[str, dict[str, Any]]], rows: int, passes: tuple[int, int], config: Config
) -> dict[str, Any]:
    def median(name: str, what: str = "cpu") -> float:
        return statistics.median(cost[name][what] for cost in costs)

    def ratio(name: str) -> float:
        return statistics.median(cost[name]["cpu"] / cost["bare_pyarrow"]["cpu"] for cost in costs)

    def parts(what: str) -> dict[str, float]:
        names = sorted({name for cost in costs for name in cost["ours"][what]})
        middle = {name: statistics.median(cost["ours"][what].get(name, 0.0) for cost in costs) for name in names}
        return {name: seconds for name, seconds in middle.items() if abs(seconds) >= 0.005}

    return {
        "unit": "CPU-seconds of all processes per million rows: the slope between two sizes",
        "rows": [rows * count for count in passes],
        "row_group_rows": _ROW_GROUP_ROWS,
        "batch_size": config.ingest.batch_size,
        "workers": WORKERS,
        "turns": len(costs),
        **{f"{name}_cpu_s": median(name) for name in costs[0]},
        "ours_over_bare_pyarrow": ratio("ours"),
        "bare_ray_over_bare_pyarrow": ratio("bare_ray"),
        "ours_rows_per_s": 1e6 / median("ours", "wall"),
        "ours_by_process_cpu_s": parts("by_process"),
        "ours_paid_once_cpu_s": parts("once"),
        "goal": 2.5,
    }
