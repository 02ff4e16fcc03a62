"""Encoding against a loop over Python rows."""

import math
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from encoding_rows import (
    BOUNDARIES,
    TABLE_ROWS,
    TYPES,
    Row,
    assert_equal_rows,
    encode_rows,
    row_of,
    schema_of,
    statistics_of,
    table_of,
)
from hypothesis import example, given, settings
from hypothesis import strategies as st

from features.encoded_rows import EncodedRows
from features.encoding import Encoder, evaluate_space
from features.hashing import hash_ids, salt_of


def _table_row(value: int | str, table: str) -> int:
    return int(hash_ids(pa.array([value]), salt_of("counterpoise"))[0] >> 32) * TABLE_ROWS[table] >> 32


def _bag(values: list, table: str) -> list[int]:
    return [_table_row(value, table) for value in values if value is not None]


def _missing(value: float | None) -> bool:
    return value is None or math.isnan(value)


def _encoded_by_hand(row: Row) -> dict[str, Any]:
    """Encode one row, from the declaration alone."""
    price = math.nan
    if not _missing(row["price"]):
        price = math.copysign(math.log1p(abs(row["price"])), row["price"])
        price = min(max((price - 0.5) / 2.0, -1.5), 1.5)
    ratio, weight = math.nan, 1.0
    if row["click"] and row["duration_ms"] is not None and row["duration_ms"] > 0 and row["play_ms"] is not None:
        ratio = min(max(row["play_ms"] / row["duration_ms"], 0), 1)
        weight = row["play_ms"] / row["duration_ms"]
    click, mood = (math.nan if row[name] is None else float(row[name]) for name in ("click", "mood"))
    return {
        "bags": [
            _bag([row["video_id"]], "video"),
            _bag([row["author_id"]], "author"),
            _bag(row["watched_ids"][-2:], "video"),
            _bag(row["liked"][:3], "author"),
            [0 if _missing(row["age"]) else 1 + sum(row["age"] >= boundary for boundary in BOUNDARIES)],
        ],
        "dense": [price, math.nan if row["days"] is None else float(row["days"])],
        "labels": [click, ratio, mood],
        "weights": [1.0, weight, 1.0],
        "slots": -1 if row["slot"] is None else row["slot"],
        "truth": [math.nan if row["p_click"] is None else row["p_click"], math.nan, math.nan],
    }


_IDS = st.none() | st.integers(-3, 3)
_NAMES = st.none() | st.sampled_from(["ann", "bob", "", "a name of more than sixteen bytes"])
_ROWS = st.lists(
    st.fixed_dictionaries(
        {
            "video_id": _IDS,
            "author_id": _NAMES,
            "watched_ids": st.lists(_IDS, max_size=4),
            "liked": st.lists(_NAMES, max_size=5),
            "price": st.none() | st.sampled_from([math.nan, -3.0, 0.0, 0.1, 2.5, 1e30]),
            "days": st.none() | st.integers(-9, 9),
            "age": st.none() | st.sampled_from([math.nan, 0.0, 17.9, 18.0, 49.5, 50.0, 1e9]),
            "slot": st.none() | st.integers(0, 255),
            "click": st.none() | st.booleans(),
            "play_ms": st.none() | st.integers(0, 20),
            "duration_ms": st.none() | st.integers(0, 10),
            "mood": st.none() | st.integers(0, 2),
            "p_click": st.none() | st.sampled_from([0.0, 0.25, 1.0]),
        }
    ),
    max_size=8,
)


def _check(found: EncodedRows, rows: list[Row]) -> None:
    """Hold encoded rows to the reference."""
    expected = [_encoded_by_hand(row) for row in rows]
    assert len(found) == len(rows)
    for index, (ids, offsets) in enumerate(zip(found.ids, found.offsets, strict=True)):
        assert ids.dtype == offsets.dtype == np.int32
        assert offsets[0] == 0
        assert offsets[-1] == len(ids)
        bags = [ids[offsets[place] : offsets[place + 1]].tolist() for place in range(len(rows))]
        assert bags == [row["bags"][index] for row in expected]
    assert found.slots.tolist() == [row["slots"] for row in expected]
    assert found.slots.dtype == found.rows.dtype == np.int32
    for name, width in (("dense", 2), ("labels", 3), ("weights", 3), ("truth", 3)):
        values = getattr(found, name)
        assert values.dtype == np.float32
        assert values.shape == (len(rows), width)
        reference = np.array([row[name] for row in expected], np.float32).reshape(-1, width)
        np.testing.assert_allclose(values, reference, rtol=1e-6, err_msg=name)


@settings(max_examples=150, deadline=None)
@given(rows=_ROWS, others=_ROWS, cut=st.integers(0, 8))
@example(rows=[], others=[], cut=0)
def test_encoding_equals_a_loop_in_every_layout(rows: list[Row], others: list[Row], cut: int):
    """Bags shift at a null, NaN and null part ways, or slices and chunks of a table are read from the wrong place."""
    schema = schema_of()
    encoder = Encoder(schema, statistics_of(schema), with_truth=True)
    sliced = table_of(others + rows).slice(len(others))
    dictionary = sliced.set_column(1, "author_id", sliced["author_id"].dictionary_encode())
    large = table_of(rows).cast(
        pa.schema(
            {**TYPES, "liked": pa.large_list(pa.large_string()), "watched_ids": pa.large_list(pa.int64())}
            | {"author_id": pa.large_string()}
        )
    )
    chunked = pa.concat_tables([sliced.slice(0, cut), sliced.slice(cut, 1), sliced.slice(cut + 1)])
    for table in (table_of(rows), sliced, dictionary, large, chunked, chunked.combine_chunks()):
        encoder.check_columns(table.schema)
        _check(encoder.encode({name: table[name] for name in encoder.columns}), rows)
    arrays = {name: sliced[name].combine_chunks() for name in encoder.columns}
    _check(encoder.encode({name: array.slice(cut) for name, array in arrays.items()}), rows[cut:])


def test_the_reference_is_sensitive():
    """Negative control of the test above: it tells rows apart that differ in one value."""
    assert _check(encode_rows([row_of()]), [row_of()]) is None
    for name, value in (
        ("video_id", 8),
        ("liked", []),
        ("price", None),
        ("age", 30.0),
        ("slot", None),
        ("click", None),
    ):
        with pytest.raises(AssertionError):
            _check(encode_rows([row_of()]), [row_of(**{name: value})])


def test_row_numbers_count_within_the_unit():
    """A range of a large row group starts again at row 0: the audit counts rows twice and others never."""
    assert encode_rows([row_of()] * 3, first_row=5).rows.tolist() == [5, 6, 7]
    assert encode_rows([]).rows.tolist() == []


@pytest.mark.parametrize("with_truth", [True, False])
def test_empty_is_what_no_rows_encode_to(with_truth: bool):
    """A block without rows has other columns or types than one with rows, and Ray Data cannot join them."""
    schema = schema_of()
    encoder = Encoder(schema, statistics_of(schema), with_truth=with_truth)
    table = table_of([])
    assert_equal_rows(encoder.empty(), encoder.encode({name: table[name] for name in encoder.columns}))
    table = table_of([row_of()])
    some = encoder.encode({name: table[name] for name in encoder.columns})
    assert encoder.empty().to_arrow().schema == some.to_arrow().schema


def test_a_shared_table_gives_a_video_one_row():
    """A watched video and the candidate itself land on two rows of the table that they share."""
    encoded = encode_rows([row_of(video_id=41, watched_ids=[41, 40])])
    assert encoded.ids[0][0] == encoded.ids[2][0] != encoded.ids[2][1]


def test_a_schema_with_ids_only():
    """No dense feature, no slot, no weight, no truth: an array without columns loses its shape on the way."""
    schema = schema_of(
        features=[{"kind": "id", "name": "video_id", "table": "video"}],
        tables=[{"name": "video", "num_rows": 10, "dim": 4}],
        tasks=[{"name": "ctr", "label": "click"}],
        slot=None,
    )
    encoder = Encoder(schema, None, with_truth=True)
    assert encoder.columns == ["video_id", "click"]
    for rows in ([], [row_of(), row_of()]):
        table = table_of(rows)
        encoded = encoder.encode({name: table[name] for name in encoder.columns})
        for found in (encoded, EncodedRows.from_arrow(encoded.to_arrow()), encoded.take(np.arange(len(rows)))):
            assert found.dense.shape == (len(rows), 0)
            assert found.labels.shape == (len(rows), 1)
            assert found.weights is None
            assert found.truth is None
            assert found.slots.tolist() == [-1] * len(rows)


def test_the_truth_is_read_only_when_asked_for():
    """The synthetic truth is read in training: it would be a leak in real logs that have such a column."""
    schema = schema_of()
    encoder = Encoder(schema, statistics_of(schema))
    assert "p_click" not in encoder.columns
    table = table_of([row_of()])
    assert encoder.encode({name: table[name] for name in encoder.columns}).truth is None


def test_spaces():
    """A null or NaN space counts as inside, or a space of numbers is refused."""
    columns = {"x": pa.array([0, None, 1, 2, 3])[1:], "y": pa.array([5, math.nan, None, 1.0, 0.0])[1:]}
    assert evaluate_space("x > 1", columns).tolist() == [False, False, True, True]
    assert evaluate_space("x", columns).tolist() == [False, True, True, True]
    assert evaluate_space("y", columns).tolist() == [False, False, True, False]
    assert evaluate_space("is_null(y)", columns).tolist() == [True, True, False, False]
