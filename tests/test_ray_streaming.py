"""Real Ray: lanes as dealt, an equal split that loses rows, and a first step that comes early."""

import sys
import time
from dataclasses import replace
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import ray
from small_runs import DAYS, logs, make_config, without_statistics

from features.encoding import Encoder
from features.synthetic.logs import SyntheticConfig, write_day
from pipeline.cluster.progress import ProgressBoard
from pipeline.cluster.session import run_workers
from pipeline.config.project import Config
from pipeline.ingest import receive
from pipeline.ingest.datasource import Parcel
from pipeline.ingest.parts import whole_days
from pipeline.ingest.plan import RunPlan, StreamStart
from pipeline.ingest.receive import read_segments, receive_blocks
from pipeline.ingest.units import check_days
from pipeline.lineage.line import Line
from pipeline.log_passes.admission import Admission
from pipeline.storage.files import Storage
from pipeline.trainer.train import train_worker
from pipeline.trainer.train_job import TrainJob

__all__ = ["logs"]  # fixtures

ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # Ray's workers cannot import this file


def plan_of(config: Config, days: list[str], units: int = 200) -> RunPlan:
    encoder = Encoder(config.log_schema, None)
    day_logs = check_days(Storage(config.logs.path), days, units, config.log_schema, encoder.columns)
    return RunPlan(
        Storage(config.logs.path), whole_days(day_logs), 1, encoder, config.ingest, config.seed, (StreamStart,)
    )


@ray.remote(num_cpus=0.5)
def _receive(split: Any, delay_s: float) -> list[tuple[str, list[int]]]:
    received = []
    for segment in read_segments(receive_blocks(split, 1)):
        units = []
        for parcel in segment.parcels:
            units.append(parcel.unit)
            time.sleep(delay_s)
        received.append((segment.header.day, units))
    return received


@pytest.mark.ray
@pytest.mark.parametrize("num_ranks", [1, 2, 3])
def test_ray_deals_the_lanes(logs: Path, tmp_path: Path, ray_cluster: None, num_ranks: int) -> None:
    """Catches a Ray whose splitter no longer deals one-row blocks round and round, or that splits or merges blocks."""
    config = without_statistics(make_config(logs, tmp_path))
    plan = replace(plan_of(config, DAYS), block_rows=400)
    segments = plan.segments(plan.begin_attempts(), num_ranks)
    expected = [(segment.header.day, segment.dealt.lanes) for segment in segments]
    splits = plan.begin_stream(num_ranks).streaming_split(num_ranks, equal=False)
    # One slow consumer: who gets what must not depend on who is fast.
    delays = [0.02 if rank == 0 else 0.0 for rank in range(num_ranks)]
    received = ray.get([_receive.remote(split, delay) for split, delay in zip(splits, delays, strict=True)])
    for place, (day, lanes) in enumerate(expected):
        assert [rank[place][0] for rank in received] == [day] * num_ranks
        assert [rank[place][1] for rank in received] == lanes


@pytest.mark.ray
def test_equal_split_loses_parcels(logs: Path, tmp_path: Path, ray_cluster: None) -> None:
    """The negative control of the stream: `equal=True`, Ray Train's own way, drops what does not divide evenly."""
    config = without_statistics(make_config(logs, tmp_path))
    plan = replace(plan_of(config, DAYS[:1]), block_rows=0)
    dataset = plan.begin_stream(1)
    num_blocks = len(plan.bundles(plan.segments(plan.begin_attempts(), 1), 1))
    num_ranks = next(num for num in range(2, num_blocks) if num_blocks % num)
    splits = dataset.streaming_split(num_ranks, equal=True)
    counts = ray.get([_count_blocks.remote(split) for split in splits])
    assert sum(counts) < num_blocks


@ray.remote(num_cpus=0.5)
def _count_blocks(split: Any) -> int:
    return sum(1 for _ in receive_blocks(split, 1))


def _train_and_watch(job: Any, lane: Any) -> dict[str, Any]:
    """`train_worker`, noting when each unit was read; it begins late, so that reading has time to run ahead."""
    time.sleep(5)
    reads: list[float] = []
    original = receive.unpack

    def noting(block: pa.Table) -> list[Parcel]:
        parcels = original(block)
        reads.extend(parcel.read_at for parcel in parcels if parcel.kind == "unit")
        return parcels

    receive.unpack = noting
    return train_worker(job, lane) | {"reads": reads}


@pytest.mark.ray
def test_first_step_comes_early(tmp_path: Path, ray_cluster: None) -> None:
    """Catches an ingest that reads the day, or a large part of it, before the model sees a row."""
    world = SyntheticConfig(
        seed=5,
        first_day=date(2026, 1, 1),
        rows_per_day=120_000,
        num_users=200,
        num_videos=200,
        num_authors=20,
        files_per_day=2,
        row_group_rows=500,
    )
    write_day(world, date(2026, 1, 1), tmp_path / "logs")
    ingest = {"batch_size": 512, "unit": {"max_rows": 500}, "read_tasks": 1, "object_store_mb": 1, "prefetch_units": 1}
    config = without_statistics(make_config(tmp_path / "logs", tmp_path / "root", ingest=ingest))
    plan = plan_of(config, DAYS[:1], units=500)
    line = Line.of(config.root, config.line)
    attempt, _ = line.begin_attempt(DAYS[:1], "a", lambda: None)
    plan = replace(
        plan, starts=(partial(StreamStart, attempt),), block_rows=0
    )  # units of 500 rows stand for large ones
    board = ProgressBoard.remote()
    schema, admission = config.log_schema, ray.put(Admission({}, {}, {}))
    job = TrainJob(config, None, line, tuple(DAYS[:1]), plan.parts, 1, schema, admission, board)
    found = run_workers(config, plan, _train_and_watch, [job], board)
    units = len(plan.parts[0].log.units)
    early = sum(read_at < found["reached"][0]["first_step_at"] for read_at in found["reads"])
    assert len(found["reads"]) > 50
    assert early * 2 < units / 10, f"each of 2 ranks had {early} of the day's {units} units before its first step"
