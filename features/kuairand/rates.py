"""Rates of each outcome by key (a user, a video, a video in a tab), over all earlier impressions."""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from features.hashing import mix64
from features.kuairand.entities import id_index


class Rates:
    """Counts and means of outcomes by key.

    A mean is shrunk towards that of all keys, as if each key had started with `prior_rows` average impressions, since
    three likes of three are weak evidence.

    Args:
        outcomes: Names of the M outcomes.
        prior_rows: Number of average impressions that every key starts with.
    """

    def __init__(self, outcomes: Sequence[str], prior_rows: float) -> None:
        self._outcomes = list(outcomes)
        self._prior_rows = prior_rows
        self._keys = np.empty(0, np.int64)
        # Columns: impressions; per outcome, the impressions with a known value; per outcome, its sum.
        self._totals = np.empty((0, 1 + 2 * len(self._outcomes)))

    def add(self, keys: np.ndarray, outcomes: np.ndarray) -> None:
        """Count impressions.

        Args:
            keys: int64 of shape (N,).
            outcomes: Shape (N, M); NaN where an outcome is unknown.
        """
        known = ~np.isnan(outcomes)
        rows = np.column_stack([np.ones(len(keys)), known, np.where(known, outcomes, 0.0)])
        new, place = np.unique(keys, return_inverse=True)
        both = np.union1d(self._keys, new)
        totals = np.zeros((len(both), rows.shape[1]))
        totals[np.searchsorted(both, self._keys)] = self._totals
        totals[np.searchsorted(both, new)] += np.column_stack([np.bincount(place, row, len(new)) for row in rows.T])
        self._keys, self._totals = both, totals

    def look_up(self, keys: np.ndarray) -> dict[str, pa.Array]:
        """Return columns of N rows: `impressions`, 0 for a new key, and the mean of each outcome, null if unknown.

        Args:
            keys: int64 of shape (N,).
        """
        place = id_index(self._keys, keys)
        found = place < len(self._keys)
        totals = np.zeros((len(keys), self._totals.shape[1]))
        totals[found] = self._totals[place[found]]
        num = len(self._outcomes)
        everywhere = self._totals.sum(axis=0)
        mean = everywhere[1 + num :] / np.maximum(everywhere[1 : 1 + num], 1.0)
        counts = totals[:, 1 : 1 + num]
        rates = (totals[:, 1 + num :] + self._prior_rows * mean) / (counts + self._prior_rows)
        columns = {"impressions": pa.array(totals[:, 0].astype(np.int64))}
        for index, name in enumerate(self._outcomes):
            columns[name] = pa.array(rates[:, index].astype(np.float32), mask=counts[:, index] == 0)
        return columns


def joint_key(*parts: np.ndarray) -> np.ndarray:
    """Return one int64 key of several ids of shape (N,): a hash, since an integer has no room for two ids."""
    key = parts[0]
    for part in parts[1:]:
        key = (mix64(key) ^ part.view(np.uint64)).view(np.int64)
    return key
