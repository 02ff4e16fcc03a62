"""Conversion of a log's Arrow column to the numbers or ids of one feature, before statistics are applied."""

from collections.abc import Mapping

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from features.errors import DataError
from features.ids import is_sequence
from features.schema import BucketFeature, DenseFeature, IdFeature, SequenceFeature

LARGEST = float(np.finfo(np.float32).max)  # a larger value would become infinite in a batch


def contiguous(columns: Mapping[str, pa.Array | pa.ChunkedArray]) -> dict[str, pa.Array]:
    """Return the columns, such as a Parquet table's, with one array of a plain type each.

    A decimal and a half-precision number become float64, a list of a fixed size or a list view a list, a list without a
    type one of integers. A column of type null, whose values are all missing, stays as it is. Columns of several chunks
    are copied.
    """
    return {name: _plain(one_array(column)) for name, column in columns.items()}


def one_array(column: pa.Array | pa.ChunkedArray) -> pa.Array:
    """Return a column as one array; a column of several chunks is copied."""
    if not isinstance(column, pa.ChunkedArray):
        return column
    return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()  # copies even one chunk


def _plain(column: pa.Array) -> pa.Array:
    found = column.type
    if pa.types.is_decimal(found) or pa.types.is_float16(found):
        return pc.cast(column, pa.float64(), safe=False)
    if not is_sequence(found):
        return column
    if pa.types.is_null(found.value_type):
        return pc.cast(column, pa.large_list(pa.int64()) if pa.types.is_large_list(found) else pa.list_(pa.int64()))
    return column if pa.types.is_list(found) or pa.types.is_large_list(found) else _list_of(column)


def _list_of(column: pa.Array) -> pa.Array:
    """Copy a list view or a list of a fixed size to a list; Arrow's own cast of a view returns other lists."""
    lengths = pc.fill_null(pc.list_value_length(column), 0).to_numpy(zero_copy_only=False)
    offsets = pa.array(np.concatenate(([0], np.cumsum(lengths, dtype=np.int64))))
    return pa.LargeListArray.from_arrays(offsets, column.flatten(), mask=column.is_null())


def dense_values(feature: DenseFeature | BucketFeature, column: pa.Array) -> np.ndarray:
    """Return the numbers of a dense or bucketised feature.

    Args:
        feature: The feature's declaration.
        column: Numeric or boolean array of N rows.

    Returns:
        float64 of shape (N,), after log1p where declared; NaN where the value is missing.

    Raises:
        DataError: A value is infinite, or would be as float32; names column and row.
    """
    values = pc.cast(column, pa.float64(), safe=False).to_numpy(zero_copy_only=False)
    infinite = np.abs(values) > LARGEST
    if infinite.any():
        row = int(infinite.argmax())
        raise DataError(f"column {feature.source!r} has {values[row]} at row {row}: expected finite numbers or null")
    if isinstance(feature, DenseFeature) and feature.log1p:
        return np.sign(values) * np.log1p(np.abs(values))
    return values


def id_values(feature: IdFeature | SequenceFeature, column: pa.Array) -> tuple[pa.Array, np.ndarray]:
    """Return the ids of an id or sequence feature, cut to the declared length and without nulls.

    Args:
        feature: The feature's declaration.
        column: Array of N ids, or of N lists of ids.

    Returns:
        The ids of all rows, shape (sum of lengths,), and int32 offsets of shape (N + 1,): row i's ids are
        `ids[offsets[i]:offsets[i + 1]]`.

    Raises:
        DataError: A list is null, or a list that is not pooled holds a null; names column and row.
    """
    if pa.types.is_null(column.type):
        column = pc.cast(column, pa.int64() if isinstance(feature, IdFeature) else pa.list_(pa.int64()))
    if isinstance(feature, IdFeature):
        column = _without_dictionary_nulls(column)
        if column.null_count == 0:
            return column, np.arange(len(column) + 1, dtype=np.int32)
        return column.drop_null(), _offsets(column.is_valid().to_numpy(zero_copy_only=False))
    if column.null_count:
        row = int(pc.index(column.is_null(), True).as_py())
        raise DataError(
            f"column {feature.source!r} has a null list at row {row}, and {column.null_count} in all: a sequence "
            "without ids is an empty list"
        )
    offsets = column.offsets.to_numpy().astype(np.int64)
    ids, offsets = _cut(column.values, offsets, feature)
    ids = _without_dictionary_nulls(ids)
    if ids.null_count:
        nulls = pc.indices_nonzero(ids.is_null()).to_numpy()  # few, so a binary search of each in the offsets
        if feature.is_unpooled:
            row = int(np.searchsorted(offsets, nulls[0], side="right")) - 1
            raise DataError(
                f"column {feature.source!r} has a null in the list of row {row}, and {len(nulls)} in all: feature "
                f"{feature.name!r} is not pooled, so each entry is an event; write an id for an unknown entry"
            )
        ids, offsets = ids.drop_null(), offsets - np.searchsorted(nulls, offsets)
    return ids, offsets.astype(np.int32)


def _cut(values: pa.Array, offsets: np.ndarray, feature: SequenceFeature) -> tuple[pa.Array, np.ndarray]:
    """Keep the declared end of lists that are too long; return values that start at offset 0."""
    starts, stops = offsets[:-1], offsets[1:]
    if len(starts) == 0 or (stops - starts).max() <= feature.max_length:
        return values.slice(offsets[0], offsets[-1] - offsets[0]), offsets - offsets[0]
    if feature.keep == "last":
        starts = np.maximum(starts, stops - feature.max_length)
    else:
        stops = np.minimum(stops, starts + feature.max_length)
    kept_offsets = np.concatenate(([0], np.cumsum(stops - starts)))
    return values.take(pa.array(ragged_index(starts, kept_offsets))), kept_offsets


def ragged_index(starts: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """Return the index of the elements of ragged rows.

    Args:
        starts: Offset of each row's first element in the source, shape (N,).
        offsets: Offset of each row's first element in the result, shape (N + 1,).

    Returns:
        int64 of shape (offsets[-1],).
    """
    return np.arange(offsets[-1]) + np.repeat(starts - offsets[:-1], np.diff(offsets))


def _offsets(present: np.ndarray) -> np.ndarray:
    return np.concatenate(([0], np.cumsum(present))).astype(np.int32)


def _without_dictionary_nulls(ids: pa.Array) -> pa.Array:
    """Decode a dictionary with nulls among its values, which Arrow does not count as nulls of the array."""
    if pa.types.is_dictionary(ids.type) and ids.dictionary.null_count:
        return ids.dictionary_decode()
    return ids
