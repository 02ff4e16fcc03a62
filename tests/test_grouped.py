"""Metrics within groups: against scikit-learn group by group, by hand, and additive over partitions."""

import itertools
import math

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import ndcg_score, roc_auc_score

from pipeline.evaluation import grouped
from pipeline.evaluation.grouped import GroupedSums, auc_by_group, grouped_auc, grouped_ranking

_CUTS = (1, 3, 10, 1000)


def _rows(seed: int = 0, num_rows: int = 1500) -> pd.DataFrame:
    """Return rows with ties, groups of one class, groups of a single row, and rows of weight 0."""
    random = np.random.default_rng(seed)
    frame = pd.DataFrame({"group": random.geometric(0.02, num_rows) * 7919 - 10**6})
    frame["score"] = np.round(random.standard_normal(num_rows), 1)
    frame["label"] = (random.random(num_rows) < 0.2).astype(np.float64)
    frame["weight"] = random.exponential(1.0, num_rows) * (random.random(num_rows) < 0.9)
    return frame


def _arguments(frame: pd.DataFrame, *names: str) -> list[np.ndarray]:
    return [frame[name].to_numpy() for name in ("group", *names)]


def _expected_auc(frame: pd.DataFrame) -> dict[str, float]:
    weighted = weight = equal = used = 0.0
    for _, rows in frame.groupby("group"):
        seen = rows[rows["weight"] > 0]
        if seen["label"].nunique() < 2:
            continue
        auc = roc_auc_score(seen["label"], seen["score"], sample_weight=seen["weight"])
        weighted, weight, equal, used = (
            weighted + auc * rows["weight"].sum(),
            weight + rows["weight"].sum(),
            equal + auc,
            used + 1,
        )
    return {"by_rows": weighted / weight, "equal": equal / used, "groups": used}


@pytest.mark.parametrize("at_once", [2**16, 50])
def test_gauc_equals_scikit_learn_group_by_group(at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches pairs across groups, ties not counted half, lost row weights, and running sums cut at a wrong place."""
    monkeypatch.setattr(grouped, "_ROWS_AT_ONCE", at_once)
    frame = _rows()
    sums, expected = grouped_auc(*_arguments(frame, "score", "label", "weight")), _expected_auc(frame)
    assert sums.groups == expected["groups"]
    assert sums.groups + sums.one_class == frame["group"].nunique()
    assert sums.by_rows == pytest.approx(expected["by_rows"], abs=1e-12)
    assert sums.equal == pytest.approx(expected["equal"], abs=1e-12)


def test_gauc_by_hand() -> None:
    """Catches a weight of a group that is not its rows' weight, and a group of one class that counts as .5."""
    groups = np.array([5, 5, 5, -3, -3, 9])
    scores, labels = np.array([0.2, 0.2, 0.1, 4.0, 3.0, 1.0]), np.array([1.0, 0, 0, 0, 1, 1])
    weights = np.array([2.0, 1, 3, 1, 1, 8])
    # Group 5: the tie of weight 2 * 1 counts half, the pair of weight 2 * 3 is right: 7 of 8. Group -3: 0.
    assert grouped_auc(groups, scores, labels, weights) == GroupedSums(
        weighted_auc=6 * 7 / 8, weight=8.0, auc=7 / 8, groups=2, one_class=1
    )
    found = auc_by_group(groups, scores, labels)
    assert found.groups.tolist() == [-3, 5, 9]
    assert found.auc[:2].tolist() == [0.0, 0.75]
    assert math.isnan(found.auc[2])


def test_auc_of_a_small_group_after_heavy_ones() -> None:
    """Catches a running sum over all groups, whose rounding is as large as a light group's pairs."""
    groups = np.concatenate([np.zeros(10**5, np.int64), np.ones(3, np.int64)])
    scores = np.concatenate([np.zeros(10**5), [1.0, 2, 3]])
    labels, weights = np.concatenate([np.zeros(10**5), [0.0, 1, 0]]), np.full(10**5 + 3, 1e-9)
    weights[: 10**5] = 1e9 / 3
    assert grouped_auc(groups, scores, labels, weights).equal == pytest.approx(0.5, abs=1e-12)


def test_ndcg_equals_scikit_learn_group_by_group() -> None:
    """Catches another discount, ties in an arbitrary order, and a cut that a small group falls short of."""
    frame = _rows(1)
    frame["label"] *= np.random.default_rng(3).integers(1, 4, len(frame))  # gains of 1 to 3
    sums = grouped_ranking(*_arguments(frame, "score", "label"), at=_CUTS)
    expected = {cut: [] for cut in _CUTS}
    for _, rows in frame.groupby("group"):
        if rows["label"].max() > 0:
            for cut in _CUTS:
                pair = [rows["label"].to_numpy()], [rows["score"].to_numpy()]
                expected[cut].append(ndcg_score(*pair, k=cut) if len(rows) > 1 else 1.0)
    assert sums.groups == len(expected[1])
    assert sums.groups + sums.without_positive == frame["group"].nunique()
    for cut in _CUTS:
        assert sums.ndcg[cut] == pytest.approx(np.mean(expected[cut]), abs=1e-9)


def test_hit_rate_equals_the_mean_over_all_orders_of_ties() -> None:
    """Catches a hit that hangs on the order of tied rows, and a positive before the tied block that is forgotten."""
    random = np.random.default_rng(4)
    for _ in range(30):
        scores, labels = random.integers(0, 3, 6).astype(float), (random.random(6) < 0.35).astype(float)
        labels[random.integers(6)] = 1
        orders = [o for o in itertools.permutations(range(6)) if (np.diff(scores[list(o)]) <= 0).all()]
        hit_rate = grouped_ranking(np.zeros(6, np.int64), scores, labels, at=(1, 2, 4, 9)).hit_rate
        for cut, value in hit_rate.items():
            assert value == pytest.approx(np.mean([labels[list(o[:cut])].any() for o in orders]), abs=1e-12)


def test_sums_of_partitions_are_the_sums_of_all_rows() -> None:
    """Catches sums that do not add up: a partition's mean, or a count that is taken once."""
    frame = _rows(2)
    parts = [part for _, part in frame.groupby(frame["group"] % 3)]
    whole = grouped_auc(*_arguments(frame, "score", "label", "weight"))
    added = sum((grouped_auc(*_arguments(part, "score", "label", "weight")) for part in parts), GroupedSums())
    assert (added.groups, added.one_class) == (whole.groups, whole.one_class)
    assert (added.by_rows, added.equal) == pytest.approx((whole.by_rows, whole.equal), abs=1e-12)
    ranking = grouped_ranking(*_arguments(frame, "score", "label"), at=_CUTS)
    first, *others = [grouped_ranking(*_arguments(part, "score", "label"), at=_CUTS) for part in parts]
    for other in others:
        first += other
    assert (first.groups, first.without_positive) == (ranking.groups, ranking.without_positive)
    assert first.ndcgs == pytest.approx(ranking.ndcgs, abs=1e-9)
    assert first.hits == pytest.approx(ranking.hits, abs=1e-9)


def test_no_rows_have_no_mean() -> None:
    """Catches a failure, or a mean of 0, for a partition without rows."""
    empty = np.empty(0, np.int64), np.empty(0), np.empty(0)
    assert grouped_auc(*empty, np.empty(0)) == GroupedSums()
    assert GroupedSums().by_rows is None
    assert grouped_ranking(*empty, at=(5,)).ndcg == {5: None}


def test_infinite_scores_have_a_rank_and_nan_has_none() -> None:
    """Catches log scores of minus infinity that are dropped, and a NaN that is ranked somewhere."""
    groups, labels = np.zeros(3, np.int64), np.array([0.0, 0, 1])
    scores = np.array([-np.inf, -np.inf, 0.0])
    assert grouped_auc(groups, scores, labels).equal == 1.0
    assert grouped_ranking(groups, scores, labels, at=(1,)).ndcg == {1: 1.0}
    with pytest.raises(ValueError, match="1 NaN scores among 3"):
        grouped_auc(groups, np.array([0, np.nan, 1]), labels)


def test_values_without_a_meaning_are_refused() -> None:
    """Catches a negative gain, and a cut of 0, that give some number."""
    one = np.zeros(1, np.int64), np.zeros(1)
    with pytest.raises(ValueError, match="labels of at least 0"):
        grouped_ranking(*one, np.array([-1.0]), at=(1,))
    with pytest.raises(ValueError, match=r"cuts are \[0\]"):
        grouped_ranking(*one, np.array([1.0]), at=(0,))
