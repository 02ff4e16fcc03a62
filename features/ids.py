"""Ids: the Arrow types of an id, and the rule by which two ids are the same.

An id is an integer or a text. Two ids are the same if both are the same integer, or both the same bytes of text. The
integer 7 and the text "7" are two ids: only the log's owner knows whether "007" means 7. So a column is of one of the
two types in all files that are read together, and on all days of a line.
"""

from typing import Literal

import pyarrow as pa

IdType = Literal["integer", "text"]


def id_type(found: pa.DataType) -> IdType | None:
    """Return the kind of ids of an Arrow type, or of the entries of a list or a dictionary.

    Returns:
        `integer` for integers of all widths and booleans; `text` for strings and binary; None for all other types.
    """
    if pa.types.is_dictionary(found) or is_sequence(found):
        return id_type(found.value_type)
    if pa.types.is_integer(found) or pa.types.is_boolean(found):
        return "integer"
    text = pa.types.is_string(found) or pa.types.is_large_string(found)
    return "text" if text or pa.types.is_binary(found) or pa.types.is_large_binary(found) else None


def is_id(found: pa.DataType) -> bool:
    """Return True if a column of the type has one id a row."""
    return not is_sequence(found) and id_type(found) is not None


def is_sequence(found: pa.DataType) -> bool:
    """Return True if a column of the type has a list a row."""
    tests = (
        pa.types.is_list,
        pa.types.is_large_list,
        pa.types.is_fixed_size_list,
        pa.types.is_list_view,
        pa.types.is_large_list_view,
    )
    return any(test(found) for test in tests)
