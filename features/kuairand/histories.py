"""Last videos of every user: ragged lists that grow by one day of impressions at a time."""

import numpy as np
import pyarrow as pa

from features.columns import ragged_index
from features.kuairand.entities import id_index


class Histories:
    """Last videos (or other values) of every user, the latest last.

    Args:
        length: Maximum number of videos kept per user.
    """

    def __init__(self, length: int) -> None:
        self._length = length
        self._users = np.empty(0, np.int64)
        self._offsets = np.zeros(1, np.int64)
        self._videos = np.empty(0, np.int64)

    def extend(self, users: np.ndarray, videos: np.ndarray) -> None:
        """Append videos to their users' lists.

        Args:
            users: Shape (N,).
            videos: Shape (N,), each user's own in order of time.
        """
        owners = np.concatenate([np.repeat(self._users, np.diff(self._offsets)), users])
        order = np.argsort(owners, kind="stable")
        self._users, counts = np.unique(owners, return_counts=True)
        stops = np.cumsum(counts)
        kept = np.minimum(counts, self._length)
        self._offsets = np.concatenate([[0], np.cumsum(kept)])
        self._videos = np.concatenate([self._videos, videos])[order][ragged_index(stops - kept, self._offsets)]

    def look_up(self, users: np.ndarray) -> pa.ListArray:
        """Return the lists of users of shape (N,); empty for unknown users."""
        starts = np.append(self._offsets[:-1], 0)
        lengths = np.append(np.diff(self._offsets), 0)
        place = id_index(self._users, users)
        offsets = np.concatenate([[0], np.cumsum(lengths[place])])
        videos = self._videos[ragged_index(starts[place], offsets)]
        return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), pa.array(videos))
