"""Stable, salted 64-bit hash of ids: the same value on every machine and in every process, for years.

Integers pass through splitmix64's finaliser (Steele, Lea, Flood, OOPSLA 2014); strings are folded eight bytes at
a time through the same mixer, vectorised over all strings. Python's own `hash` is never used: it differs between
processes. The map from hash to table row is a multiply-shift (Lemire, 2019), which uses the high bits.
"""

import hashlib
from collections.abc import Callable

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)
_BLOCK_IDS = 65_536


def salt_of(text: str) -> int:
    """Return the 64-bit salt of a name, e.g. a table's, so that equal ids land apart in different tables."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def mix64(values: np.ndarray, salt: int = 0) -> np.ndarray:
    """Compute a bijective 64-bit mix of integers.

    Args:
        values: Integers of any width, shape (N,).
        salt: 64-bit salt, added before mixing.

    Returns:
        uint64 of shape (N,).
    """
    mixed = values.astype(np.int64, copy=False).view(np.uint64) + np.uint64((salt + int(_GOLDEN)) % 2**64)
    shifted = mixed >> np.uint64(30)
    for multiplier, shift in ((_MIX_1, np.uint64(27)), (_MIX_2, np.uint64(31))):
        np.bitwise_xor(mixed, shifted, out=mixed)
        np.multiply(mixed, multiplier, out=mixed)
        np.right_shift(mixed, shift, out=shifted)
    return np.bitwise_xor(mixed, shifted, out=mixed)


def hash_ids(values: pa.Array, salt: int) -> np.ndarray:
    """Hash an array of ids.

    Args:
        values: Integer, string or binary array of N ids without nulls.
        salt: The table's recorded salt.

    Returns:
        uint64 of shape (N,).

    Raises:
        TypeError: The ids have another type (floats are not ids).
    """
    if pa.types.is_dictionary(values.type):
        return hash_ids(values.dictionary, salt)[values.indices.to_numpy(zero_copy_only=False)]
    if pa.types.is_null(values.type):  # a column without values
        return np.empty(0, np.uint64)
    if pa.types.is_integer(values.type):
        return mix64(values.to_numpy(zero_copy_only=False), salt)
    if pa.types.is_boolean(values.type):
        return mix64(pc.cast(values, pa.int64()).to_numpy(), salt)
    if pa.types.is_string(values.type) or pa.types.is_large_string(values.type):
        return _hash_binary(pc.cast(values, pa.large_binary()), salt)
    if pa.types.is_binary(values.type) or pa.types.is_large_binary(values.type):
        return _hash_binary(pc.cast(values, pa.large_binary()), salt)
    raise TypeError(f"ids of type {values.type}, expected integers, strings or binary")


def _hash_binary(values: pa.Array, salt: int) -> np.ndarray:
    if len(values) == 0:
        return np.empty(0, np.uint64)
    offsets = np.frombuffer(values.buffers()[1], np.int64)[values.offset : values.offset + len(values) + 1]
    first, last = int(offsets[0]), int(offsets[-1])
    padded = np.zeros(last - first + 8, np.uint8)
    if last > first:  # an array of empty strings may have no buffer
        padded[:-8] = np.frombuffer(values.buffers()[2], np.uint8)[first:last]
    words = np.lib.stride_tricks.as_strided(padded[:8].view(np.uint64), (len(padded) - 7,), (1,))
    starts, lengths = offsets[:-1] - first, np.diff(offsets)
    state = mix64(lengths, salt)
    active = np.flatnonzero(lengths > 0)
    position = 0
    while len(active):
        word = words[starts[active] + position]
        missing = np.maximum(8 - (lengths[active] - position), 0).astype(np.uint64) * np.uint64(8)
        word = (word << missing) >> missing
        state[active] = mix64((state[active] ^ word).view(np.int64), salt)
        position += 8
        active = active[lengths[active] > position]
    return state


def rows_of(hashes: np.ndarray, num_rows: int) -> np.ndarray:
    """Map hashes to rows of a table, uniformly.

    Args:
        hashes: uint64 of shape (N,).
        num_rows: Rows of the table, at most 2**31.

    Returns:
        int32 of shape (N,), in [0, num_rows).
    """
    return (((hashes >> np.uint64(32)) * np.uint64(num_rows)) >> np.uint64(32)).astype(np.int32)


def table_rows(values: pa.Array, salt: int, num_rows: int) -> np.ndarray:
    """Return the rows of a table for ids: `rows_of` their hashes.

    Args:
        values: Integer, string or binary array of N ids without nulls.
        salt: The table's recorded salt.
        num_rows: Rows of the table, at most 2**31.

    Returns:
        int32 of shape (N,), in [0, num_rows).
    """
    return map_hashes(values, salt, lambda hashes: rows_of(hashes, num_rows))


def map_hashes(values: pa.Array, salt: int, to_rows: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """Return the rows of ids from their hashes, in blocks whose hashes fit the processor's caches.

    Args:
        values: Integer, string or binary array of N ids without nulls.
        salt: The table's recorded salt.
        to_rows: Function from uint64 hashes to int32 rows.

    Returns:
        int32 of shape (N,).
    """
    if pa.types.is_dictionary(values.type):  # otherwise each block would hash the dictionary's values
        return map_hashes(values.dictionary, salt, to_rows)[values.indices.to_numpy(zero_copy_only=False)]
    rows = np.empty(len(values), np.int32)
    for start in range(0, len(values), _BLOCK_IDS):
        block = slice(start, start + _BLOCK_IDS)
        rows[block] = to_rows(hash_ids(values[block], salt))
    return rows
