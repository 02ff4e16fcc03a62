"""Places of a day's rows within their groups, for days larger than memory: partitions by group in temporary files."""

import math
from pathlib import Path

import numpy as np

ROWS_AT_ONCE = 2**22  # rows of a partition, about; a group is never divided
_ROW = np.dtype([("group", np.int64), ("score", np.float64), ("row", np.int64)])


def ranks_within(groups: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Return the place of each row within its group, 1 for the highest score; equal scores keep the rows' order.

    Args:
        groups: Number of each row's group, shape (N,).
        scores: Scores without NaN, shape (N,).

    Returns:
        int32 of shape (N,).
    """
    order = np.lexsort((-scores, groups))  # stable
    sorted_groups = groups[order]
    begins = np.flatnonzero(np.concatenate([[True], sorted_groups[1:] != sorted_groups[:-1]])) if len(order) else order
    lengths = np.diff(begins, append=len(order))
    ranks = np.empty(len(order), np.int32)
    ranks[order] = np.arange(len(order)) - np.repeat(begins, lengths) + 1
    return ranks


class DayRanks:
    """Ranks of a day's rows, which are added in order.

    Every row goes to one of several files by its group's hash, so a file has whole groups. Only one file is in memory
    at once. 36 bytes a row are on the disk.

    Args:
        folder: Directory for temporary files.
        num_rows: Number of rows of the day.
    """

    def __init__(self, folder: Path, num_rows: int) -> None:
        self._num_rows, self._added = num_rows, 0
        self._parts = [folder / f"part-{number}" for number in range(max(1, math.ceil(num_rows / ROWS_AT_ONCE)))]
        self._scores, self._ranks = folder / "scores", folder / "ranks"
        for path in (self._scores, *self._parts):
            path.touch()

    def add(self, groups: np.ndarray, scores: np.ndarray) -> None:
        """Add the next rows.

        Args:
            groups: Hash of each row's group, int64, shape (N,).
            scores: float64, shape (N,).
        """
        rows = np.empty(len(groups), _ROW)
        rows["group"], rows["score"] = groups, scores
        rows["row"] = np.arange(self._added, self._added + len(groups))
        self._added += len(groups)
        parts = groups % len(self._parts)
        for number in np.unique(parts):
            with self._parts[number].open("ab") as file:
                file.write(rows[parts == number].tobytes())
        with self._scores.open("ab") as file:
            file.write(scores.tobytes())

    def results(self) -> tuple[np.ndarray, np.ndarray]:
        """Return score and rank of each row, in files that are read when they are looked at.

        Returns:
            float64 of shape (N,), and int32 of shape (N,).
        """
        if not self._added:
            return np.empty(0), np.empty(0, np.int32)
        ranks = np.memmap(self._ranks, np.int32, "w+", shape=(self._added,))
        for path in self._parts:
            rows = np.fromfile(path, _ROW)
            ranks[rows["row"]] = ranks_within(rows["group"], rows["score"])
            path.unlink()
        return np.memmap(self._scores, np.float64, "r"), ranks
