"""Encoded rows: taken by index, and through Arrow and back."""

import itertools
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
from encoding_rows import arrays_of, assert_equal_rows, encode_rows, row_of
from hypothesis import given, settings
from hypothesis import strategies as st

from features.encoded_rows import EncodedRows


@st.composite
def _encoded(draw: st.DrawFn) -> EncodedRows:
    """Encoded rows with ragged bags, bags of one length (0, 1 or 3), and as many ids as rows but not one each."""
    num_rows = draw(st.integers(0, 6))
    random = np.random.default_rng(draw(st.integers(0, 99)))
    all_lengths = [random.integers(0, 4, num_rows), *(np.full(num_rows, length) for length in (0, 1, 3))]
    all_lengths.append(np.where(np.arange(num_rows) % 2, 0, 2))
    optional = draw(st.booleans())
    labels = random.random((num_rows, 2), np.float32)
    labels[random.random((num_rows, 2)) < 0.3] = np.nan
    return EncodedRows(
        ids=[random.integers(0, 99, lengths.sum(), np.int32) for lengths in all_lengths],
        offsets=[np.concatenate(([0], np.cumsum(lengths))).astype(np.int32) for lengths in all_lengths],
        dense=random.random((num_rows, draw(st.integers(0, 3))), np.float32),
        labels=labels,
        weights=random.random((num_rows, 2), np.float32) if optional else None,
        slots=random.integers(-1, 5, num_rows, np.int32),
        rows=np.arange(10, 10 + num_rows, dtype=np.int32),
        truth=random.random((num_rows, 2), np.float32) if optional else None,
        groups=random.integers(0, 9, num_rows, np.int64) if optional else None,
        slices=random.integers(0, 9, (num_rows, 2), np.int64) if optional else None,
        slice_texts=random.integers(0, 9, 7, np.uint8) if optional else None,
    )


@settings(max_examples=100, deadline=None)
@given(rows=_encoded(), data=st.data())
def test_take_equals_a_loop(rows: EncodedRows, data: st.DataObject):
    """Ids of another row come along, where bags are ragged or all of one length, or rows repeat or are left out."""
    places = st.lists(st.integers(0, len(rows) - 1), max_size=9) if len(rows) else st.just([])
    order = data.draw(places)
    found = rows.take(np.array(order, np.int64))
    for index in range(len(rows.ids)):
        ids, offsets = rows.ids[index], rows.offsets[index]
        bags = [ids[offsets[place] : offsets[place + 1]].tolist() for place in order]
        assert found.ids[index].tolist() == list(itertools.chain(*bags))
        assert found.offsets[index].tolist() == [0, *np.cumsum([len(bag) for bag in bags])]
        assert found.ids[index].dtype == found.offsets[index].dtype == np.int32
    assert found.slice_texts is rows.slice_texts
    for name in ("dense", "labels", "weights", "slots", "rows", "truth", "groups", "slices"):
        value, taken = getattr(rows, name), getattr(found, name)
        if value is None:
            assert taken is None
            continue
        assert taken.dtype == value.dtype
        np.testing.assert_array_equal(taken, value[np.array(order, np.int64)])


def test_take_of_everything_and_of_a_permutation_and_back():
    """A shuffle that is undone is not what it was."""
    rows = encode_rows([row_of(video_id=number, watched_ids=list(range(number % 3))) for number in range(20)])
    order = np.random.default_rng(0).permutation(20)
    assert_equal_rows(rows.take(np.arange(20)), rows)
    assert_equal_rows(rows.take(order).take(np.argsort(order)), rows)
    with pytest.raises(AssertionError):  # negative control
        assert_equal_rows(rows.take(order), rows)


@settings(max_examples=60, deadline=None)
@given(units=st.lists(_encoded(), min_size=1, max_size=3))
def test_a_unit_travels_through_arrow_in_one_piece(units: list[EncodedRows]):
    """A unit without rows, or one sliced out of a block of several units, comes back as another."""
    for unit in units:
        table = unit.to_arrow()
        assert table.num_rows == 1
        assert_equal_rows(EncodedRows.from_arrow(table), unit)
    alike = [unit for unit in units if (unit.weights is None) == (units[0].weights is None)]
    block = pa.concat_tables([unit.to_arrow() for unit in alike])
    for tables in (block, block.combine_chunks()):
        for place, unit in enumerate(alike):
            assert_equal_rows(EncodedRows.from_arrow(tables.slice(place, 1)), unit)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, block.schema) as writer:
        writer.write_table(block)
    read = pa.ipc.open_stream(sink.getvalue()).read_all()
    assert_equal_rows(EncodedRows.from_arrow(read.slice(len(alike) - 1, 1)), alike[-1])


def test_the_journey_through_arrow_copies_nothing():
    """A copy of every block on either side: the data tasks' memory and time double."""
    hashes = np.zeros(4, np.int64)
    asked = {"users": hashes, "groups": hashes, "slices": np.zeros((4, 2), np.int64)}
    asked["slice_texts"] = np.zeros(3, np.uint8)
    rows = replace(encode_rows([row_of()] * 4), held=np.zeros(4, np.uint8), **asked)
    for left, right in zip(arrays_of(rows), arrays_of(EncodedRows.from_arrow(rows.to_arrow())), strict=True):
        assert left is not None
        assert right is not None
        assert np.shares_memory(left, right)
    assert not np.shares_memory(rows.take(np.arange(4)).dense, rows.dense)  # negative control


def test_a_block_of_two_units_is_not_read_as_one():
    """Ray Data joined two blocks, and the second unit's rows vanish."""
    table = encode_rows([row_of()]).to_arrow()
    with pytest.raises(AssertionError, match="2 units in one block"):
        EncodedRows.from_arrow(pa.concat_tables([table, table]))
