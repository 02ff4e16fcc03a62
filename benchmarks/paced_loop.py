"""CPU of all processes while a log waits for a slow model: Ray Data's free loop over the paced loop."""

import os
import statistics
import time
from typing import Any

import ray

from benchmarks.processes import TreeWatcher
from benchmarks.workload import load, project
from features.encoding import Encoder
from pipeline.cluster.session import ray_session
from pipeline.config.project import Config
from pipeline.ingest import plan as stream
from pipeline.ingest.batcher import Batcher
from pipeline.ingest.pacing import PacedLoop
from pipeline.ingest.parts import whole_days
from pipeline.ingest.plan import RunPlan, StreamStart
from pipeline.ingest.receive import read_segments, receive_blocks
from pipeline.ingest.units import DayLog
from pipeline.storage.files import Storage

_ROWS, _QUICK_ROWS = 2**19, 2**18
_UNIT_ROWS = 4096
_STEP_S = 0.05  # a model of 20,000 rows/s, several times slower than the reading of its log


class _FreeLoop(PacedLoop):
    def on_execution_step(self, executor: Any) -> None:
        """Do nothing."""


@ray.remote(num_cpus=1)
class SlowConsumer:
    """Rank that makes batches as `pipeline.trainer.train` does, and sleeps instead of stepping."""

    def consume(self, shard: Any, config: Config, day: DayLog) -> int:
        """Read a lane to its end; return its rows."""
        rows, ingest = 0, config.ingest
        for segment in read_segments(receive_blocks(shard, ingest.prefetch_units)):
            batcher = Batcher(config.log_schema, day.units, segment.parcels, ingest.batch_size, interleave=1)
            step = 0
            while taken := batcher.next_batch(step).cursor.num_rows:
                rows, step = rows + taken, step + 1
                time.sleep(_STEP_S)
        return rows


def run(quick: bool) -> dict[str, Any]:
    """Measure both loops in turns, on the same rows with the same work.

    Args:
        quick: Half the rows, 2 turns.
    """
    rows, turns = (_QUICK_ROWS, 2) if quick else (_ROWS, 3)
    with project(rows, _UNIT_ROWS, 20_000) as folder:
        config, encoder, day = load(folder)
        with ray_session(config), TreeWatcher(os.getpid()) as watcher:
            consumer = SlowConsumer.remote()
            loops = {"free": _FreeLoop, "paced": PacedLoop}
            _measure(config, encoder, day, consumer, watcher)  # workers start and import
            found: dict[str, list[dict[str, float]]] = {name: [] for name in loops}
            for _ in range(turns):
                for name, loop in loops.items():
                    stream.PacedLoop = loop  # pyright: ignore[reportAttributeAccessIssue]
                    found[name].append(_measure(config, encoder, day, consumer, watcher))
    middle = {
        name: {what: statistics.median(one[what] for one in ones) for what in ones[0]} for name, ones in found.items()
    }
    return {
        "rows": rows,
        "turns": turns,
        **{f"{name}_{what}": round(value, 1) for name, figures in middle.items() for what, value in figures.items()},
        "free_over_paced_cpu": round(middle["free"]["cpu_s"] / middle["paced"]["cpu_s"], 2),
        "free_over_paced_wall": round(middle["free"]["wall_s"] / middle["paced"]["wall_s"], 2),
    }


def _measure(config: Config, encoder: Encoder, day: DayLog, consumer: Any, watcher: TreeWatcher) -> dict[str, float]:
    plan = RunPlan(Storage(config.logs.path), whole_days([day]), 1, encoder, config.ingest, config.seed, (StreamStart,))
    began, before = time.monotonic(), sum(watcher.cpu_seconds().values())
    (shard,) = plan.begin_stream(1).streaming_split(1, equal=False)
    ray.get(consumer.consume.remote(shard, config, day))
    return {"cpu_s": sum(watcher.cpu_seconds().values()) - before, "wall_s": time.monotonic() - began}
