"""The vector of every step: what one rank has to say reaches all ranks at the same step."""

from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from small_units import unit_entries

from features.encoding import Encoder
from features.errors import DataError
from models.batch import LogBatch
from pipeline.cluster.signals import Signals
from pipeline.ingest.batcher import collate
from pipeline.ingest.cursor import BatchCursor, Span
from pipeline.ingest.datasource import ReadPlan, read_parcels
from pipeline.ingest.units import list_days
from pipeline.trainer.step_sync import CountedBatches
from pipeline.trainer.worker_setup import Groups


def _hear(
    rank: int, num_ranks: int, encoder: Encoder, logs: Any, stop_at: int, look_at: int, steps: int = 1, bad_at: int = 0
) -> dict[str, Any]:
    """Batches until the end; rank 0 asks to look with its `look_at`th batch and to stop with its `stop_at`th.

    The last rank cannot make its `bad_at`th.
    """
    (day,) = list_days(logs, ["2026-03-01"], 100)
    plan = ReadPlan(logs, encoder, (0,), seed=1, shuffle_rows=False)
    (parcel,) = read_parcels(plan, unit_entries(day.units[:1]))
    assert parcel.rows is not None
    rows, made = parcel.rows, [0]

    def next_batch(step: int) -> LogBatch:
        made[0] += 1
        if rank == num_ranks - 1 and made[0] == bad_at:
            raise DataError("bad")
        has_rows = made[0] <= 10 - rank  # the last ranks run dry first
        batch = collate(encoder.schema, [(rows, 0, 4)] if has_rows else [], 4)
        spans = (Span(0, 1, rows.rows[:4]),) if has_rows else ()
        batch.cursor = BatchCursor(step, spans, batch.in_space.sum(0).numpy())
        return batch

    def signals() -> Signals:
        return Signals(float(rank == 0 and made[0] >= stop_at), float(rank == 0 and made[0] == look_at))

    none, ones = torch.zeros(2), torch.ones(2)
    batches = CountedBatches(next_batch, 0, lambda step: ones, none.clone, Groups.create(60).counts, signals, steps)
    looks, denominators = [], []
    for batch in batches:
        looks.append(batches.look)
        denominators.append(batch.denominators.tolist())
    found = {"interrupted": batches.interrupted, "stopped": batches.stopped, "rows": batches.num_rows}
    in_space = None if batches.in_space is None else batches.in_space.tolist()
    end = batches.end.step if batches.end else None
    return found | {"looks": looks, "denominators": denominators, "in_space": in_space, "end": end}


def _save_after(rank: int, num_ranks: int, encoder: Encoder, bad_step: int, saved_step: int, steps: int = 1) -> bool:
    """Return True if a save after a step is refused, when a loss was infinite on the last rank."""
    losses = torch.zeros(2)

    def next_batch(step: int) -> LogBatch:
        batch = collate(encoder.schema, [], 4)
        batch.cursor = BatchCursor(step, (Span(0, 1, np.arange(4)),), batch.in_space.sum(0).numpy())
        return batch

    def take() -> torch.Tensor:
        taken = losses.clone()
        losses.zero_()
        return taken

    group = Groups.create(60).counts
    batches = CountedBatches(next_batch, 0, lambda step: torch.ones(2), take, group, steps=steps)
    for step, _ in enumerate(batches):  # as a pipeline does: the next batch is fetched before the step
        losses[0] += float("inf") if step == bad_step and rank == num_ranks - 1 else 1.0
        if step == saved_step:
            batches.settle()
            return batches.stopped
    return batches.stopped


@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("saved_step", [5, 6, 7, 8])
def test_no_save_after_a_loss_that_was_not_finite(
    run_ranks: Any, tiny_encoder: Encoder, saved_step: int, steps: int
) -> None:
    """Catches a loss that is on its way in a vector that nobody has read yet, when a checkpoint is written."""
    save = partial(_save_after, encoder=tiny_encoder, saved_step=saved_step, steps=steps)
    assert run_ranks(partial(save, bad_step=5), 2) == [True] * 2
    assert run_ranks(partial(save, bad_step=9), 2) == [False] * 2


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


@pytest.mark.parametrize("bad_at", [0, 1, 4, 5, 6])
@pytest.mark.parametrize("steps", [2, 3, 7, 20])
def test_blocks_give_what_single_steps_give(
    run_ranks: Any, tiny_encoder: Encoder, write_log: Any, steps: int, bad_at: int
) -> None:
    """Catches sums of another step of the block, an end or an error that all ranks do not see at the same step, and
    rows that are counted though their step is never made."""
    hear = partial(_hear, encoder=tiny_encoder, logs=write_log([[[8]]]), stop_at=99, look_at=0, bad_at=bad_at)
    found, expected = run_ranks(partial(hear, steps=steps), 3), run_ranks(hear, 3)
    assert found == expected
    assert expected[0]["stopped"] == (bad_at > 0)
    assert len(expected[0]["looks"]) == (bad_at - 1 if bad_at else 10)
    assert bad_at > 0 or len(set(map(tuple, expected[0]["denominators"]))) > 1  # the control: they differ by step


@pytest.mark.parametrize("stop_at", [1, 4, 6, 11, 13])
def test_a_signal_is_heeded_at_the_begin_of_a_block(
    run_ranks: Any, tiny_encoder: Encoder, write_log: Any, stop_at: int
) -> None:
    """Catches a signal that is heeded on one rank alone, within a block, or more than two blocks later."""
    hear = partial(_hear, encoder=tiny_encoder, logs=write_log([[[8]]]), stop_at=stop_at, look_at=6, steps=3)
    first, *others = run_ranks(hear, 2)
    assert all(found == first for found in others)
    handed_out = len(first["looks"])
    assert first["interrupted"] == (stop_at < 13)  # the fourth block has the last row, and was asked with the third
    assert handed_out == (3 * ((stop_at - 1) // 3) if stop_at < 13 else 10)
    assert first["looks"] == [index == 3 for index in range(handed_out)]
