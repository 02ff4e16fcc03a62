"""Batches of one fixed size from a lane's units: which rows, in which mix, and what stands in the padding."""

import itertools
from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from features.encoded_rows import EncodedRows
from features.encoding import Encoder
from features.schema import Schema
from models.batch import RankingBatch
from pipeline.ingest.batcher import Batcher, collate
from pipeline.ingest.datasource import Parcel
from pipeline.ingest.units import Unit

_BAGS = {"video": lambda k: [] if k % 5 == 4 else [k], "history": lambda k: list(range(k, k + k % 4))}


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    """Two sparse features, one dense, two tasks of which one has a weight and a truth."""
    declared = {
        "tables": [{"name": "video", "num_rows": 1000, "dim": 4}],
        "features": [
            {"kind": "id", "name": "video", "table": "video"},
            {"kind": "dense", "name": "number", "standardise": False},
            {"kind": "sequence", "name": "history", "table": "video", "max_length": 8},
        ],
        "tasks": [
            {"name": "ctr", "label": "click", "weight": "number + 1", "truth": "chance"},
            {"name": "like", "label": "liked"},
        ],
        "slot": "slot",
    }
    return Encoder(Schema.model_validate(declared), None, with_truth=True)


def _encode(encoder: Encoder, first: int, size: int) -> EncodedRows:
    numbers = range(first, first + size)
    bags = {name: [bag(k) for k in numbers] for name, bag in _BAGS.items()}
    return encoder.encode(
        {
            "video": pa.array([bag[0] if bag else None for bag in bags["video"]], pa.int64()),
            "history": pa.array(bags["history"], pa.list_(pa.int64())),
            "number": pa.array(numbers, pa.int64()),
            "click": pa.array([k % 2 for k in numbers], pa.int8()),
            "liked": pa.array([None if k % 3 == 0 else 1 for k in numbers], pa.int8()),
            "chance": pa.array([k / 1000 for k in numbers], pa.float32()),
            "slot": pa.array([k % 7 for k in numbers], pa.int8()),
        }
    )


def _batcher(encoder: Encoder, sizes: list[int], batch_size: int, interleave: int = 1) -> Batcher:
    """A lane of units of the given sizes; a row's number is 100 times its unit's, and its own."""
    units = tuple(Unit("2026-03-01", "file", index, 0, size, whole=True) for index, size in enumerate(sizes))
    parcels = (Parcel("unit", 0, index, rows=_encode(encoder, 100 * index, size)) for index, size in enumerate(sizes))
    return Batcher(encoder.schema, units, parcels, batch_size, interleave)


def _batches(batcher: Batcher, first_step: int = 0) -> Iterator[RankingBatch]:
    for step in itertools.count(first_step):
        batch = batcher.next_batch(step)
        if batch.cursor.num_rows == 0:
            return
        yield batch


def _spans(batch: RankingBatch) -> list[int]:
    """Numbers of the rows that the cursor says."""
    return [100 * span.unit + int(row) for span in batch.cursor.spans for row in span.rows]


@pytest.mark.parametrize(
    ("interleave", "expected"),
    [
        (1, [[0, 1, 2, 3], [4, 100, 101, 200], [201, 202, 203]]),
        # Halves; unit 1 is finished and unit 2 takes its place; then one row of unit 0 and what is left of unit 2.
        (2, [[0, 1, 100, 101], [2, 3, 200, 201], [4, 202, 203]]),
        # 4 rows by three are 2, 2 and what is left; unit 1 is finished, unit 2 comes to its turn.
        (3, [[0, 1, 100, 101], [2, 3, 200, 201], [4, 202, 203]]),
        (64, [[0, 1, 100, 101], [2, 3, 200, 201], [4, 202, 203]]),
    ],
)
def test_mixes_by_hand(interleave: int, expected: list[list[int]], encoder: Encoder):
    """A batch is not full at the end of a unit, or the mix is another one."""
    batches = list(_batches(_batcher(encoder, [5, 2, 4], 4, interleave)))
    assert [_spans(batch) for batch in batches] == expected
    assert [batch.cursor.step for batch in batches] == [0, 1, 2]


def test_a_batch_larger_than_the_lane(encoder: Encoder):
    """A unit that runs out within a batch is not followed by the next one, or shares are not dealt again."""
    (batch,) = _batches(_batcher(encoder, [1, 9, 2, 3], 16, 2))
    # 8 each: unit 0 has one, unit 1 has 8. 7 are left, 4 each: one of unit 1 and unit 2. 4 are left: unit 3.
    assert _spans(batch) == [0, *range(100, 108), 108, 200, 201, 300, 301, 302]


_SIZES = st.lists(st.integers(0, 9), max_size=6)


@given(sizes=_SIZES, batch_size=st.integers(1, 12), interleave=st.integers(1, 5))
def test_batches_are_full_and_hold_every_row_once_in_order(
    sizes: list[int], batch_size: int, interleave: int, encoder: Encoder
):
    """Rows are lost where a unit ends, or a unit's rows come out of order, so that "the first n" is not a prefix."""
    batches = list(_batches(_batcher(encoder, sizes, batch_size, interleave)))
    numbers = [_spans(batch) for batch in batches]
    assert sorted(itertools.chain(*numbers)) == [
        100 * index + row for index, size in enumerate(sizes) for row in range(size)
    ]
    for index, size in enumerate(sizes):
        rows = [number % 100 for number in itertools.chain(*numbers) if number // 100 == index]
        assert rows == list(range(size))
    assert all(len(batch) == batch_size for batch in numbers[:-1])


@given(sizes=st.lists(st.integers(20, 40), min_size=3, max_size=5), interleave=st.integers(1, 5))
def test_open_units_have_equal_shares(sizes: list[int], interleave: int, encoder: Encoder):
    """Interleaving mixes in name only: one unit fills the batch."""
    first = next(_batches(_batcher(encoder, sizes, 12, interleave)))
    shares = [len(span.rows) for span in first.cursor.spans]
    num_open = min(interleave, len(sizes))
    assert sum(shares) == 12
    assert len(shares) <= num_open
    assert max(shares) == -(-12 // num_open)
    if 12 % num_open == 0:
        assert len(set(shares)) == 1


@given(sizes=_SIZES, batch_size=st.integers(1, 12), interleave=st.integers(1, 3))
def test_a_batch_holds_the_rows_that_its_cursor_says(
    sizes: list[int], batch_size: int, interleave: int, encoder: Encoder
):
    """A feature's bags, a label or a weight come from the neighbouring row; compared with a loop over the rows."""
    for batch in _batches(_batcher(encoder, sizes, batch_size, interleave)):
        numbers = _spans(batch)
        singles = [_encode(encoder, number, 1) for number in numbers]
        filled = len(numbers)
        for index, key in enumerate(("video", "history")):
            bags = batch.sparse[key]
            found = np.split(bags.values().numpy(), np.cumsum(bags.lengths().numpy())[:-1])
            assert [bag.tolist() for bag in found[:filled]] == [single.ids[index].tolist() for single in singles]
        expected = [[number % 2, 0 if number % 3 == 0 else 1] for number in numbers]
        assert batch.labels[:filled].tolist() == expected
        assert batch.in_space[:filled].tolist() == [[True, number % 3 != 0] for number in numbers]
        assert batch.dense[:filled, 0].tolist() == numbers
        assert batch.weight[:filled].tolist() == [[number + 1, 1] for number in numbers]
        assert batch.slot[:filled].tolist() == [number % 7 for number in numbers]
        assert batch.truth is not None
        assert batch.truth[:filled, 0].tolist() == [np.float32(number / 1000) for number in numbers]
        assert batch.cursor.in_space.tolist() == [filled, sum(number % 3 != 0 for number in numbers)]


def _check_padding(batch: RankingBatch, filled: int) -> None:
    assert all(batch.sparse[key].lengths()[filled:].sum() == 0 for key in batch.sparse.keys())  # noqa: SIM118
    assert not batch.in_space[filled:].any()
    assert not torch.isnan(batch.labels).any()  # NaN times 0 is NaN
    assert (batch.dense[filled:] == 0).all()
    assert (batch.slot[filled:] == -1).all()
    assert batch.cursor.num_rows == filled
    assert batch.cursor.in_space.tolist() == batch.in_space[:filled].sum(0).tolist()


@given(sizes=_SIZES, batch_size=st.integers(1, 12))
def test_padding_is_nothing(sizes: list[int], batch_size: int, encoder: Encoder):
    """Padding is counted, is in a task's space, or looks up a table; or a batch of it has another size or type."""
    batcher = _batcher(encoder, sizes, batch_size, 2)
    num_rows = 0
    for step in range(sum(sizes) // batch_size + 3):
        batch = batcher.next_batch(step)
        assert len(batch.slot) == len(batch.dense) == len(batch.labels) == len(batch.weight) == batch_size
        assert batch.sparse.stride() == batch_size
        assert batch.sparse.values().dtype == torch.int64
        assert batch.sparse.lengths().dtype == torch.int32
        _check_padding(batch, min(batch_size, sum(sizes) - num_rows))
        num_rows += batch.cursor.num_rows
    assert num_rows == sum(sizes)
    assert batch.cursor.spans == ()
    assert batch.cursor.step == sum(sizes) // batch_size + 2


def test_padding_that_is_something_is_seen_to_fail(encoder: Encoder):
    """Negative control: padding by repeating a row."""
    rows = _encode(encoder, 0, 3)
    batch = collate(encoder.schema, [(rows, 0, 3), (rows, 2, 3)], 4)
    batch.cursor = _batcher(encoder, [3], 4).next_batch(0).cursor
    with pytest.raises(AssertionError):
        _check_padding(batch, 3)


def test_a_batch_is_a_copy(encoder: Encoder):
    """A batch that is kept changes with its block, or keeps all of it in the object store."""
    rows = _encode(encoder, 0, 4)
    batch = collate(encoder.schema, [(rows, 0, 4)], 4)
    for ours, theirs in ((batch.dense, rows.dense), (batch.slot, rows.slots), (batch.labels, rows.labels)):
        assert not np.shares_memory(ours.numpy(), theirs)
    assert np.shares_memory(rows.dense[:2], rows.dense)  # negative control
