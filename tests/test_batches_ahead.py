"""Batches that a thread makes ahead, each in one buffer."""

import threading
import time
from collections.abc import Callable
from dataclasses import fields
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from features.errors import DataError
from models.batch import LogBatch
from pipeline.ingest.batches_ahead import BatchesAhead, made_ahead
from pipeline.ingest.cursor import BatchCursor


def _batch(step: int, rows: int = 5) -> LogBatch:
    """A batch of odd sizes, with values of its own."""
    dice = torch.Generator().manual_seed(step)
    lengths = torch.randint(0, 4, (2 * rows,), generator=dice, dtype=torch.int32)
    ids = torch.randint(0, 99, (int(lengths.sum()),), generator=dice)
    return LogBatch(
        KeyedJaggedTensor(keys=["user", "seen"], values=ids, lengths=lengths),
        torch.rand(rows, 3, generator=dice),
        torch.rand(rows, 2, generator=dice),
        torch.rand(rows, 2, generator=dice) > 0.5,
        torch.rand(rows, 2, generator=dice),
        torch.arange(rows, dtype=torch.int32),
        users=torch.arange(rows) if step % 2 else None,
        cursor=BatchCursor(step, (), np.full(2, rows)),
    )


def _assert_equal(found: Any, expected: Any) -> None:
    for field in fields(expected):
        mine, other = getattr(found, field.name), getattr(expected, field.name)
        if isinstance(other, Tensor):
            assert mine.dtype == other.dtype
            assert torch.equal(mine, other), field.name
        elif isinstance(other, KeyedJaggedTensor):
            assert mine.keys() == other.keys()
            assert torch.equal(mine.values(), other.values())
            assert torch.equal(mine.lengths(), other.lengths())
            assert mine.stride() == other.stride()
        elif field.name == "cursor":
            assert mine.step == other.step
        elif field.name != "flat":
            assert mine == other


@pytest.mark.parametrize("rows", [0, 1, 5, 64])
def test_a_flat_batch_is_the_batch(rows: int) -> None:
    """Catches a tensor at another's place in the buffer, of another type, or with the bytes of its neighbour."""
    expected = _batch(1, rows)
    found = expected.flattened(pin=False)
    _assert_equal(found, expected)
    assert found.flat is not None
    first, last = found.flat.buffer.data_ptr(), found.flat.buffer.data_ptr() + found.flat.buffer.numel()
    tensors = [found.dense, found.labels, found.in_space, found.sparse.values(), found.sparse.lengths()]
    assert all(first <= tensor.data_ptr() < last for tensor in tensors if tensor.numel())


def test_what_a_step_adds_is_in_the_same_buffer() -> None:
    """Catches denominators that stay on the host when the buffer is copied, and one more copy for each tensor."""
    added = torch.tensor([2.0, 3.0]), torch.tensor([1.0, 0.5])
    plain, flat = _batch(1).for_step(*added), _batch(1).flattened(pin=False).for_step(*added)
    _assert_equal(flat, plain)
    assert flat.flat is not None
    copied = flat.flat.tensors()
    assert torch.equal(copied["denominators"], added[0])
    assert torch.equal(copied["loss_weights"], added[1])
    moved = flat.to(torch.device("meta"))
    assert moved.flat is not None
    assert moved.denominators.device.type == moved.sparse.values().device.type == "meta"
    assert moved.cursor is flat.cursor
    assert moved.sparse.keys() == flat.sparse.keys()
    assert moved.labels.shape == flat.labels.shape


def test_batches_come_in_order_and_are_those_of_the_maker() -> None:
    """Catches a batch that is lost, doubled or exchanged between the threads."""
    with made_ahead(_batch, 7, 3, torch.device("cpu")) as next_batch:
        for step in range(7, 40):
            _assert_equal(next_batch(step), _batch(step))


def test_one_batch_at_a_time_needs_no_thread() -> None:
    """Catches a thread beside a training thread that has the only core."""
    with made_ahead(_batch, 0, 1, torch.device("cpu")) as next_batch:
        assert next_batch is _batch


def test_the_thread_is_ahead_by_the_number_asked_for() -> None:
    """Catches a thread that makes a whole day, and one that makes a batch only when it is asked for."""
    made: list[int] = []

    def make(step: int) -> LogBatch:
        made.append(step)
        return _batch(step)

    ahead = BatchesAhead(make, 0, 3, pin=False)
    _until(lambda: len(made) == 4)  # three wait, and one is at the door
    time.sleep(0.05)
    assert made == [0, 1, 2, 3]
    ahead.next_batch(0)
    _until(lambda: len(made) == 5)
    ahead.close()
    assert made == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("error", [DataError("bad"), RuntimeError("lost")])
def test_an_error_comes_at_its_step(error: Exception) -> None:
    """Catches an error that is raised before the batches that were made, swallowed, or of another kind."""

    def make(step: int) -> LogBatch:
        if step == 2:
            raise error
        return _batch(step)

    ahead = BatchesAhead(make, 0, 5, pin=False)
    assert [ahead.next_batch(step).cursor.step for step in range(2)] == [0, 1]
    with pytest.raises(type(error), match=str(error)):
        ahead.next_batch(2)
    ahead.close()


def test_closing_ends_the_thread() -> None:
    """Catches a thread that waits for ever for somebody to take its batch, and reads on in the next part."""
    before = threading.active_count()
    ahead = BatchesAhead(_batch, 0, 2, pin=False)
    ahead.close()
    assert threading.active_count() == before


def _until(holds: Callable[[], bool]) -> None:
    began = time.monotonic()
    while not holds():
        assert time.monotonic() - began < 30
        time.sleep(0.001)
