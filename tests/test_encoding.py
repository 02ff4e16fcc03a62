"""Encoding against a loop over Python rows, the journey of encoded rows through Arrow, and what logs may get wrong."""

import itertools
import math
from dataclasses import fields, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from features.encoded_rows import EncodedRows
from features.encoding import Encoder, evaluate_space
from features.errors import ConfigError, DataError
from features.hashing import hash_ids, salt_of
from features.schema import Schema
from features.statistics import NumberStatistics, Statistics

Row = dict[str, Any]

_TABLE_ROWS = {"video": 1000, "author": 50, "age": 6}
_TYPES = {
    "video_id": pa.int64(),
    "author_id": pa.string(),
    "watched_ids": pa.list_(pa.int64()),
    "liked": pa.list_(pa.string()),
    "price": pa.float64(),
    "days": pa.int32(),
    "age": pa.float32(),
    "slot": pa.uint8(),
    "click": pa.bool_(),
    "play_ms": pa.int64(),
    "duration_ms": pa.int64(),
    "mood": pa.int8(),
    "p_click": pa.float32(),
}
_BOUNDARIES = [18.0, 30.0, 50.0]


def _declared() -> dict[str, Any]:
    return {
        "tables": [{"name": name, "num_rows": rows, "dim": 4} for name, rows in _TABLE_ROWS.items()],
        "features": [
            {"kind": "id", "name": "video_id", "table": "video"},
            {"kind": "id", "name": "author_id", "table": "author"},
            {"kind": "dense", "name": "price", "log1p": True, "clip": 1.5},
            {"kind": "sequence", "name": "watched", "column": "watched_ids", "table": "video", "max_length": 2},
            {"kind": "sequence", "name": "liked", "table": "author", "max_length": 3, "keep": "first"},
            {"kind": "bucket", "name": "age", "table": "age", "num_buckets": 4},
            {"kind": "dense", "name": "days", "standardise": False},
        ],
        "tasks": [
            {"name": "ctr", "label": "click", "truth": "p_click"},
            {"name": "ratio", "kind": "regression", "label": "clip(play_ms / duration_ms, 0, 1)", "link": "sigmoid"}
            | {"space": "click and duration_ms > 0", "weight": "play_ms / duration_ms"},
            {"name": "mood", "kind": "multiclass", "num_classes": 3, "label": "mood"},
        ],
        "slot": "slot",
    }


def _schema(**changes: Any) -> Schema:
    return Schema.model_validate(_declared() | changes)


def _statistics(schema: Schema, boundaries: list[float] | None = None) -> Statistics:
    numbers = {
        "price": NumberStatistics(count=9, missing=1, mean=0.5, deviation=2.0),
        "age": NumberStatistics(count=9, missing=1, mean=30, deviation=9, boundaries=boundaries or _BOUNDARIES),
    }
    return Statistics(
        days=[], rows=10, numbers=numbers, distinct_ids={}, missing_ids={}, schema_fingerprint=schema.fingerprint()
    )


def _row(**changes: Any) -> Row:
    row = {"video_id": 7, "author_id": "ann", "watched_ids": [1, 2], "liked": ["bob"], "price": 2.0, "days": 3}
    row |= {"age": 20.0, "slot": 4, "click": True, "play_ms": 5, "duration_ms": 10, "mood": 2, "p_click": 0.25}
    return row | changes


def _table(rows: list[Row]) -> pa.Table:
    return pa.table({name: pa.array([row[name] for row in rows], kind) for name, kind in _TYPES.items()})


def _encode(rows: list[Row], schema: Schema | None = None, **keywords: Any) -> EncodedRows:
    schema = schema or _schema()
    table = _table(rows)
    columns = {name: table[name] for name in table.column_names}
    return Encoder(schema, _statistics(schema), with_truth=True).encode(columns, **keywords)


def _table_row(value: int | str, table: str) -> int:
    return int(hash_ids(pa.array([value]), salt_of("counterpoise"))[0] >> 32) * _TABLE_ROWS[table] >> 32


def _bag(values: list, table: str) -> list[int]:
    return [_table_row(value, table) for value in values if value is not None]


def _missing(value: float | None) -> bool:
    return value is None or math.isnan(value)


def _encoded_by_hand(row: Row) -> dict[str, Any]:
    """What one row becomes, written down from the declaration alone."""
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
            [0 if _missing(row["age"]) else 1 + sum(row["age"] >= boundary for boundary in _BOUNDARIES)],
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
    schema = _schema()
    encoder = Encoder(schema, _statistics(schema), with_truth=True)
    sliced = _table(others + rows).slice(len(others))
    dictionary = sliced.set_column(1, "author_id", sliced["author_id"].dictionary_encode())
    large = _table(rows).cast(
        pa.schema(
            {**_TYPES, "liked": pa.large_list(pa.large_string()), "watched_ids": pa.large_list(pa.int64())}
            | {"author_id": pa.large_string()}
        )
    )
    chunked = pa.concat_tables([sliced.slice(0, cut), sliced.slice(cut, 1), sliced.slice(cut + 1)])
    for table in (_table(rows), sliced, dictionary, large, chunked, chunked.combine_chunks()):
        encoder.check_columns(table.schema)
        _check(encoder.encode({name: table[name] for name in encoder.columns}), rows)
    arrays = {name: sliced[name].combine_chunks() for name in encoder.columns}
    _check(encoder.encode({name: array.slice(cut) for name, array in arrays.items()}), rows[cut:])


def test_the_reference_is_sensitive():
    """Negative control of the test above: it tells rows apart that differ in one value."""
    assert _check(_encode([_row()]), [_row()]) is None
    for name, value in (
        ("video_id", 8),
        ("liked", []),
        ("price", None),
        ("age", 30.0),
        ("slot", None),
        ("click", None),
    ):
        with pytest.raises(AssertionError):
            _check(_encode([_row()]), [_row(**{name: value})])


def test_row_numbers_count_within_the_unit():
    """A range of a large row group starts again at row 0: the audit counts rows twice and others never."""
    assert _encode([_row()] * 3, first_row=5).rows.tolist() == [5, 6, 7]
    assert _encode([]).rows.tolist() == []


@pytest.mark.parametrize("with_truth", [True, False])
def test_empty_is_what_no_rows_encode_to(with_truth: bool):
    """A block without rows has other columns or types than one with rows, and Ray Data cannot join them."""
    schema = _schema()
    encoder = Encoder(schema, _statistics(schema), with_truth=with_truth)
    table = _table([])
    _assert_equal(encoder.empty(), encoder.encode({name: table[name] for name in encoder.columns}))
    table = _table([_row()])
    some = encoder.encode({name: table[name] for name in encoder.columns})
    assert encoder.empty().to_arrow().schema == some.to_arrow().schema


def test_a_shared_table_gives_a_video_one_row():
    """A watched video and the candidate itself land on two rows of the table that they share."""
    encoded = _encode([_row(video_id=41, watched_ids=[41, 40])])
    assert encoded.ids[0][0] == encoded.ids[2][0] != encoded.ids[2][1]


def test_a_schema_with_ids_only():
    """No dense feature, no slot, no weight, no truth: an array without columns loses its shape on the way."""
    schema = _schema(
        features=[{"kind": "id", "name": "video_id", "table": "video"}],
        tables=[{"name": "video", "num_rows": 10, "dim": 4}],
        tasks=[{"name": "ctr", "label": "click"}],
        slot=None,
    )
    encoder = Encoder(schema, None, with_truth=True)
    assert encoder.columns == ["video_id", "click"]
    for rows in ([], [_row(), _row()]):
        table = _table(rows)
        encoded = encoder.encode({name: table[name] for name in encoder.columns})
        for found in (encoded, EncodedRows.from_arrow(encoded.to_arrow()), encoded.take(np.arange(len(rows)))):
            assert found.dense.shape == (len(rows), 0)
            assert found.labels.shape == (len(rows), 1)
            assert found.weights is None
            assert found.truth is None
            assert found.slots.tolist() == [-1] * len(rows)


def test_the_truth_is_read_only_when_asked_for():
    """The synthetic truth is read in training: it would be a leak in real logs that have such a column."""
    schema = _schema()
    encoder = Encoder(schema, _statistics(schema))
    assert "p_click" not in encoder.columns
    table = _table([_row()])
    assert encoder.encode({name: table[name] for name in encoder.columns}).truth is None


def test_spaces():
    """A null or NaN space counts as inside, or a space of numbers is refused."""
    columns = {"x": pa.array([0, None, 1, 2, 3])[1:], "y": pa.array([5, math.nan, None, 1.0, 0.0])[1:]}
    assert evaluate_space("x > 1", columns).tolist() == [False, False, True, True]
    assert evaluate_space("x", columns).tolist() == [False, True, True, True]
    assert evaluate_space("y", columns).tolist() == [False, False, True, False]
    assert evaluate_space("is_null(y)", columns).tolist() == [True, True, False, False]


# --- EncodedRows: take, and through Arrow and back ---


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
    )


def _arrays(rows: EncodedRows) -> list[np.ndarray | None]:
    found = []
    for field in fields(rows):
        value = getattr(rows, field.name)
        found += value if isinstance(value, list) else [value]
    return found


def _assert_equal(found: EncodedRows, expected: EncodedRows) -> None:
    for left, right in zip(_arrays(found), _arrays(expected), strict=True):
        if left is None or right is None:
            assert left is right
            continue
        assert left.dtype == right.dtype
        np.testing.assert_array_equal(left, right)  # shapes too; NaN equals NaN


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
    for name in ("dense", "labels", "weights", "slots", "rows", "truth"):
        value, taken = getattr(rows, name), getattr(found, name)
        if value is None:
            assert taken is None
            continue
        assert taken.dtype == value.dtype
        np.testing.assert_array_equal(taken, value[np.array(order, np.int64)])


def test_take_of_everything_and_of_a_permutation_and_back():
    """A shuffle that is undone is not what it was."""
    rows = _encode([_row(video_id=number, watched_ids=list(range(number % 3))) for number in range(20)])
    order = np.random.default_rng(0).permutation(20)
    _assert_equal(rows.take(np.arange(20)), rows)
    _assert_equal(rows.take(order).take(np.argsort(order)), rows)
    with pytest.raises(AssertionError):  # negative control
        _assert_equal(rows.take(order), rows)


@settings(max_examples=60, deadline=None)
@given(units=st.lists(_encoded(), min_size=1, max_size=3))
def test_a_unit_travels_through_arrow_in_one_piece(units: list[EncodedRows]):
    """A unit without rows, or one sliced out of a block of several units, comes back as another."""
    for unit in units:
        table = unit.to_arrow()
        assert table.num_rows == 1
        _assert_equal(EncodedRows.from_arrow(table), unit)
    alike = [unit for unit in units if (unit.weights is None) == (units[0].weights is None)]
    block = pa.concat_tables([unit.to_arrow() for unit in alike])
    for tables in (block, block.combine_chunks()):
        for place, unit in enumerate(alike):
            _assert_equal(EncodedRows.from_arrow(tables.slice(place, 1)), unit)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, block.schema) as writer:
        writer.write_table(block)
    read = pa.ipc.open_stream(sink.getvalue()).read_all()
    _assert_equal(EncodedRows.from_arrow(read.slice(len(alike) - 1, 1)), alike[-1])


def test_the_journey_through_arrow_copies_nothing():
    """A copy of every block on either side: the data tasks' memory and time double."""
    rows = replace(_encode([_row()] * 4), held=np.zeros(4, np.uint8))
    for left, right in zip(_arrays(rows), _arrays(EncodedRows.from_arrow(rows.to_arrow())), strict=True):
        assert left is not None
        assert right is not None
        assert np.shares_memory(left, right)
    assert not np.shares_memory(rows.take(np.arange(4)).dense, rows.dense)  # negative control


def test_a_block_of_two_units_is_not_read_as_one():
    """Ray Data joined two blocks, and the second unit's rows vanish."""
    table = _encode([_row()]).to_arrow()
    with pytest.raises(AssertionError, match="2 units in one block"):
        EncodedRows.from_arrow(pa.concat_tables([table, table]))


# --- What logs and declarations may get wrong ---


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"click": "2"}, "task 'ctr': label 'click' is 2 at row 2 (1 such rows), expected 0 or 1"),
        ({"click": "0.5"}, "task 'ctr': label 'click' is 0.5 at row 2"),
        ({"click": "inf"}, "task 'ctr': label 'click' is inf at row 2"),
        ({"mood": "3"}, "task 'mood': label 'mood' is 3 at row 2 (1 such rows), expected a class from 0 to 2"),
        ({"mood": "-1"}, "expected a class from 0 to 2"),
        ({"mood": "1.5"}, "expected a class from 0 to 2"),
        (
            {"ratio": "1.25"},
            "task 'ratio': label 'ratio' is 1.25 at row 2 (1 such rows), expected a number from 0 to 1",
        ),
        ({"ratio": "-0.25"}, "expected a number from 0 to 1"),
        ({"watch_s": "-inf"}, "expected a finite number"),
        ({"watch_s": "1e39"}, "expected a finite number"),
        ({"views": "-1"}, "task 'views': label 'views' is -1 at row 2 (1 such rows), expected a finite number of at"),
        ({"views": "inf"}, "expected a finite number of at least 0"),
        ({"buys": "-1"}, "expected a finite number of at least 0"),
    ],
    ids=lambda value: value if isinstance(value, str) else str(value),
)
def test_labels_that_a_task_does_not_allow(changes: dict[str, str], message: str):
    """A wrong label in the space trains, and one outside the space, where it is none of the task's business, stops."""
    kinds: dict[str, dict[str, Any]] = {
        "click": {"name": "ctr"},
        "mood": {"kind": "multiclass", "num_classes": 3},
        "ratio": {"kind": "regression", "link": "sigmoid"},
        "watch_s": {"kind": "regression", "loss": "huber"},
        "views": {"kind": "regression", "loss": "poisson"},
        "buys": {"kind": "regression", "log1p_target": True},
    }
    schema = _schema(
        tables=[{"name": "video", "num_rows": 10, "dim": 4}],
        features=[{"kind": "id", "name": "video_id", "table": "video"}],
        tasks=[{"name": label, "label": label, "space": "shown"} | kind for label, kind in kinds.items()],
        slot=None,
    )
    values = dict.fromkeys(kinds, 1.0) | {name: float(text) for name, text in changes.items()}
    columns = {name: pa.array([1.0, None, value, value]) for name, value in values.items()}
    columns |= {"video_id": pa.array([1, 2, 3, 4]), "shown": pa.array([True, True, True, False])}
    encoder = Encoder(schema, None)
    with pytest.raises(DataError) as caught:
        encoder.encode(columns)
    assert message in str(caught.value)
    assert "leave these rows out of the task's space" in str(caught.value)
    assert "\n" not in str(caught.value)
    encoded = encoder.encode(columns | {"shown": pa.array([True, True, False, None])})
    assert np.isnan(encoded.labels[1:]).all()
    assert (encoded.labels[0] == 1).all()


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([_row(), _row(watched_ids=None)], "column 'watched_ids' has a null list at row 1, and 1 in all"),
        ([_row(price=-math.inf)], "column 'price' has -inf at row 0: expected finite numbers or null"),
        ([_row(), _row(age=math.inf)], "column 'age' has inf at row 1: expected finite numbers or null"),
        ([_row(), _row(play_ms=-5)], "task 'ratio': weight 'play_ms / duration_ms' is -0.5 at row 1"),
    ],
)
def test_values_that_are_not_allowed(rows: list[Row], message: str):
    """A value that no model can learn from is trained on, or the message does not say where it is."""
    with pytest.raises(DataError) as caught:
        _encode(rows)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_weights_outside_the_space_are_none_of_the_task_s_business():
    """0 / 0 outside the space stops the job, or its NaN reaches the loss, where NaN times 0 is NaN."""
    rows = [_row(play_ms=0, duration_ms=0), _row(click=False, play_ms=-5), _row(play_ms=None), _row(click=None)]
    encoded = _encode([*rows, _row()])
    assert encoded.weights is not None
    assert encoded.weights[:, 1].tolist() == [1, 1, 1, 1, 0.5]
    assert (encoded.weights[:, [0, 2]] == 1).all()  # tasks that declare none


@pytest.mark.parametrize("weight", [math.nan, math.inf, -1.0, None, 1e39])
def test_weights_within_the_space_are_finite_and_not_negative(weight: float | None):
    """One infinite weight makes every other row's share of the loss zero, a negative one climbs the loss."""
    schema = _schema(tasks=[{"name": "ctr", "label": "click", "weight": "w"}])
    table = _table([_row()] * 3)
    columns = {name: table[name] for name in table.column_names} | {"w": pa.array([1.0, 0.0, weight])}
    encoder = Encoder(schema, _statistics(schema))
    with pytest.raises(DataError, match=r"task 'ctr': weight 'w' is \S+ at row 2, expected finite >= 0"):
        encoder.encode(columns)
    columns |= {"click": pa.array([1, 0, None])}
    encoded = encoder.encode(columns)
    assert encoded.weights is not None
    assert encoded.weights[:, 0].tolist() == [1, 0, 1]


@pytest.mark.parametrize(("kind", "value"), [("int64", 2**31), ("uint32", 2**31), ("int64", -(2**40))])
def test_a_slot_that_is_none(kind: str, value: int):
    """An id in the slot's column wraps around to a small number."""
    schema = _schema()
    table = _table([_row()] * 2)
    columns = {name: table[name] for name in table.column_names} | {"slot": pa.array([None, value], kind)}
    with pytest.raises(DataError, match=rf"^column 'slot' has {value} at row 1: a slot is"):
        Encoder(schema, _statistics(schema)).encode(columns)


@pytest.mark.parametrize("kind", ["int8", "uint8", "uint16", "int32", "uint32", "int64", "uint64"])
def test_slots_of_every_integer_type(kind: str):
    """-1, for no slot, does not fit an unsigned column."""
    schema = _schema()
    table = _table([_row()] * 3)
    columns = {name: table[name] for name in table.column_names} | {"slot": pa.array([9, 3, None, 0], kind)[1:]}
    assert Encoder(schema, _statistics(schema)).encode(columns).slots.tolist() == [3, -1, 0]


_WRONG_TYPES = [
    ("video_id", pa.float64(), "column 'video_id' is double, feature 'video_id' is an id: expected integers, strings"),
    ("video_id", pa.list_(pa.int64()), "feature 'video_id' is an id"),
    ("video_id", pa.timestamp("ms"), "feature 'video_id' is an id"),
    ("video_id", pa.dictionary(pa.int8(), pa.float64()), "feature 'video_id' is an id"),
    ("watched_ids", pa.int64(), "column 'watched_ids' is int64, feature 'watched' is a sequence: expected a list of"),
    ("watched_ids", pa.list_(pa.float32()), "feature 'watched' is a sequence"),
    ("watched_ids", pa.list_(pa.list_(pa.int64())), "feature 'watched' is a sequence"),
    ("price", pa.string(), "column 'price' is string, feature 'price' is dense: expected a number or boolean"),
    ("price", pa.timestamp("ms"), "feature 'price' is dense"),
    ("age", pa.string(), "column 'age' is string, feature 'age' is bucketised: expected a number or boolean"),
    ("slot", pa.float32(), "column 'slot' is float, the slot is an integer"),
    ("click", pa.string(), "task 'ctr': 'click' is string, expected a number or boolean"),
    ("mood", pa.list_(pa.int8()), "task 'mood': 'mood' is list<"),
    (
        "play_ms",
        pa.string(),
        "expression 'clip(play_ms / duration_ms, 0, 1)' does not fit its columns (play_ms: string",
    ),
    ("p_click", pa.string(), "task 'ctr': 'p_click' is string"),
]


@pytest.mark.parametrize(("name", "kind", "message"), _WRONG_TYPES)
def test_columns_of_a_wrong_type(name: str, kind: pa.DataType, message: str):
    """A wrong type is met hours later in a data task, as pyarrow's own error without a column's name."""
    schema = _schema()
    encoder = Encoder(schema, _statistics(schema), with_truth=True)
    encoder.check_columns(pa.schema(_TYPES))  # negative control
    with pytest.raises(DataError) as caught:
        encoder.check_columns(pa.schema(_TYPES | {name: kind}))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", sorted(_TYPES))
def test_columns_that_are_missing(name: str):
    """A missing column is a KeyError in a data task."""
    schema = _schema()
    log = pa.schema({column: kind for column, kind in _TYPES.items() if column != name})
    with pytest.raises(DataError, match=rf"^no column '{name}' \(1 missing: \['{name}'\]\); the file has \['"):
        Encoder(schema, _statistics(schema), with_truth=True).check_columns(log)


def test_the_truth_may_be_missing_in_training():
    """Real logs have no column of true probabilities, and training needs none."""
    schema = _schema()
    log = pa.schema({name: kind for name, kind in _TYPES.items() if name != "p_click"})
    Encoder(schema, _statistics(schema)).check_columns(log)


@pytest.mark.parametrize("absent", ["price", "age"])
def test_statistics_that_lack_a_feature(absent: str):
    """A standardised or bucketised feature is encoded with nothing."""
    schema = _schema()
    statistics = _statistics(schema)
    numbers = {name: value for name, value in statistics.numbers.items() if name != absent}
    with pytest.raises(ConfigError, match=f"^feature '{absent}' needs statistics, there are none: run jobs.fit_feat"):
        Encoder(schema, statistics.model_copy(update={"numbers": numbers}))
    with pytest.raises(ConfigError, match=r"^feature 'price' needs statistics"):
        Encoder(schema, None)


def test_statistics_with_more_buckets_than_declared():
    """Statistics of a declaration with more buckets index beyond the table's last row."""
    schema = _schema()
    with pytest.raises(
        ConfigError, match=r"^feature 'age' has 4 buckets, its statistics have 5: run jobs.fit_features"
    ):
        Encoder(schema, _statistics(schema, [1.0, 2.0, 3.0, 4.0]))
    Encoder(schema, _statistics(schema, [1.0, 2.0]))  # negative control: repeated values leave fewer


def test_a_constant_feature_is_not_divided_by_zero():
    """A deviation of 0 makes every value NaN or infinite."""
    schema = _schema()
    statistics = _statistics(schema)
    constant = NumberStatistics(count=9, missing=0, mean=math.log1p(2.0), deviation=0.0)
    statistics = statistics.model_copy(update={"numbers": statistics.numbers | {"price": constant}})
    table = _table([_row(price=2.0), _row(price=None)])
    dense = Encoder(schema, statistics).encode({name: table[name] for name in table.column_names}).dense
    assert abs(dense[0, 0]) < 1e-6
    assert np.isnan(dense[1, 0])
