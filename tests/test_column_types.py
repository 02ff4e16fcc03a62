"""Arrow types of a log's columns: which are read, and that a column without a type in one file is missing values."""

import io
from decimal import Decimal
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from features.columns import contiguous
from features.encoding import Encoder, check_columns
from features.errors import DataError
from features.holdout import HoldoutConfig
from features.ids import id_type
from features.profile import DayProfile
from features.schema import Schema
from features.statistics import StatisticsAccumulator

SCHEMA = Schema.model_validate(
    {
        "tables": [{"name": "videos", "num_rows": 1000, "dim": 4}],
        "features": [
            {"name": "video", "kind": "id", "table": "videos"},
            {"name": "watched", "kind": "sequence", "table": "videos", "max_length": 3},
            {"name": "price", "kind": "dense", "standardise": False},
        ],
        "slot": "place",
        "tasks": [
            {"name": "ctr", "kind": "binary", "label": "click"},
            {"name": "wifi", "kind": "binary", "label": "scene in ('wifi', 'cell')", "space": "scene != 'feed'"},
            {"name": "spend", "kind": "regression", "label": "coalesce(paid, price)"},
        ],
    }
)
USUAL: dict[str, Any] = {
    "video": pa.array([7, 8, 7]),
    "watched": pa.array([[7, 8], [7, 9], [8, 8]]),
    "price": pa.array([1.5, 2.0, 0.0]),
    "place": pa.array([0, 1, 2]),
    "click": pa.array([1, 0, 1]),
    "scene": pa.array(["wifi", "feed", "x"]),
    "paid": pa.array([1.5, None, 3.0]),
}
DECIMALS = pa.array([Decimal("1.50"), Decimal("2.00"), Decimal(0)], pa.decimal128(10, 2))


def _stored(columns: dict[str, Any]) -> dict[str, pa.ChunkedArray]:
    """Return the columns as they come back from a Parquet file."""
    data = io.BytesIO()
    pq.write_table(pa.table(columns), data)
    table = pq.read_table(io.BytesIO(data.getvalue()))
    return {name: table[name] for name in table.column_names}


def _encoded(columns: dict[str, Any]) -> list[str]:
    stored = _stored(columns)
    check_columns(SCHEMA, pa.schema([(name, column.type) for name, column in stored.items()]), list(stored))
    encoder = Encoder(SCHEMA, None)
    rows = encoder.encode(stored)
    parts = [*rows.ids, *rows.offsets, rows.dense, rows.labels, rows.slots]
    return [str(np.asarray(part).tolist()) for part in parts]


@pytest.mark.parametrize(
    "changed",
    [
        {"price": DECIMALS},
        {"price": pa.array(DECIMALS, pa.decimal256(40, 2))},
        {"click": pa.array([1, 0, 1], pa.decimal128(3, 0))},
        {"click": pa.array([True, False, True])},
        {"watched": pa.array([[7, 8], [7, 9], [8, 8]], pa.list_(pa.int32(), 2))},
        {"watched": pa.array([[7, 8], [7, 9], [8, 8]], pa.large_list(pa.uint64()))},
        {"video": pa.array([7, 8, 7]).dictionary_encode()},
    ],
    ids=lambda changed: f"{next(iter(changed))}: {next(iter(changed.values())).type}",
)
def test_types_with_the_same_values(changed: dict[str, Any]) -> None:
    """Catches a type that a writer chose for the same values, and that is refused or read as other values."""
    assert _encoded(USUAL | changed) == _encoded(USUAL)


@pytest.mark.parametrize(
    "kind", [pa.list_view(pa.int64()), pa.large_list_view(pa.int64()), pa.list_(pa.int64(), 2)], ids=str
)
@pytest.mark.parametrize("lists", [[[7, 8], [7, 9], [8, 8]], [None, [1, 2], None, [None, 3]], [], [[4, 5]] * 9])
def test_lists_of_another_layout(kind: pa.DataType, lists: list[Any]) -> None:
    """Catches other entries after a conversion, as Arrow's own cast of a list view gives them."""
    column = pa.array([[0, 0], None, *lists, [1, 1]], kind)[2:-1]
    (plain,) = contiguous({"x": column}).values()
    plain.validate(full=True)
    assert (str(plain.type), plain.to_pylist()) == ("large_list<item: int64>", lists)


@pytest.mark.parametrize("column", ["video", "price", "place", "click", "scene", "paid"])
def test_a_column_that_is_null_in_one_file(column: str) -> None:
    """Catches a file that is refused since no row of it has a value of one column, so that its writer knew no type."""
    typed = USUAL | {column: pa.nulls(3, USUAL[column].type)}
    untyped = USUAL | {column: pa.nulls(3)}
    assert _encoded(untyped) == _encoded(typed)
    of_types = []
    for columns in (_stored(typed), _stored(untyped)):
        arrays = {name: array.combine_chunks() for name, array in columns.items()}
        profile, statistics = DayProfile(), StatisticsAccumulator(SCHEMA)
        profile.update(SCHEMA, arrays, SCHEMA.task_names)
        statistics.update(columns)
        held = HoldoutConfig(column="video", share=0.5).held_out(arrays)
        of_types.append((profile.to_json(), statistics.finish([]).model_dump_json(), held.tolist()))
    assert of_types[0] == of_types[1]


def test_lists_without_a_type() -> None:
    """Catches a file in which nobody has a history; null lists are refused as in any other file."""
    typed = USUAL | {"watched": pa.array([[], [], []], pa.list_(pa.int64()))}
    assert _encoded(USUAL | {"watched": pa.array([[], [], []])}) == _encoded(typed)
    with pytest.raises(DataError, match="column 'watched' has a null list at row 0, and 3 in all"):
        _encoded(USUAL | {"watched": pa.nulls(3)})


@pytest.mark.parametrize(
    ("column", "values", "words"),
    [
        ("video", DECIMALS, "column 'video' is decimal128(10, 2), feature 'video' is an id"),
        ("video", pa.array([[7], [8], [7]]), "column 'video' is list<element: int64>, feature 'video' is an id"),
        ("watched", pa.array([1, 2, 3]), "column 'watched' is int64, feature 'watched' is a sequence"),
        ("price", pa.array(["1", "2", "3"]), "column 'price' is string, feature 'price' is dense"),
        ("place", pa.array([0.0, 1.0, 2.0]), "column 'place' is double, the slot is an integer"),
    ],
)
def test_types_that_are_refused(column: str, values: pa.Array, words: str) -> None:
    """Catches a wider rule of types that lets in what has no such meaning."""
    with pytest.raises(DataError) as caught:
        _encoded(USUAL | {column: values})
    assert words in str(caught.value)


def test_kinds_of_ids() -> None:
    """Catches an id type that is taken for the other kind, or for none."""
    integers = [pa.int8(), pa.uint64(), pa.bool_(), pa.list_(pa.int32()), pa.list_(pa.int64(), 2)]
    texts = [pa.string(), pa.large_string(), pa.binary(), pa.dictionary(pa.int8(), pa.string()), pa.list_(pa.string())]
    assert {id_type(found) for found in integers} == {"integer"}
    assert {id_type(found) for found in texts} == {"text"}
    assert {id_type(found) for found in (pa.float64(), pa.null(), pa.decimal128(5), pa.list_(pa.null()))} == {None}
