"""From Arrow columns to ids and numbers, against loops over Python lists, in every layout that Arrow allows."""

import itertools
import math

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from features.columns import contiguous, dense_values, id_values, ragged_index
from features.errors import DataError
from features.schema import BucketFeature, DenseFeature, IdFeature, SequenceFeature

_IDS = {
    "int64": (pa.int64(), st.integers(-5, 5)),
    "uint32": (pa.uint32(), st.integers(0, 5)),
    "bool": (pa.bool_(), st.booleans()),
    "string": (pa.string(), st.sampled_from(["", "a", "bb", "größe"])),
    "large_string": (pa.large_string(), st.sampled_from(["", "a", "bb"])),
    "dictionary": (pa.dictionary(pa.int8(), pa.string()), st.sampled_from(["", "a", "bb"])),
}


def _layout(values: list, kind: pa.DataType, before: list, cuts: list[int]) -> pa.Array:
    """An array of the values that begins at an offset, put together from chunks that each do."""
    pieces = np.split(np.arange(len(values)), sorted(min(cut, len(values)) for cut in cuts))
    chunks = [
        pa.array([*before, *(values[index] for index in piece), *before[:1]], kind)[len(before) :][: len(piece)]
        for piece in pieces
    ]
    return pa.chunked_array(chunks, kind).combine_chunks() if len(chunks) > 1 else chunks[0]


@settings(max_examples=120, deadline=None)
@given(data=st.data(), kind=st.sampled_from(sorted(_IDS)), cuts=st.lists(st.integers(0, 8), max_size=2))
def test_ids_equal_a_loop(data: st.DataObject, kind: str, cuts: list[int]):
    """A null id is not an empty bag, or shifts the bags after it, or a slice reads its neighbour's ids."""
    arrow, ids = _IDS[kind]
    values = data.draw(st.lists(st.none() | ids, max_size=8))
    before = data.draw(st.lists(st.none() | ids, max_size=3))
    found, offsets = id_values(IdFeature(kind="id", name="f", table="t"), _layout(values, arrow, before, cuts))
    bags = [[] if value is None else [value] for value in values]
    assert _bags(found, offsets) == bags
    assert found.null_count == 0
    assert offsets.dtype == np.int32


@settings(max_examples=200, deadline=None)
@given(
    data=st.data(),
    kind=st.sampled_from(sorted(_IDS)),
    large=st.booleans(),
    keep=st.sampled_from(["first", "last"]),
    max_length=st.integers(1, 4),
    cuts=st.lists(st.integers(0, 6), max_size=2),
)
def test_sequences_equal_a_loop(
    data: st.DataObject, kind: str, large: bool, keep: str, max_length: int, cuts: list[int]
):
    """The wrong end of a history is kept, a null in it is looked up, or a sliced list begins at the wrong id."""
    arrow, ids = _IDS[kind]
    lists = st.lists(st.lists(st.none() | ids, max_size=6), max_size=6)
    values, before = data.draw(lists), data.draw(st.lists(st.none() | st.lists(ids, max_size=3), max_size=3))
    feature = SequenceFeature(
        kind="sequence", name="f", table="t", max_length=max_length, keep="first" if keep == "first" else "last"
    )
    column = _layout(values, pa.large_list(arrow) if large else pa.list_(arrow), before, cuts)
    found, offsets = id_values(feature, column)
    bags = []
    for value in values:
        kept = value[:max_length] if keep == "first" else value[-max_length:]
        bags.append([item for item in kept if item is not None])
    assert _bags(found, offsets) == bags
    assert found.null_count == 0
    assert offsets.dtype == np.int32


def _bags(ids: pa.Array, offsets: np.ndarray) -> list[list]:
    assert offsets[0] == 0
    assert offsets[-1] == len(ids)
    values = ids.to_pylist()
    return [values[start:stop] for start, stop in itertools.pairwise(offsets)]


def test_a_null_inside_a_dictionary_is_a_null_id():
    """A null among a dictionary's values is not counted by Arrow as a null, and becomes an id of its own."""
    ids = pa.DictionaryArray.from_arrays(pa.array([0, 1, None, 1, 0]), pa.array(["a", None]))
    found, offsets = id_values(IdFeature(kind="id", name="f", table="t"), ids)
    assert _bags(found, offsets) == [["a"], [], [], [], ["a"]]
    lists = pa.ListArray.from_arrays(pa.array([0, 3, 3, 5]), ids)
    found, offsets = id_values(SequenceFeature(kind="sequence", name="f", table="t", max_length=2), lists)
    assert _bags(found, offsets) == [[], [], ["a"]]


def test_lists_over_a_gap():
    """A list array whose values hold more than its rows (a null's leftovers, a slice) is read from its start."""
    values = pa.array([9, 1, 2, 9, 3, 9])
    lists = pa.ListArray.from_arrays(pa.array([1, 3, 4, 5], pa.int32()), values)[::2]
    found, offsets = id_values(SequenceFeature(kind="sequence", name="f", table="t", max_length=5), lists)
    assert _bags(found, offsets) == [[1, 2], [3]]


def test_a_null_list_is_refused():
    """A null list is silently an empty history: the writer's defect goes unseen."""
    feature = SequenceFeature(kind="sequence", name="f", column="watched", table="t", max_length=5)
    column = pa.array([None, [1], [], None, None])[1:]
    with pytest.raises(DataError, match=r"^column 'watched' has a null list at row 2, and 2 in all: .* empty list$"):
        id_values(feature, column)
    assert id_values(feature, column[:2])[1].tolist() == [0, 1, 1]  # negative control: without the nulls


_NUMBERS = {
    "int8": st.integers(-128, 127),
    "uint64": st.integers(0, 2**64 - 1),
    "int64": st.integers(-(2**63), 2**63 - 1),
    "float32": st.floats(width=32, allow_infinity=False),
    "float64": st.floats(-1e38, 1e38) | st.just(math.nan),
    "float16": st.floats(width=16, allow_infinity=False),
    "bool": st.booleans(),
}


@settings(max_examples=120, deadline=None)
@given(
    data=st.data(),
    kind=st.sampled_from(sorted(_NUMBERS)),
    log1p=st.booleans(),
    cuts=st.lists(st.integers(0, 8), max_size=2),
)
def test_numbers_equal_a_loop(data: st.DataObject, kind: str, log1p: bool, cuts: list[int]):
    """Null becomes zero, NaN and null differ, log1p of a negative value is NaN, or a large integer stops the job."""
    arrow = pa.type_for_alias(kind)
    values = data.draw(st.lists(st.none() | _NUMBERS[kind], max_size=8))
    before = data.draw(st.lists(st.none() | _NUMBERS[kind], max_size=3))
    column = _layout(values, arrow, before, cuts)
    found = dense_values(DenseFeature(kind="dense", name="f", log1p=log1p), column)
    expected = []
    for value in values:
        number = math.nan if value is None else float(value)
        expected.append(math.copysign(math.log1p(abs(number)), number) if log1p else number)
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, expected, rtol=1e-12)


@pytest.mark.parametrize("value", [math.inf, -math.inf, 1e39])
@pytest.mark.parametrize("kind", ["dense", "bucket"])
def test_an_infinite_number_is_refused(value: float, kind: str):
    """An infinity, or what becomes one as float32, reaches the model: every weight is NaN after one step."""
    feature = (
        DenseFeature(kind="dense", name="f", column="price")
        if kind == "dense"
        else BucketFeature(kind="bucket", name="f", column="price", table="t", num_buckets=2)
    )
    column = pa.array([math.inf, None, 1.0, value])[1:]
    with pytest.raises(DataError, match=r"^column 'price' has \S+ at row 2: expected finite numbers or null"):
        dense_values(feature, column)
    assert len(dense_values(feature, column[:2])) == 2  # negative control


def test_contiguous_copies_only_what_is_in_pieces():
    """Columns of a Parquet table, which are chunked, are not accepted, or are copied where that is not needed."""
    whole, pieces = pa.array([1, 2]), pa.chunked_array([[1], [2]])
    strings = pa.chunked_array([pa.array(["a", "b"]).dictionary_encode(), pa.array(["c", "b"]).dictionary_encode()])
    columns = contiguous({"whole": whole, "pieces": pieces, "strings": strings, "none": pa.chunked_array([], "int64")})
    assert columns["whole"] is whole
    assert columns["pieces"].equals(whole)
    assert columns["strings"].to_pylist() == ["a", "b", "c", "b"]
    assert columns["none"].to_pylist() == []
    once = pa.chunked_array([whole])
    assert contiguous({"once": once})["once"].buffers()[1].address == whole.buffers()[1].address


@settings(max_examples=60, deadline=None)
@given(lengths=st.lists(st.tuples(st.integers(0, 9), st.integers(0, 4)), max_size=8))
@example(lengths=[])
def test_ragged_index_equals_a_loop(lengths: list[tuple[int, int]]):
    """Rows of length zero shift the rows after them."""
    starts = np.array([start for start, _ in lengths], np.int64)
    offsets = np.concatenate(([0], np.cumsum([length for _, length in lengths]))).astype(np.int64)
    expected = [start + place for start, length in lengths for place in range(length)]
    assert ragged_index(starts, offsets).tolist() == expected


def test_integers_beyond_two_to_the_53_are_rounded():
    """A timestamp in nanoseconds stops the job with "Integer value not in range"."""
    feature = DenseFeature(kind="dense", name="f")
    assert dense_values(feature, pa.array([2**53 + 1, -(2**62)])).tolist() == [2.0**53, -(2.0**62)]
    assert dense_values(feature, pa.array([2**64 - 1], pa.uint64())).tolist() == [2.0**64]
