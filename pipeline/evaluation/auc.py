"""Area under the ROC curve in bounded memory: a mergeable histogram whose bins adapt to where the scores are.

A float32 score, read as an integer in the order of the floats, is a leaf of a binary tree of depth 32. The sketch keeps
weights at nodes of that tree. Up to `capacity` distinct scores they are at leaves, so exact; beyond that, the sketch
collapses the largest light subtrees into their lowest common ancestor. As in the q-digest (Shrivastava et al., "Medians
and Beyond", SenSys 2004), a bin never moves: a score stays in the bin that contains it through all collapses and
merges. So errors do not add up over a billion rows, and later scores may be finer than earlier ones. Nodes are numbered
in order (a leaf is 2 * key + 1, the root 2^32): one integer holds the node's place and, as its lowest set bit, its
size, and sorted nodes are sorted scores.
"""

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

_ROOT = 1 << 32


class AucSketch:
    """Weight of positives and negatives per bin of scores, under one weighting of the rows or several.

    Args:
        capacity: Number of bins; up to this many distinct scores the area is exact, ties included. Beyond, a bin holds
            at most about 2 / capacity of all weight, so the error stays near 1 / capacity (see `error_bound`).
        num_weightings: V, the number of weightings, which share the bins.
    """

    def __init__(self, capacity: int = 2**16, num_weightings: int = 1) -> None:
        if capacity < 4:
            raise ValueError(f"an AUC sketch of capacity {capacity}: give at least 4")
        self._capacity = capacity
        self._nodes = np.empty(0, np.int64)
        self._num_weightings = num_weightings
        self._weights = np.empty((2 * num_weightings, 0))  # the positives of every weighting, then the negatives
        self._waiting: list[tuple[np.ndarray, np.ndarray]] = []
        self._num_waiting = 0

    def update(
        self,
        scores: Float[Tensor, " batch"],
        labels: Float[Tensor, " batch"],
        weights: Float[Tensor, "*weighting batch"] | None = None,
    ) -> None:
        """Add rows; tensors on a GPU are copied to the host.

        Args:
            scores: float32 in the order of the rows' ranking; logits distinguish scores that a sigmoid would round to
                1.
            labels: 1 for positives, 0 for negatives; a value between them splits the row's weight.
            weights: Weights of at least 0, shape (B,), or (V, B) for several weightings; absent: 1.

        Raises:
            ValueError: A score is NaN.
        """
        values = scores.detach().to("cpu", torch.float32).numpy()
        positive = labels.detach().to("cpu", torch.float64).numpy()
        weight = torch.ones(len(values)) if weights is None else weights.detach()
        weight = weight.to("cpu", torch.float64).numpy().reshape(self._num_weightings, len(values))
        num_nan = int(np.isnan(values).sum())
        if num_nan:
            raise ValueError(
                f"AUC of {num_nan:,} NaN scores among {len(values):,}: a NaN has no rank, look at the model"
            )
        weighing = (weight != 0).any(0)
        if not weighing.all():
            values, positive, weight = values[weighing], positive[weighing], weight[:, weighing]
        self._add(_leaves(values), np.concatenate([weight * positive, weight * (1 - positive)]))

    def merge(self, other: "AucSketch") -> None:
        """Add the rows of another sketch, which stays as it is."""
        other._consolidate()
        self._add(other._nodes, other._weights)

    def auc(self) -> float | None:
        """Return the probability that a positive scores above a negative, ties counted half; None for one class."""
        return self.aucs()[0]

    def aucs(self) -> list[float | None]:
        """Return the area of each weighting; see `auc`."""
        self._consolidate()
        return list(map(_area, *np.split(self._weights, 2)))

    def error_bound(self) -> float | None:
        """Return a bound on the error of `auc`: the share of pairs whose order the bins do not determine.

        These are pairs within one bin, at half their share since `auc` counts half, and pairs of a bin and one inside
        it. The sketch has one weighting.
        """
        self._consolidate()
        positive, negative = self._weights
        pairs = positive.sum() * negative.sum()
        if pairs == 0:
            return None
        half = self._nodes & -self._nodes
        first = np.searchsorted(self._nodes, self._nodes - half, "right")
        last = np.searchsorted(self._nodes, self._nodes + half, "left")
        cumulative = np.cumsum(np.pad(self._weights, ((0, 0), (1, 0))), axis=1)
        inside = cumulative[:, last] - cumulative[:, first] - self._weights
        within = np.where(half > 1, positive * negative / 2, 0).sum()
        return float((within + positive @ inside[1] + negative @ inside[0]) / pairs)

    def bins(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the score in the middle of each bin, float32 of shape (n,), and its weights, shape (2 V, n).

        Up to the capacity a bin has one score, and the middle is it.
        """
        self._consolidate()
        keys = ((self._nodes >> 1) - (1 << 31)).astype(np.int32)
        return (keys ^ ((keys >> 31) & np.int32(0x7FFFFFFF))).view(np.float32), self._weights

    def state(self) -> Float[Tensor, "row bin"]:
        """Return the state as one float64 tensor: node, V positive, V negative weights of each bin (nodes < 2^53)."""
        self._consolidate()
        return torch.from_numpy(np.concatenate([self._nodes[None].astype(np.float64), self._weights]))

    @classmethod
    def from_state(cls, state: Float[Tensor, "row bin"], capacity: int = 2**16) -> "AucSketch":
        """Return the sketch with a state."""
        sketch = cls(capacity, len(state) // 2)
        sketch._add(state[0].numpy().astype(np.int64), state[1:].numpy())
        return sketch

    def _add(self, nodes: np.ndarray, weights: np.ndarray) -> None:
        """Add weights at nodes: (n,) and (2 V, n); they are sorted once enough are pending."""
        self._waiting.append((nodes, weights))
        self._num_waiting += len(nodes)
        if self._num_waiting > 4 * self._capacity:
            self._consolidate()

    def _consolidate(self) -> None:
        """Sort pending weights into the bins, and collapse light subtrees if there are too many bins."""
        if self._num_waiting == 0:
            return
        nodes = np.concatenate([self._nodes, *(nodes for nodes, _ in self._waiting)])
        weights = np.concatenate([self._weights, *(weights for _, weights in self._waiting)], axis=1)
        order = np.argsort(nodes, kind="stable")
        nodes = nodes[order]
        starts = np.flatnonzero(np.diff(nodes, prepend=-1))
        nodes, weights = nodes[starts], np.add.reduceat(weights[:, order], starts, axis=1)
        if len(nodes) > self._capacity:
            nodes, weights = _collapse(nodes, weights, self._capacity)
        self._nodes, self._weights, self._waiting, self._num_waiting = nodes, weights, [], 0


def _area(positive: np.ndarray, negative: np.ndarray) -> float | None:
    """Return the area of the weights of positives and negatives in the order of scores; None for one class."""
    pairs = positive.sum() * negative.sum()
    if pairs == 0:
        return None
    below = np.cumsum(negative) - negative
    return float(positive @ (below + negative / 2) / pairs)


def _leaves(scores: np.ndarray) -> np.ndarray:
    """Return the leaves of float32 scores, in the scores' order; 0 and -0 are one score."""
    bits = (scores + np.float32(0)).view(np.int32)
    keys = bits ^ ((bits >> 31) & np.int32(0x7FFFFFFF))
    return 2 * (keys.astype(np.int64) + (1 << 31)) + 1


def _collapse(nodes: np.ndarray, weights: np.ndarray, capacity: int) -> tuple[np.ndarray, np.ndarray]:
    """Collapse light subtrees until at most `capacity` nodes are left: (n,) and (2 V, n) -> (m,) and (2 V, m)."""
    cumulative = np.concatenate([[0.0], np.cumsum(weights.sum(0))])
    limit = 2 * cumulative[-1] / capacity
    while len(starts := _light_runs(nodes, cumulative, limit)) > capacity:
        limit *= 1.5
    ends = np.append(starts[1:], len(nodes)) - 1
    return _common_ancestors(nodes[starts], nodes[ends]), np.add.reduceat(weights, starts, axis=1)


def _light_runs(nodes: np.ndarray, cumulative: np.ndarray, limit: float) -> np.ndarray:
    """Cut sorted nodes into runs: the largest subtrees that weigh at most `limit`, and single nodes above those.

    The walk goes down from the root through the heavier subtrees, level by level. A subtree is its middle, the number
    of its root, and the range [begin, end) of its nodes.

    Returns:
        Start indices of runs, increasing; the first is 0.
    """
    is_start = np.zeros(len(nodes) + 1, bool)
    is_start[0] = True
    middle, begin, end = np.array([_ROOT]), np.array([0]), np.array([len(nodes)])
    half = _ROOT
    while len(middle):
        half >>= 1
        cut = np.searchsorted(nodes, middle)
        after = np.searchsorted(nodes, middle, "right")
        is_start[cut] = is_start[after] = True
        middle = np.stack([middle - half, middle + half], axis=1).ravel()
        begin, end = np.stack([begin, after], axis=1).ravel(), np.stack([cut, end], axis=1).ravel()
        heavy = (end - begin > 1) & (cumulative[end] - cumulative[begin] > limit)
        middle, begin, end = middle[heavy], begin[heavy], end[heavy]
    return np.flatnonzero(is_start[:-1])


def _common_ancestors(first: np.ndarray, last: np.ndarray) -> np.ndarray:
    """Return the lowest common ancestors of pairs of nodes, first <= last; a node is its own ancestor."""
    # frexp finds the highest bit in which the two differ: exact, since nodes are below 2^53.
    _, length = np.frexp((first ^ last).astype(np.float64))
    differing = np.left_shift(np.int64(1), np.maximum(length - 1, 0).astype(np.int64))
    half = np.maximum(first & -first, differing)
    return (last | half) & -half
