"""The vector of every step: what one rank has to say reaches all ranks at the same step."""

from functools import partial
from typing import Any

import pytest
import torch

from features.encoding import Encoder
from models.batch import RankingBatch
from pipeline.batcher import collate
from pipeline.counts import CountedBatches, Signals
from pipeline.cursor import BatchCursor, Span
from pipeline.datasource import Entry, ReadPlan, read_parcels
from pipeline.units import list_days
from pipeline.worker import Groups


def _hear(rank: int, num_ranks: int, encoder: Encoder, logs: Any, stop_at: int, look_at: int) -> dict[str, Any]:
    """Batches until the end; rank 0 asks to look with its `look_at`th batch and to stop with its `stop_at`th."""
    (day,) = list_days(logs, ["2026-03-01"], 100)
    plan = ReadPlan(logs, encoder, (day.units,), (0,), seed=1, shuffle_rows=False)
    (parcel,) = read_parcels(plan, [Entry("unit", 0, unit=0)])
    assert parcel.rows is not None
    rows, made = parcel.rows, [0]

    def next_batch(step: int) -> RankingBatch:
        made[0] += 1
        has_rows = made[0] <= 10 - rank  # the last ranks run dry first
        batch = collate(encoder.schema, [(rows, 0, 4)] if has_rows else [], 4)
        spans = (Span(0, 1, rows.rows[:4]),) if has_rows else ()
        batch.cursor = BatchCursor(step, spans, batch.in_space.sum(0).numpy())
        return batch

    def signals() -> Signals:
        return Signals(float(rank == 0 and made[0] >= stop_at), float(rank == 0 and made[0] == look_at))

    none, ones = torch.zeros(2), torch.ones(2)
    batches = CountedBatches(next_batch, 0, lambda step: ones, none.clone, Groups.create(60).counts, signals)
    looks = [batches.look for _ in batches]
    return {"looks": looks, "interrupted": batches.interrupted, "stopped": batches.stopped, "rows": batches.num_rows}


@pytest.mark.parametrize("num_ranks", [2, 3])
@pytest.mark.parametrize(("stop_at", "handed_out"), [(1, 0), (5, 4), (99, 10), (11, 10)])
def test_all_ranks_end_and_look_at_the_same_step(
    run_ranks: Any, tiny_encoder: Encoder, write_log: Any, num_ranks: int, stop_at: int, handed_out: int
) -> None:
    """Catches a rank that stops a step before the others, who wait for it until their time-out; or a day that was
    over anyway and is taken for an interrupted one."""
    ask = partial(_hear, encoder=tiny_encoder, logs=write_log([[[8]]]), stop_at=stop_at, look_at=3)
    first, *others = run_ranks(ask, num_ranks)
    assert all(found == first for found in others)
    assert first["looks"] == [index == 2 for index in range(handed_out)]
    assert first["interrupted"] == (stop_at < 11)
    assert not first["stopped"]
    assert first["rows"] == sum(4 * min(handed_out, 10 - rank) for rank in range(num_ranks))
