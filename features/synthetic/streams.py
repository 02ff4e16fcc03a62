"""Randomness of the synthetic logs: one stream per column, and draws that depend only on (seed, name, ids)."""

from datetime import date
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

from features.hashing import mix64

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


def stream_key(*words: object) -> int:
    """Return a 128-bit key of the words, the same in every process (Python's `hash` is salted in each)."""
    text = "\x1f".join(str(word) for word in words)
    return int.from_bytes(blake2b(text.encode(), digest_size=16).digest(), "little")


class ColumnStreams:
    """One random stream per column of one file, so that a new column changes no other.

    Args:
        seed: The seed of the world.
        day: The day of the log.
        part: The number of the file in its day.
    """

    def __init__(self, seed: int, day: date, part: int) -> None:
        self._place = (seed, day.isoformat(), part)
        self._streams: dict[str, np.random.Generator] = {}

    def __getitem__(self, column: str) -> np.random.Generator:
        """Return the column's Philox generator, which continues after its last draw."""
        if column not in self._streams:
            key = stream_key("column", *self._place, column)
            self._streams[column] = np.random.Generator(np.random.Philox(key=key))
        return self._streams[column]


def keyed_uniform(seed: int, name: str, *ids: Ints) -> Floats:
    """Draw uniform numbers that are pure functions of (seed, name, ids), independent of the other draws.

    Args:
        seed: The seed of the world.
        name: Name of the quantity; another name gives independent numbers for the same ids.
        ids: One or more arrays of shape (N,), mixed in turn, such as a user and the number of a view.

    Returns:
        Numbers strictly between 0 and 1, of shape (N,).
    """
    key = stream_key("latent", seed, name) % 2**64
    bits = mix64(ids[0], key)
    for values in ids[1:]:
        bits = mix64(values ^ bits.view(np.int64), key)
    return ((bits >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53


def keyed_normal(seed: int, name: str, *ids: Ints) -> Floats:
    """Draw standard normal numbers that are pure functions of (seed, name, ids), by Box and Muller; shape (N,)."""
    radius = np.sqrt(-2.0 * np.log(keyed_uniform(seed, f"{name}/radius", *ids)))
    return radius * np.cos(2.0 * np.pi * keyed_uniform(seed, f"{name}/angle", *ids))


def keyed_normals(seed: int, name: str, dim: int, ids: Ints) -> Floats:
    """Draw independent standard normal vectors, keyed as in `keyed_normal`; shape (N, dim)."""
    return np.stack([keyed_normal(seed, f"{name}/{axis}", ids) for axis in range(dim)], axis=1)
