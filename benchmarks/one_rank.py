"""A rank of gloo without Ray, and the batches of a benchmark's day in its memory."""

import contextlib
import os
from collections.abc import Iterable, Iterator
from datetime import timedelta
from typing import TypeVar
from unittest import mock

import torch
import torch.distributed as dist

from features.encoding import Encoder
from models.batch import LogBatch, RankingBatch
from pipeline.config.project import Config
from pipeline.ingest.batcher import Batcher
from pipeline.ingest.datasource import Parcel, PlannedParcel, ReadPlan, read_parcels
from pipeline.ingest.units import DayLog
from pipeline.storage.files import Storage

Item = TypeVar("Item")


@contextlib.contextmanager
def gloo_rank(store: str, rank: int = 0, num_ranks: int = 1) -> Iterator[None]:
    """Make this process a rank of the default group, with one thread.

    Args:
        store: New file in which the ranks meet.
        rank: This rank.
        num_ranks: Number of ranks.
    """
    torch.set_num_threads(1)
    local = {"LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": str(num_ranks), "GLOO_SOCKET_IFNAME": "lo"}
    with mock.patch.dict(os.environ, local):
        dist.init_process_group("gloo", f"file://{store}", timedelta(minutes=5), rank=rank, world_size=num_ranks)
        try:
            yield
        finally:
            dist.destroy_process_group()


def read_units(config: Config, encoder: Encoder, day: DayLog) -> Iterator[Parcel]:
    """Read and encode all units of a day, as the data tasks of a training do."""
    plan = ReadPlan(Storage(config.logs.path), encoder, (0,), config.seed, shuffle_rows=True)
    return read_parcels(plan, [PlannedParcel("unit", 0, index, unit) for index, unit in enumerate(day.units)])


def day_batches(config: Config, encoder: Encoder, day: DayLog) -> list[LogBatch]:
    """Return the batches of a day, the padding of the last one included."""
    size = config.ingest.batch_size
    batcher = Batcher(config.log_schema, day.units, read_units(config, encoder, day), size, interleave=1)
    return [batcher.next_batch(step) for step in range(-(-day.num_rows // size))]


def with_own_denominators(batch: LogBatch) -> RankingBatch:
    """Return a batch with the denominators of its own rows, and all loss weights 1."""
    return batch.for_step((batch.in_space * batch.weight).sum(0), torch.ones(batch.labels.shape[1]))


def round_and_round(items: Iterable[Item]) -> Iterator[Item]:
    """Yield the items again and again."""
    kept = list(items)
    while True:
        yield from kept
