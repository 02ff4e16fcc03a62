"""Encoding: what logs, declarations and statistics may get wrong."""

import math
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from encoding_rows import TYPES, Row, encode_rows, row_of, schema_of, statistics_of, table_of

from features.encoding import Encoder
from features.errors import ConfigError, DataError
from features.statistics import NumberStatistics


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
    schema = schema_of(
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
        ([row_of(), row_of(watched_ids=None)], "column 'watched_ids' has a null list at row 1, and 1 in all"),
        ([row_of(price=-math.inf)], "column 'price' has -inf at row 0: expected finite numbers or null"),
        ([row_of(), row_of(age=math.inf)], "column 'age' has inf at row 1: expected finite numbers or null"),
        ([row_of(), row_of(play_ms=-5)], "task 'ratio': weight 'play_ms / duration_ms' is -0.5 at row 1"),
    ],
)
def test_values_that_are_not_allowed(rows: list[Row], message: str):
    """A value that no model can learn from is trained on, or the message does not say where it is."""
    with pytest.raises(DataError) as caught:
        encode_rows(rows)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_weights_outside_the_space_are_none_of_the_task_s_business():
    """0 / 0 outside the space stops the job, or its NaN reaches the loss, where NaN times 0 is NaN."""
    rows = [row_of(play_ms=0, duration_ms=0), row_of(click=False, play_ms=-5), row_of(play_ms=None), row_of(click=None)]
    encoded = encode_rows([*rows, row_of()])
    assert encoded.weights is not None
    assert encoded.weights[:, 1].tolist() == [1, 1, 1, 1, 0.5]
    assert (encoded.weights[:, [0, 2]] == 1).all()  # tasks that declare none


@pytest.mark.parametrize("weight", [math.nan, math.inf, -1.0, None, 1e39])
def test_weights_within_the_space_are_finite_and_not_negative(weight: float | None):
    """One infinite weight makes every other row's share of the loss zero, a negative one climbs the loss."""
    schema = schema_of(tasks=[{"name": "ctr", "label": "click", "weight": "w"}])
    table = table_of([row_of()] * 3)
    columns = {name: table[name] for name in table.column_names} | {"w": pa.array([1.0, 0.0, weight])}
    encoder = Encoder(schema, statistics_of(schema))
    with pytest.raises(DataError, match=r"task 'ctr': weight 'w' is \S+ at row 2, expected finite >= 0"):
        encoder.encode(columns)
    columns |= {"click": pa.array([1, 0, None])}
    encoded = encoder.encode(columns)
    assert encoded.weights is not None
    assert encoded.weights[:, 0].tolist() == [1, 0, 1]


@pytest.mark.parametrize(("kind", "value"), [("int64", 2**31), ("uint32", 2**31), ("int64", -(2**40))])
def test_a_slot_that_is_none(kind: str, value: int):
    """An id in the slot's column wraps around to a small number."""
    schema = schema_of()
    table = table_of([row_of()] * 2)
    columns = {name: table[name] for name in table.column_names} | {"slot": pa.array([None, value], kind)}
    with pytest.raises(DataError, match=rf"^column 'slot' has {value} at row 1: a slot is"):
        Encoder(schema, statistics_of(schema)).encode(columns)


@pytest.mark.parametrize("kind", ["int8", "uint8", "uint16", "int32", "uint32", "int64", "uint64"])
def test_slots_of_every_integer_type(kind: str):
    """-1, for no slot, does not fit an unsigned column."""
    schema = schema_of()
    table = table_of([row_of()] * 3)
    columns = {name: table[name] for name in table.column_names} | {"slot": pa.array([9, 3, None, 0], kind)[1:]}
    assert Encoder(schema, statistics_of(schema)).encode(columns).slots.tolist() == [3, -1, 0]


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
    schema = schema_of()
    encoder = Encoder(schema, statistics_of(schema), with_truth=True)
    encoder.check_columns(pa.schema(TYPES))  # negative control
    with pytest.raises(DataError) as caught:
        encoder.check_columns(pa.schema(TYPES | {name: kind}))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", sorted(TYPES))
def test_columns_that_are_missing(name: str):
    """A missing column is a KeyError in a data task."""
    schema = schema_of()
    log = pa.schema({column: kind for column, kind in TYPES.items() if column != name})
    with pytest.raises(DataError, match=rf"^no column '{name}' \(1 missing: \['{name}'\]\); the file has \['"):
        Encoder(schema, statistics_of(schema), with_truth=True).check_columns(log)


def test_the_truth_may_be_missing_in_training():
    """Real logs have no column of true probabilities, and training needs none."""
    schema = schema_of()
    log = pa.schema({name: kind for name, kind in TYPES.items() if name != "p_click"})
    Encoder(schema, statistics_of(schema)).check_columns(log)


@pytest.mark.parametrize("absent", ["price", "age"])
def test_statistics_that_lack_a_feature(absent: str):
    """A standardised or bucketised feature is encoded with nothing."""
    schema = schema_of()
    statistics = statistics_of(schema)
    numbers = {name: value for name, value in statistics.numbers.items() if name != absent}
    with pytest.raises(ConfigError, match=f"^feature '{absent}' needs statistics, there are none: run jobs.fit_feat"):
        Encoder(schema, statistics.model_copy(update={"numbers": numbers}))
    with pytest.raises(ConfigError, match=r"^feature 'price' needs statistics"):
        Encoder(schema, None)


def test_statistics_with_more_buckets_than_declared():
    """Statistics of a declaration with more buckets index beyond the table's last row."""
    schema = schema_of()
    with pytest.raises(
        ConfigError, match=r"^feature 'age' has 4 buckets, its statistics have 5: run jobs.fit_features"
    ):
        Encoder(schema, statistics_of(schema, [1.0, 2.0, 3.0, 4.0]))
    Encoder(schema, statistics_of(schema, [1.0, 2.0]))  # negative control: repeated values leave fewer


def test_a_constant_feature_is_not_divided_by_zero():
    """A deviation of 0 makes every value NaN or infinite."""
    schema = schema_of()
    statistics = statistics_of(schema)
    constant = NumberStatistics(count=9, missing=0, mean=math.log1p(2.0), deviation=0.0)
    statistics = statistics.model_copy(update={"numbers": statistics.numbers | {"price": constant}})
    table = table_of([row_of(price=2.0), row_of(price=None)])
    dense = Encoder(schema, statistics).encode({name: table[name] for name in table.column_names}).dense
    assert abs(dense[0, 0]) < 1e-6
    assert np.isnan(dense[1, 0])
