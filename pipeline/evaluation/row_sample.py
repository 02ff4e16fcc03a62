"""Sample of a regression task's rows, the same on any number of ranks, for figures that need rows side by side.

The sample has the rows with the smallest hashes of (unit, row number). So it depends on neither the order of the rows
nor the number of ranks. If a day has few rows, the sample has all of them, and its figures are exact.
"""

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from features.hashing import mix64
from pipeline.evaluation.calibration_curve import CurvePoint, calibration_curve

SAMPLE_ROWS = 2**16
"""Largest number of rows of a sample."""

_BUCKETS = 2**16  # of 16 bits of the hash


def row_hashes(cursor: object, num_rows: int) -> np.ndarray:
    """Return the hash of each row of a batch by its unit and row number, uint64; 0 for padding.

    Args:
        cursor: The batch's cursor.
        num_rows: Rows of the batch.
    """
    hashes, first = np.zeros(num_rows, np.uint64), 0
    for span in getattr(cursor, "spans", ()):
        hashes[first : first + len(span.rows)] = mix64(span.rows, span.salt)
        first += len(span.rows)
    return hashes


class RowSample:
    """Predictions, labels and weights of the sampled rows of a task.

    Args:
        size: Largest number of rows.
    """

    def __init__(self, size: int = SAMPLE_ROWS) -> None:
        self._size = size
        self._hashes: list[np.ndarray] = []
        self._rows: list[np.ndarray] = []
        self._num_rows = 0

    def update(self, hashes: np.ndarray, predictions: Tensor, labels: Tensor, weight: Tensor) -> None:
        """Add rows of the task's sample space: hashes as of `row_hashes`, and tensors of the same shape (N,)."""
        self._hashes.append(hashes)
        self._rows.append(torch.stack([predictions, labels, weight]).to(torch.float64).numpy())
        self._num_rows += len(hashes)
        if self._num_rows > 2 * self._size:
            self._shrink()

    def _shrink(self) -> tuple[np.ndarray, np.ndarray]:
        """Keep the rows with the smallest hashes; return them: hashes (N,) and values (3, N)."""
        hashes = np.concatenate([np.empty(0, np.uint64), *self._hashes])
        rows = np.concatenate([np.empty((3, 0)), *self._rows], axis=1)
        if len(hashes) > self._size:
            kept = np.argpartition(hashes, self._size)[: self._size]
            hashes, rows = hashes[kept], rows[:, kept]
        self._hashes, self._rows, self._num_rows = [hashes], [rows], len(hashes)
        return hashes, rows

    def of_all_ranks(self, group: dist.ProcessGroup) -> np.ndarray:
        """Return the sample of the rows of all ranks, in the order of their hashes, shape (3, M); collective.

        The ranks first agree on the hash at which it ends, so no rank sends more than its share.

        Args:
            group: A group that moves CPU tensors (gloo).
        """
        hashes, rows = self._shrink()
        chosen, left = np.zeros(len(hashes), bool), self._size
        inside = ~chosen  # rows in the bucket in which the sample ends; its next 16 bits tell them apart
        for shift in (48, 32, 16):
            bucket = ((hashes >> np.uint64(shift)) & np.uint64(_BUCKETS - 1)).astype(np.int64)
            counts = torch.from_numpy(np.bincount(bucket[inside], minlength=_BUCKETS))
            dist.all_reduce(counts, group=group)
            summed = np.cumsum(counts.numpy())
            end = int(np.searchsorted(summed, left, side="right"))
            chosen |= inside & (bucket < end)
            if end == _BUCKETS:
                break
            left -= int(summed[end - 1]) if end else 0
            inside &= bucket == end
        mine = np.concatenate([hashes[chosen].view(np.float64)[None], rows[:, chosen]])
        found = np.concatenate(_gathered(mine, group), axis=1)
        return found[1:, np.argsort(found[0].copy().view(np.uint64), kind="stable")]


def _gathered(mine: np.ndarray, group: dist.ProcessGroup) -> list[np.ndarray]:
    """Return the columns of every rank, shape (4, N) each, by rank; collective."""
    sizes = [torch.zeros(1, dtype=torch.int64) for _ in range(group.size())]
    dist.all_gather(sizes, torch.tensor([mine.shape[1]]), group=group)
    longest = max(int(size) for size in sizes)
    padded = torch.zeros(4, longest, dtype=torch.float64)
    padded[:, : mine.shape[1]] = torch.from_numpy(mine)
    gathered = [torch.empty_like(padded) for _ in sizes]
    dist.all_gather(gathered, padded, group=group)
    return [one[:, : int(size)].numpy() for one, size in zip(gathered, sizes, strict=True)]


def sampled_figures(sample: np.ndarray) -> tuple[float | None, list[CurvePoint]]:
    """Return XAUC and the calibration curve of a sample of shape (3, M)."""
    predictions, labels, weights = sample
    return xauc(predictions, labels, weights), calibration_curve(predictions, labels, weights)


def xauc(predictions: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> float | None:
    """Return the share of pairs of rows with different labels whose predictions are in the order of the labels.

    Pairs weigh the product of their rows' weights, and equal predictions count half; of labels 0 and 1 it is the AUC
    (Zhan et al., "Deconfounding Duration Bias in Watch-time Prediction", KDD 2022, section 5.1.2).

    Args:
        predictions: Shape (N,).
        labels: Shape (N,).
        weights: At least 0, shape (N,).

    Returns:
        None if all labels are equal.
    """
    order = np.lexsort((-predictions, labels))
    predictions, labels, weights = predictions[order], labels[order], weights[order]
    pairs = _pairs(weights, np.zeros(len(labels))) - _pairs(weights, labels)
    if pairs <= 0:
        return None
    # Within one label predictions fall, so of those pairs only equal predictions have counted, half.
    places, of_label = (np.unique(values, return_inverse=True)[1] for values in (predictions, labels))
    alike = _pairs(weights, of_label * (len(labels) + 1) + places)
    return float((_rising(places, weights) - alike / 2) / pairs)


def _pairs(weights: np.ndarray, keys: np.ndarray) -> float:
    """Return the weight of the pairs of rows with equal keys."""
    place = np.unique(keys, return_inverse=True)[1]
    total, squares = np.bincount(place, weights), np.bincount(place, weights**2)
    return float((total**2 - squares).sum() / 2)


def _rising(values: np.ndarray, weights: np.ndarray) -> float:
    """Return the weight of the pairs i < j with values[i] < values[j], and half of those with equal values.

    A merge sort from the bottom, level by level: blocks of 1, 2, 4, ... rows are joined, and each row of a right half
    meets the smaller ones of the left half.

    Args:
        values: Integers of shape (N,).
        weights: Shape (N,).
    """
    num_rows, size, total = len(values), 1, 0.0
    places = np.arange(num_rows)
    while size < num_rows:
        block = places // (2 * size)
        order = np.lexsort((values, block))
        block, in_left, weight = block[order], ((places // size) % 2 == 0)[order], weights[order]
        key = block * (num_rows + 1) + values[order]
        below = np.concatenate(([0.0], np.cumsum(np.where(in_left, weight, 0.0))))
        smaller, up_to_equal = np.searchsorted(key, key, side="left"), np.searchsorted(key, key, side="right")
        met = (below[smaller] + below[up_to_equal]) / 2 - below[np.searchsorted(block, block, side="left")]
        total += float(np.where(in_left, 0.0, weight) @ met)
        size *= 2
    return total
