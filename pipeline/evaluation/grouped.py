"""Metrics within groups of rows (users or requests): GAUC, NDCG@k and hit rate@k, exact, as sums that add up.

The rows of one call must hold whole groups. Then the sums of several calls add up to those of all rows: a day that is
larger than memory is partitioned by group, and measured partition by partition.

GAUC = sum_u v_u AUC_u / sum_u v_u over the groups with positives and negatives. The weight v_u is the sum of the
group's row weights (`by_rows`; DIN counts impressions), or 1 (`equal`; Wen et al., "Entire Space Multi-Task Modeling
via Post-Click Behavior Decomposition", SIGIR 2020, ESM2).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
from jaxtyping import Float, Int

_ROWS_AT_ONCE = 2**16  # running sums are taken over so many rows at most, since their rounding grows with the sum


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupedSums:
    """Sums of the groups' AUC; those of disjoint groups add up.

    Args:
        weighted_auc: Sum of weight * AUC over the used groups, the weight being the sum of the group's row weights.
        weight: Sum of these weights.
        auc: Sum of AUC over the used groups.
        groups: Number of used groups: those with a positive and a negative of a weight above 0.
        one_class: Number of groups that were left out, since they have positives only, negatives only, or no weight.
    """

    weighted_auc: float = 0.0
    weight: float = 0.0
    auc: float = 0.0
    groups: int = 0
    one_class: int = 0

    def __add__(self, other: Self) -> "GroupedSums":
        return GroupedSums(
            weighted_auc=self.weighted_auc + other.weighted_auc,
            weight=self.weight + other.weight,
            auc=self.auc + other.auc,
            groups=self.groups + other.groups,
            one_class=self.one_class + other.one_class,
        )

    @property
    def by_rows(self) -> float | None:
        """GAUC with each group weighted by its rows' weights; None without a used group."""
        return self.weighted_auc / self.weight if self.groups else None

    @property
    def equal(self) -> float | None:
        """GAUC with each group weighted 1; None without a used group."""
        return self.auc / self.groups if self.groups else None


@dataclass(frozen=True, slots=True, kw_only=True)
class RankingSums:
    """Sums of NDCG@k and hit rate@k over groups; those of disjoint groups add up.

    Args:
        at: The cuts k.
        ndcgs: Sum of NDCG@k over the used groups, for each cut.
        hits: Sum of the probability of a positive among the first k rows, for each cut.
        groups: Number of used groups: those with a label above 0.
        without_positive: Number of groups that were left out, since they have none.
    """

    at: tuple[int, ...]
    ndcgs: tuple[float, ...]
    hits: tuple[float, ...]
    groups: int
    without_positive: int

    def __add__(self, other: Self) -> "RankingSums":
        if self.at != other.at:
            raise ValueError(f"sums of NDCG at {list(self.at)} and at {list(other.at)} do not add up")
        return RankingSums(
            at=self.at,
            ndcgs=tuple(a + b for a, b in zip(self.ndcgs, other.ndcgs, strict=True)),
            hits=tuple(a + b for a, b in zip(self.hits, other.hits, strict=True)),
            groups=self.groups + other.groups,
            without_positive=self.without_positive + other.without_positive,
        )

    @property
    def ndcg(self) -> dict[int, float | None]:
        """Mean NDCG of the used groups by cut; None without a used group."""
        return self._means(self.ndcgs)

    @property
    def hit_rate(self) -> dict[int, float | None]:
        """Mean hit rate of the used groups by cut; None without a used group."""
        return self._means(self.hits)

    def _means(self, sums: tuple[float, ...]) -> dict[int, float | None]:
        return {cut: one / self.groups if self.groups else None for cut, one in zip(self.at, sums, strict=True)}


@dataclass(frozen=True, slots=True)
class _Sorted:
    """Rows in the order of their group, and within it of a key; `blocks` have one group and one key each.

    Args:
        order: Number of the row at each place, shape (N,).
        group_starts: First place of each group, shape (G,).
        block_starts: First place of each block, shape (T,).
        block_groups: Number of each block's group, shape (T,).
    """

    order: Int[np.ndarray, " row"]
    group_starts: Int[np.ndarray, " group"]
    block_starts: Int[np.ndarray, " block"]
    block_groups: Int[np.ndarray, " block"]

    @staticmethod
    def of(groups: np.ndarray, keys: np.ndarray) -> "_Sorted":
        """Sort rows, of which there is at least one."""
        order = np.lexsort((keys, groups))
        group, key = groups[order], keys[order]
        begins = np.concatenate([[True], group[1:] != group[:-1]])
        differs = begins | np.concatenate([[True], key[1:] != key[:-1]])
        block_starts = np.flatnonzero(differs)
        return _Sorted(order, np.flatnonzero(begins), block_starts, (np.cumsum(begins) - 1)[block_starts])

    @property
    def first_blocks(self) -> Int[np.ndarray, " group"]:
        """First block of each group."""
        return np.searchsorted(self.block_starts, self.group_starts)

    @property
    def block_sizes(self) -> Int[np.ndarray, " block"]:
        """Number of rows of each block."""
        return np.diff(self.block_starts, append=len(self.order))

    def places(self, of: Int[np.ndarray, " block"]) -> Int[np.ndarray, " block"]:
        """Return the number of rows of its group before each block, of groups that begin at places `of`."""
        return self.block_starts - of


@dataclass(frozen=True, slots=True)
class GroupAuc:
    """AUC of each group.

    Args:
        groups: The groups' numbers, in order, shape (G,).
        auc: NaN for a group of one class, shape (G,).
        weight: Sum of the group's row weights, shape (G,).
    """

    groups: Int[np.ndarray, " group"]
    auc: Float[np.ndarray, " group"]
    weight: Float[np.ndarray, " group"]


def grouped_auc(
    groups: Int[np.ndarray, " row"],
    scores: Float[np.ndarray, " row"],
    labels: Float[np.ndarray, " row"],
    weights: Float[np.ndarray, " row"] | None = None,
) -> GroupedSums:
    """Return the sums of GAUC over the rows' groups; the arguments are those of `auc_by_group`."""
    found = auc_by_group(groups, scores, labels, weights)
    used = ~np.isnan(found.auc)
    auc, weight = found.auc[used], found.weight[used]
    return GroupedSums(
        weighted_auc=float(auc @ weight),
        weight=float(weight.sum()),
        auc=float(auc.sum()),
        groups=int(used.sum()),
        one_class=int((~used).sum()),
    )


def auc_by_group(
    groups: Int[np.ndarray, " row"],
    scores: Float[np.ndarray, " row"],
    labels: Float[np.ndarray, " row"],
    weights: Float[np.ndarray, " row"] | None = None,
) -> GroupAuc:
    """Return the AUC within each group: the weight of the pairs in the right order over that of all pairs, ties half.

    Args:
        groups: Number of each row's group, int64, shape (N,).
        scores: Scores in their own precision, shape (N,); infinite ones have a rank, NaN has none.
        labels: 1 for positives, 0 for negatives; a value between them splits the row's weight.
        weights: Weights of at least 0; a pair weighs the product of its rows' weights. Absent: 1.

    Raises:
        ValueError: A score is NaN.
    """
    _refuse_nan(scores)
    if len(groups) == 0:
        return GroupAuc(np.empty(0, np.int64), np.empty(0), np.empty(0))
    rows = _Sorted.of(groups, scores)
    label = labels[rows.order].astype(np.float64)
    weight = np.ones(len(label)) if weights is None else weights[rows.order].astype(np.float64)
    positive = np.add.reduceat(weight * label, rows.block_starts)
    negative = np.add.reduceat(weight * (1 - label), rows.block_starts)
    first = rows.first_blocks
    positives, negatives = np.add.reduceat(positive, first), np.add.reduceat(negative, first)
    used = (positives > 0) & (negatives > 0)
    # Shares of the group's negatives, so that a heavy group leaves no rounding in the running sum of a light one.
    share = negative / np.repeat(np.where(used, negatives, 1), np.diff(first, append=len(negative)))
    ordered = np.add.reduceat(positive * (_sums_before(share, first) + share / 2), first)
    auc = np.divide(ordered, positives, out=np.full(len(used), np.nan), where=used)
    return GroupAuc(groups[rows.order[rows.group_starts]], auc, np.add.reduceat(weight, rows.group_starts))


def _sums_before(values: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """Return for each value the sum of the values before it in its segment; segments begin at `starts`."""
    before = np.empty(len(values))
    for begin, end, inner in _chunks(starts, len(values)):
        running = np.concatenate([[0.0], np.cumsum(values[begin:end])])
        lengths = np.diff(inner, append=end)
        before[begin:end] = running[:-1] - np.repeat(running[inner - begin], lengths)
    return before


def _chunks(starts: np.ndarray, length: int) -> Iterator[tuple[int, int, np.ndarray]]:
    """Yield begin, end and the inner starts of runs of whole segments; a long segment is a run of its own."""
    at = 0
    while at < len(starts):
        after = max(at + 1, int(np.searchsorted(starts, starts[at] + _ROWS_AT_ONCE, side="right")) - 1)
        after = len(starts) if length - starts[at] <= _ROWS_AT_ONCE else after
        yield int(starts[at]), int(starts[after]) if after < len(starts) else length, starts[at:after]
        at = after


def grouped_ranking(
    groups: Int[np.ndarray, " row"],
    scores: Float[np.ndarray, " row"],
    labels: Float[np.ndarray, " row"],
    at: Sequence[int],
) -> RankingSums:
    """Return the sums of NDCG@k and hit rate@k over the rows' groups.

    NDCG@k has the gain `label` and the discount 1 / log2(1 + rank), 0 beyond k. Rows of one score get the mean of their
    discounts, as in scikit-learn's `ndcg_score`. A group of fewer than k rows counts with the rows that it has, so a
    single row, if it is positive, counts 1. The hit rate is the probability of a positive among the first k rows, rows
    of one score being in random order: hypergeometric for the block of equal scores that the cut divides.

    Args:
        groups: Number of each row's group, int64, shape (N,).
        scores: Scores in their own precision, shape (N,); infinite ones have a rank, NaN has none.
        labels: Gains of at least 0; above 0 is a positive.
        at: The cuts k, each of at least 1.

    Raises:
        ValueError: A score is NaN, a label is negative or NaN, or a cut is below 1.
    """
    _refuse_nan(scores)
    if not (labels >= 0).all() or min(at, default=1) < 1:
        raise ValueError(f"NDCG needs labels of at least 0 and cuts of at least 1; the cuts are {list(at)}")
    if len(groups) == 0:
        zeros = (0.0,) * len(at)
        return RankingSums(at=tuple(at), ndcgs=zeros, hits=zeros, groups=0, without_positive=0)
    gains = labels.astype(np.float64)
    rows, ideal = _Sorted.of(groups, -scores), _Sorted.of(groups, -gains)
    used = np.logical_or.reduceat(gains[rows.order] > 0, rows.group_starts)
    ndcgs = [_dcg(rows, gains, cut)[used] / _dcg(ideal, gains, cut)[used] for cut in at]
    hits = [_hits(rows, gains > 0, cut)[used] for cut in at]
    return RankingSums(
        at=tuple(at),
        ndcgs=tuple(float(one.sum()) for one in ndcgs),
        hits=tuple(float(one.sum()) for one in hits),
        groups=int(used.sum()),
        without_positive=int((~used).sum()),
    )


def _dcg(rows: _Sorted, gains: np.ndarray, cut: int) -> Float[np.ndarray, " group"]:
    """Return each group's DCG@k; rows of one block share the mean of their discounts."""
    reach = min(cut, len(rows.order))
    discounts = np.concatenate([[0.0], np.cumsum(1 / np.log2(np.arange(2, reach + 2)))])
    before = rows.places(rows.group_starts[rows.block_groups])
    after = before + rows.block_sizes
    shared = (discounts[np.minimum(after, reach)] - discounts[np.minimum(before, reach)]) / rows.block_sizes
    gained = np.add.reduceat(gains[rows.order], rows.block_starts)
    return np.add.reduceat(shared * gained, rows.first_blocks)


def _hits(rows: _Sorted, positive: np.ndarray, cut: int) -> Float[np.ndarray, " group"]:
    """Return each group's probability of a positive among its first k rows."""
    before = rows.places(rows.group_starts[rows.block_groups])
    size = rows.block_sizes
    drawn = np.clip(cut - before, 0, size)  # rows of the block that are before the cut
    negatives = size - np.add.reduceat(positive[rows.order].astype(np.int64), rows.block_starts)
    missed = np.where((drawn == size) & (negatives < size), 0.0, 1.0)
    (cut_blocks,) = np.nonzero((drawn > 0) & (drawn < size))
    drawn, size, negatives = drawn[cut_blocks], size[cut_blocks], negatives[cut_blocks]
    # The probability that no drawn row is positive: C(negatives, drawn) / C(size, drawn), factor by factor.
    for number in range(int(drawn.max(initial=0))):
        factors = np.clip(negatives - number, 0, None) / np.maximum(size - number, 1)
        missed[cut_blocks] *= np.where(number < drawn, factors, 1.0)
    return 1 - np.multiply.reduceat(missed, rows.first_blocks)


def _refuse_nan(scores: np.ndarray) -> None:
    if num_nan := int(np.isnan(scores).sum()):
        raise ValueError(f"{num_nan:,} NaN scores among {len(scores):,}: a NaN has no rank")
