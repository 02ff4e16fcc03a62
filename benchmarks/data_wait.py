"""Share of a worker's time spent waiting for its next batch, with the paper's head and with a one-layer head."""

import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import ray

from benchmarks.workload import DAY, ONE_LAYER_HEAD, PAPER_HEAD, WORKERS, load, project
from models.batch import LogBatch
from pipeline.cluster.progress import ProgressBoard
from pipeline.cluster.session import ray_session, run_workers
from pipeline.ingest.parts import whole_days
from pipeline.ingest.plan import RunPlan, StreamStart
from pipeline.lineage.frozen_statistics import load_statistics
from pipeline.lineage.line import Line
from pipeline.log_passes.admission import Admission
from pipeline.storage.files import Storage
from pipeline.trainer.train import train_worker
from pipeline.trainer.train_job import TrainJob

_ROWS, _QUICK_ROWS = 2**18, 2**16
_WARM_STEPS = 10


def run(quick: bool) -> dict[str, Any]:
    """Train a day with either head, and measure the workers' time in `Batcher.next_batch`.

    This time includes copying rows into a batch and waiting for units; a worker cannot compute during it. If the
    one-layer head waits more than 3 %, reading limits the run, and its rows/s are near those at which waiting passes 3
    %: a head of the speed `limit_rows_per_s` waits 3 %.

    Args:
        quick: A quarter of the rows.
    """
    rows = _QUICK_ROWS if quick else _ROWS
    heads = {"paper": PAPER_HEAD, "one_layer": ONE_LAYER_HEAD}
    found = {name: _measure(rows, head) for name, head in heads.items()}
    supply = found["one_layer"]["rows"] / found["one_layer"]["waiting_s"]
    return {
        "rows": rows,
        "workers": WORKERS,
        "share_waiting": {name: round(head["waiting_s"] / head["seconds"], 4) for name, head in found.items()},
        "rows_per_s": {name: round(WORKERS * head["rows"] / head["seconds"]) for name, head in found.items()},
        "limit_rows_per_s": round(0.03 * WORKERS * supply),
    }


def _measure(rows: int, head: dict[str, Any]) -> dict[str, Any]:
    """Return rank 0's rows, seconds and waiting seconds, from its tenth batch on."""
    with project(rows, 2**14, 20_000) as folder:
        config, encoder, day = load(folder, model=head)
        line = Line.of(config.root, config.line)
        plan = RunPlan(
            Storage(config.logs.path), whole_days([day]), 1, encoder, config.ingest, config.seed, (StreamStart,)
        )
        with ray_session(config):
            board = ProgressBoard.remote()
            attempt, _ = line.begin_attempt([str(DAY)], "a", lambda: None)
            plan = replace(plan, starts=(partial(StreamStart, attempt),))
            statistics, nothing_new = load_statistics(config, line), ray.put(Admission({}, {}, {}))
            parts, schema = whole_days([day]), config.log_schema
            job = TrainJob(config, statistics, line, (day.day,), parts, 1, schema, nothing_new, board)
            return run_workers(config, plan, _train_and_time, [job], board)


def _train_and_time(jobs: Sequence[TrainJob], lane: Any) -> dict[str, Any]:
    """Run `train_worker` with a timer on the function that makes the next batch."""
    from pipeline.trainer import train

    watch = _Watch()

    class WatchedBatcher(train.Batcher):
        def next_batch(self, step: int) -> LogBatch:
            began = time.perf_counter()
            batch = super().next_batch(step)
            watch.note(began, batch)
            return batch

    train.Batcher = WatchedBatcher
    train_worker(jobs, lane)
    return {"rows": watch.rows, "seconds": watch.ended - watch.began, "waiting_s": watch.waiting}


class _Watch:
    def __init__(self) -> None:
        self.calls, self.rows, self.waiting = 0, 0, 0.0
        self.began = self.ended = 0.0

    def note(self, began: float, batch: LogBatch) -> None:
        """Count one batch: its waiting time, and its rows."""
        self.calls += 1
        now = time.perf_counter()
        if self.calls == _WARM_STEPS:
            self.began = now
        elif self.calls > _WARM_STEPS and batch.cursor.num_rows:
            self.ended = now
            self.rows += batch.cursor.num_rows
            self.waiting += now - began
