"""Events: the entries of unpooled sequences, with their properties in further lists of the same lengths."""

from collections.abc import Mapping

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from features.errors import DataError
from features.schema import Schema


def check_events(schema: Schema, columns: Mapping[str, pa.Array]) -> None:
    """Check that lists of properties have the length of the list of events that they belong to.

    The lengths before truncation are compared: lists cut to one length may have lost other events.

    Args:
        schema: The schema that declares the lists that belong together.
        columns: Arrays of N rows by column name.

    Raises:
        DataError: Two lengths differ; names both columns, the row and the lengths.
    """
    sources = {feature.name: feature.source for feature in schema.unpooled_features}
    for feature in schema.unpooled_features:
        if feature.aligned_with is None:
            continue
        of = sources[feature.aligned_with]
        own, expected = _lengths(columns[feature.source]), _lengths(columns[of])
        wrong = own != expected
        if wrong.any():
            row = int(wrong.argmax())
            raise DataError(
                f"column {feature.source!r} has a list of {own[row]} at row {row}, column {of!r} one of "
                f"{expected[row]} ({int(wrong.sum())} such rows): entries of both are the same events, write lists of "
                "one length"
            )


def _lengths(lists: pa.Array) -> np.ndarray:
    return pc.fill_null(pc.list_value_length(lists), 0).to_numpy(zero_copy_only=False)
