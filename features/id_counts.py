"""Counts of a day's ids by key, in parts of the range of keys, and the few of them that a vocabulary's update needs."""

import itertools
from dataclasses import dataclass
from typing import Self

import numpy as np

IdCounts = tuple[np.ndarray, np.ndarray]
"""Keys, increasing, each once, uint64 of shape (N,), and their counts, int64 of shape (N,)."""


def merge_counts(*counts: IdCounts) -> IdCounts:
    """Add counts of ids.

    Args:
        counts: At least one.

    Returns:
        The keys of all, increasing, each once, and their counts.
    """
    keys, numbers = (np.concatenate(columns) for columns in zip(*counts, strict=True))
    order = np.argsort(keys, kind="stable")  # a stable sort merges sorted runs in few passes
    keys, numbers = keys[order], numbers[order]
    begins = np.flatnonzero(np.append(True, keys[1:] != keys[:-1])[: len(keys)])
    return keys[begins], np.add.reduceat(numbers, begins) if len(begins) else numbers


def split_keys(keys: np.ndarray, num_parts: int) -> list[slice]:
    """Return the places of the keys of each part of the range; a part has all keys with its high bits.

    Args:
        keys: Increasing, uint64 of shape (N,).
        num_parts: Number of parts, a power of two.

    Returns:
        One slice per part, in order of keys; an empty one for a part without keys.
    """
    bits = num_parts.bit_length() - 1
    assert num_parts == 2**bits, f"{num_parts} parts"
    firsts = np.arange(1, num_parts, dtype=np.uint64) << np.uint64(64 - bits) if bits else np.empty(0, np.uint64)
    ends = [0, *np.searchsorted(keys, firsts).tolist(), len(keys)]
    return [slice(begin, end) for begin, end in itertools.pairwise(ends)]


@dataclass(frozen=True, slots=True, eq=False)
class SeenIds:
    """Ids of a day that an update of a vocabulary needs, of all keys or of a part of their range.

    The size is bounded by the table: known ids have rows, and more new ids than rows are never admitted.

    Args:
        known: Keys of the seen ids that have a row, increasing, uint64 of shape (S,).
        new: Keys of the seen ids without a row that are frequent enough, the most frequent first, ties by key, uint64
            of shape (C,); the first `most` of them.
        counts: Counts of the new ids, int64 of shape (C,).
        num_seen: Number of all distinct ids.
        num_frequent: Number of new ids that are frequent enough, those that were cut off included.
    """

    known: np.ndarray
    new: np.ndarray
    counts: np.ndarray
    num_seen: int
    num_frequent: int

    @classmethod
    def of(cls, counts: IdCounts, with_row: np.ndarray, min_count: int, most: int) -> Self:
        """Return what is needed of counts.

        Args:
            counts: All counts of some ids.
            with_row: Keys of the ids that have a row, increasing, uint64 of shape (V,); keys that were not seen do not
                matter.
            min_count: Least count of a new id that is frequent enough.
            most: Maximum number of new ids.
        """
        keys, numbers = counts
        places = np.searchsorted(with_row, keys)
        known = places < len(with_row)
        known[known] = with_row[places[known]] == keys[known]
        new = np.flatnonzero(~known & (numbers >= min_count))
        best = new[np.argsort(-numbers[new], kind="stable")][:most]
        return cls(keys[known], keys[best], numbers[best], len(keys), len(new))

    def joined(self, other: Self, most: int) -> Self:
        """Return the ids of both.

        Args:
            other: Ids with larger keys than all of these.
            most: Maximum number of new ids.
        """
        new, counts = np.concatenate((self.new, other.new)), np.concatenate((self.counts, other.counts))
        best = np.argsort(-counts, kind="stable")[:most]  # ties by key: those of the other are larger
        return type(self)(
            np.concatenate((self.known, other.known)),
            new[best],
            counts[best],
            self.num_seen + other.num_seen,
            self.num_frequent + other.num_frequent,
        )
