"""Columns that an evaluation reads beside the features: users, groups, and slices of the rows.

A slice is the rows with one value of a column or of a declared expression. The value is a text: of a number the number,
with declared boundaries the range. Rows carry the hash of the value; the texts themselves travel once a unit.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field, model_validator

from features.columns import contiguous
from features.declaration import Declaration, Name
from features.errors import DataError
from features.expressions import parse_expression
from features.hashing import hash_ids, salt_of
from features.ids import is_id

UNKNOWN = "null"
"""Value of rows whose expression is null or NaN."""

NO_GROUP = np.int64(0)
"""Hash of rows without a user or request; no id of a log has it but by a chance of 2^-64."""

_SALT, _GROUPS = salt_of("slices"), salt_of("groups")


class SliceConfig(Declaration):
    """Slices by the values of a column or an expression.

    Args:
        name: Name in results.
        value: Column of the log, or an expression over columns; absent: the column of the name.
        boundaries: Increasing numbers b_1, b_2, ...; the values are then the ranges below b_1, from b_1 to below b_2,
            and so on. Absent: every value is a slice.
    """

    name: Name
    value: str | None = None
    boundaries: list[float] | None = Field(default=None, min_length=1)

    @model_validator(mode="before")
    @classmethod
    def _of_a_column(cls, given: object) -> object:
        return {"name": given} if isinstance(given, str) else given

    @model_validator(mode="after")
    def _check(self) -> "SliceConfig":
        parse_expression(self.expression)
        if any(later <= earlier for earlier, later in pairwise(self.boundaries or ())):
            raise ValueError(f"boundaries {self.boundaries} do not increase")
        return self

    @property
    def expression(self) -> str:
        """Expression of the value."""
        return self.value or self.name

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the log's columns that the value reads."""
        return parse_expression(self.expression).columns

    def texts(self, columns: Mapping[str, pa.Array]) -> pa.DictionaryArray:
        """Return the value of each row as text, dictionary-encoded, shape (N,).

        Raises:
            DataError: The values are neither numbers, texts nor booleans; with boundaries they are no numbers.
        """
        values = parse_expression(self.expression).evaluate(columns)
        if self.boundaries is not None:
            return _ranges(self, values, self.boundaries)
        found = values.dictionary if pa.types.is_dictionary(values.type) else values
        if not (pa.types.is_primitive(found.type) or pa.types.is_null(found.type) or _is_text(found.type)):
            raise DataError(f"slices by {self.name!r}: the value is {values.type}, expected a number or a text")
        if pa.types.is_floating(found.type):
            values = pc.if_else(pc.is_nan(values), pa.scalar(None, values.type), values)
        texts = pc.fill_null(pc.cast(_distinct(values), pa.string()), UNKNOWN)
        return pc.dictionary_encode(texts)


@dataclass(frozen=True, slots=True)
class MeasuredColumns:
    """Columns that an evaluation asks for.

    Args:
        users: Name of the id feature whose ids name the users, for resamples of users.
        groups: Column of the ids of users or requests, for metrics within each of them.
        slices: Declared slices.
    """

    users: str | None = None
    groups: str | None = None
    slices: tuple[SliceConfig, ...] = ()

    @property
    def columns(self) -> list[str]:
        """Names of the log's columns that groups and slices read, each once."""
        of_slices = [name for config in self.slices for name in config.columns]
        return list(dict.fromkeys([*([self.groups] if self.groups else []), *of_slices]))

    def check(self, log: pa.Schema) -> None:
        """Check a log file's Arrow schema against what is asked for.

        Raises:
            DataError: A column is missing, or its type has no groups or no slices.
        """
        missing = [name for name in self.columns if name not in log.names]
        if missing:
            raise DataError(
                f"no column {missing[0]!r}, which evaluation.by or evaluation.grouped reads; the file has {log.names}"
            )
        empty = contiguous({name: pa.array([], log.field(name).type) for name in self.columns})
        if self.groups:
            group_hashes(empty[self.groups], self.groups)
        for config in self.slices:
            config.texts(empty)


def group_hashes(column: pa.Array, name: str) -> np.ndarray:
    """Return the hash of each row's user or request; different integers have different ones.

    Args:
        column: Integers, text or binary.
        name: Name of the column, for the error.

    Returns:
        int64 of shape (N,); `NO_GROUP` for rows without an id.

    Raises:
        DataError: The column has no ids.
    """
    found = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    if not (is_id(found) or pa.types.is_null(found)):
        raise DataError(f"column {name!r} is {found}, users and requests have integers or texts")
    hashes = np.full(len(column), NO_GROUP)
    known = column.is_valid().to_numpy(zero_copy_only=False)
    if known.any():
        hashes[known] = hash_ids(column.drop_null(), _GROUPS).view(np.int64)
    return hashes


def _is_text(found: pa.DataType) -> bool:
    return pa.types.is_string(found) or pa.types.is_large_string(found)


def _distinct(values: pa.Array) -> pa.Array:
    """Return the values without a dictionary."""
    return values.dictionary_decode() if pa.types.is_dictionary(values.type) else values


def _ranges(config: SliceConfig, values: pa.Array, edges: Sequence[float]) -> pa.DictionaryArray:
    """Return the range of each value as text."""
    found = values.type
    is_number = pa.types.is_integer(found) or pa.types.is_floating(found) or pa.types.is_boolean(found)
    if not (is_number or pa.types.is_null(found)):
        raise DataError(f"slices by {config.name!r}: the value is {found}, boundaries need a number")
    numbers = pc.cast(values, pa.float64(), safe=False).to_numpy(zero_copy_only=False)
    said = [f"{edge:.15g}" for edge in edges]  # all digits: two ranges have two names
    names = [f"< {said[0]}", *(f"{low} to {high}" for low, high in pairwise(said)), f">= {said[-1]}"]
    places = np.where(np.isnan(numbers), len(names), np.searchsorted(edges, numbers, side="right"))
    return pa.DictionaryArray.from_arrays(pa.array(places.astype(np.int32)), pa.array([*names, UNKNOWN]))


def text_hash(texts: Sequence[str]) -> np.ndarray:
    """Return the hash of each text, int64 of shape (N,)."""
    return hash_ids(pa.array(texts, pa.string()), _SALT).view(np.int64)


def encode_slices(slices: Sequence[SliceConfig], columns: Mapping[str, pa.Array]) -> tuple[np.ndarray, np.ndarray]:
    """Return the values of rows, and their texts.

    Args:
        slices: S declared slices.
        columns: Arrays of length N by column name.

    Returns:
        Hash of each value, int64 of shape (N, S), and the texts of all values as `unpack_texts` reads them, uint8.

    Raises:
        DataError: A value is neither a number nor a text.
    """
    num_rows = len(next(iter(columns.values())))
    hashes, texts = np.zeros((num_rows, len(slices)), np.int64), []
    for place, config in enumerate(slices):
        found = config.texts(columns)
        indices = found.indices.to_numpy(zero_copy_only=False)
        used = np.unique(indices)
        names = found.dictionary.take(pa.array(used)).to_pylist()
        hashes[:, place] = text_hash(names)[np.searchsorted(used, indices)] if num_rows else 0
        texts.append(names)
    return hashes, np.frombuffer(json.dumps(texts).encode(), np.uint8)


def unpack_texts(packed: np.ndarray) -> list[list[str]]:
    """Return the texts per declared slice that `encode_slices` packed."""
    return json.loads(packed.tobytes()) if len(packed) else []
