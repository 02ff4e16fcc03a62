"""Rows of a log with every kind of column, their declaration and their encoding, for tests."""

from dataclasses import fields
from typing import Any

import numpy as np
import pyarrow as pa

from features.encoded_rows import EncodedRows
from features.encoding import Encoder
from features.schema import Schema
from features.statistics import NumberStatistics, Statistics

Row = dict[str, Any]

TABLE_ROWS = {"video": 1000, "author": 50, "age": 6}
TYPES = {
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
BOUNDARIES = [18.0, 30.0, 50.0]


def _declared() -> dict[str, Any]:
    return {
        "tables": [{"name": name, "num_rows": rows, "dim": 4} for name, rows in TABLE_ROWS.items()],
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


def schema_of(**changes: Any) -> Schema:
    return Schema.model_validate(_declared() | changes)


def statistics_of(schema: Schema, boundaries: list[float] | None = None) -> Statistics:
    numbers = {
        "price": NumberStatistics(count=9, missing=1, mean=0.5, deviation=2.0),
        "age": NumberStatistics(count=9, missing=1, mean=30, deviation=9, boundaries=boundaries or BOUNDARIES),
    }
    return Statistics(
        days=[], rows=10, numbers=numbers, distinct_ids={}, missing_ids={}, schema_fingerprint=schema.fingerprint()
    )


def row_of(**changes: Any) -> Row:
    row = {"video_id": 7, "author_id": "ann", "watched_ids": [1, 2], "liked": ["bob"], "price": 2.0, "days": 3}
    row |= {"age": 20.0, "slot": 4, "click": True, "play_ms": 5, "duration_ms": 10, "mood": 2, "p_click": 0.25}
    return row | changes


def table_of(rows: list[Row]) -> pa.Table:
    return pa.table({name: pa.array([row[name] for row in rows], kind) for name, kind in TYPES.items()})


def encode_rows(rows: list[Row], schema: Schema | None = None, **keywords: Any) -> EncodedRows:
    schema = schema or schema_of()
    table = table_of(rows)
    columns = {name: table[name] for name in table.column_names}
    return Encoder(schema, statistics_of(schema), with_truth=True).encode(columns, **keywords)


def arrays_of(rows: EncodedRows) -> list[np.ndarray | None]:
    found = []
    for field in fields(rows):
        value = getattr(rows, field.name)
        found += value if isinstance(value, list) else [value]
    return found


def assert_equal_rows(found: EncodedRows, expected: EncodedRows) -> None:
    for left, right in zip(arrays_of(found), arrays_of(expected), strict=True):
        if left is None or right is None:
            assert left is right
            continue
        assert left.dtype == right.dtype
        np.testing.assert_array_equal(left, right)  # shapes too; NaN equals NaN
