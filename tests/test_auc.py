"""The AUC sketch: against scikit-learn on a million rows, and its own error bound on anything."""

import itertools
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from pipeline.evaluation.auc import AucSketch

_MILLION = 10**6
_Rows = tuple[np.ndarray, np.ndarray, np.ndarray | None]


def _sigmoid(values: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-values))


def _uniform(random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    scores = random.random(_MILLION)
    return scores, scores


def _narrow(random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    deviations = random.standard_normal(_MILLION)
    return 0.5 + 1e-6 * deviations, _sigmoid(deviations)


def _skewed(random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    scores = random.standard_normal(_MILLION)
    return scores - 9, 1e-4 * np.exp(scores - 0.5)


def _tied(random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    scores = np.round(random.standard_normal(_MILLION), 1)
    return scores, _sigmoid(scores)


def _wide_and_narrow(random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    deviations = random.standard_normal(_MILLION)
    narrow = random.random(_MILLION) < 0.5
    return np.where(narrow, 0.5 + 1e-6 * deviations, 3 * deviations), _sigmoid(2 * deviations)


_CASES = {
    "uniform": _uniform,
    "narrow": _narrow,
    "skewed": _skewed,
    "tied": _tied,
    "wide_and_narrow": _wide_and_narrow,
}


def _rows(case: str, weighted: bool) -> tuple[_Rows, float]:
    """A million rows, sorted by score in their second half, and scikit-learn's area."""
    random = np.random.default_rng(3)
    scores, chances = _CASES[case](random)
    order = np.concatenate([np.arange(_MILLION // 2), _MILLION // 2 + np.argsort(scores[_MILLION // 2 :])])
    scores, labels = scores.astype(np.float32)[order], (random.random(_MILLION) < chances)[order].astype(np.float32)
    weights = random.choice([0.25, 1, 3], _MILLION).astype(np.float32) if weighted else None
    return (scores, labels, weights), float(roc_auc_score(labels, scores, sample_weight=weights))


def _sketch(rows: _Rows, batch_size: int = 8192, capacity: int = 2**16) -> AucSketch:
    sketch = AucSketch(capacity)
    for begin in range(0, len(rows[0]), batch_size):
        batch = [None if column is None else torch.from_numpy(column[begin : begin + batch_size]) for column in rows]
        assert batch[0] is not None
        assert batch[1] is not None
        sketch.update(batch[0], batch[1], batch[2])
    return sketch


def _parts(rows: _Rows, num_parts: int) -> list[_Rows]:
    cuts = [np.array_split(column, num_parts) if column is not None else [None] * num_parts for column in rows]
    return list(zip(*cuts, strict=True))


def _merged(states: list[torch.Tensor], capacity: int = 2**16) -> AucSketch:
    whole = AucSketch(capacity)
    for state in states:
        whole.merge(AucSketch.from_state(state, capacity))
    return whole


def _known(value: float | None) -> float:
    assert value is not None
    return value


@pytest.mark.parametrize(("case", "weighted"), [*((case, False) for case in _CASES), ("skewed", True)])
def test_agrees_with_scikit_learn_on_a_million_rows_in_any_parts(case: str, weighted: bool) -> None:
    """Catches: bins of fixed width, which put narrow or skewed scores into a few of them."""
    rows, expected = _rows(case, weighted)
    assert _sketch(rows).auc() == pytest.approx(expected, abs=1e-4)
    for num_parts in (2, 3, 4):
        states = [_sketch(part).state() for part in _parts(rows, num_parts)]
        for order in (states[::-1], states[1:] + states[:1]):
            sketch = _merged(order)
            assert sketch.auc() == pytest.approx(expected, abs=1e-5)  # ten times better than what must hold
            assert _known(sketch.error_bound()) < 5e-5
            assert sketch.state().shape[1] <= 2**16


def test_logits_keep_apart_what_a_sigmoid_rounds() -> None:
    """Catches: ranking by float32 probabilities, which are all 1 for a confident model (the negative control)."""
    random = np.random.default_rng(0)
    deviations = random.standard_normal(20_000)
    labels = (random.random(20_000) < _sigmoid(deviations)).astype(np.float32)
    logits = (deviations + 20).astype(np.float32)
    exact = roc_auc_score(labels, logits)
    assert _sketch((logits, labels, None)).auc() == pytest.approx(exact, abs=1e-12)
    saturated = torch.from_numpy(logits).sigmoid().numpy()
    assert abs(_known(_sketch((saturated, labels, None)).auc()) - exact) > 0.1


def test_hand_computed() -> None:
    """Catches: a tie counted as won or lost, and a weight that counts on one side only.

    Pairs of a positive (scores 2, 3) and a negative (1 with weight 2, 2): 2 > 1 twice, 2 = 2 half, 3 > 1 twice, 3 > 2.
    """
    scores, labels = torch.tensor([1.0, 2.0, 2.0, 3.0]), torch.tensor([0.0, 0.0, 1.0, 1.0])
    sketch = AucSketch()
    sketch.update(scores, labels, torch.tensor([2.0, 1.0, 1.0, 1.0]))
    assert sketch.auc() == 5.5 / 6
    assert sketch.error_bound() == 0


_FLOATS = st.floats(width=32, allow_nan=False) | st.integers(-3, 3).map(float)
_LINES = st.lists(st.tuples(_FLOATS, st.integers(0, 1), st.integers(1, 4)), min_size=2, max_size=80)


def _columns(lines: list[tuple[float, int, int]]) -> _Rows:
    scores, labels, weights = (np.array(column, np.float32) for column in zip(*lines, strict=True))
    return scores, labels, weights


def _exact(rows: _Rows) -> float | None:
    """Count pairs: scikit-learn refuses infinite scores."""
    scores, labels, weights = rows
    assert weights is not None
    positive, negative = np.flatnonzero(labels == 1), np.flatnonzero(labels == 0)
    if len(positive) == 0 or len(negative) == 0:
        return None
    above, below = scores[positive][:, None], scores[negative][None]
    pairs = np.outer(weights[positive], weights[negative])
    return float((((above > below) + 0.5 * (above == below)) * pairs).sum() / pairs.sum())


@settings(max_examples=60, deadline=None)
@given(lines=_LINES, seed=st.integers(0, 99), num_parts=st.integers(1, 4))
def test_exact_and_bit_equal_in_any_order_while_scores_fit(
    lines: list[tuple[float, int, int]], seed: int, num_parts: int
) -> None:
    """Catches: an area that depends on how rows were cut into batches, parts or ranks."""
    rows = _columns(lines)
    exact, whole = _exact(rows), _sketch(rows)
    assert whole.auc() == (None if exact is None else pytest.approx(exact, abs=1e-12))
    order = np.random.default_rng(seed).permutation(len(lines))
    shuffled = _columns([lines[index] for index in order])
    states = [_sketch(part, batch_size=3).state() for part in _parts(shuffled, num_parts)]
    for permuted in itertools.permutations(states):
        assert torch.equal(_merged(list(permuted)).state(), whole.state())


@settings(max_examples=200, deadline=None)
@given(lines=_LINES, capacity=st.integers(4, 16), num_parts=st.integers(1, 4))
def test_error_stays_within_its_bound_when_scores_do_not_fit(
    lines: list[tuple[float, int, int]], capacity: int, num_parts: int
) -> None:
    """Catches: a collapse that moves weight past scores outside its bin, loses weight, or outgrows its memory."""
    rows = _columns(lines)
    exact = _exact(rows)
    states = [_sketch(part, 5, capacity).state() for part in _parts(rows, num_parts) if len(part[0])]
    sketch = _merged(states, capacity)
    state = sketch.state()
    assert state.shape[1] <= capacity
    assert state[1:].sum() == sum(weight for _, _, weight in lines)
    if exact is None:
        assert sketch.auc() is None
        assert sketch.error_bound() is None
    else:
        assert abs(_known(sketch.auc()) - exact) <= _known(sketch.error_bound()) + 1e-12


@pytest.mark.parametrize("arrange", [np.argsort, lambda scores: np.argsort(-np.abs(scores)), np.arange])
def test_errors_do_not_add_up_over_many_collapses(arrange: Callable[[np.ndarray], np.ndarray]) -> None:
    """Catches: bins whose centres move at each of 400 collapses, and early wide bins that swallow later scores."""
    random = np.random.default_rng(1)
    scores = random.standard_normal(400_000).astype(np.float32)
    labels = (random.random(400_000) < _sigmoid(scores)).astype(np.float32)
    expected = roc_auc_score(labels, scores)
    order = arrange(scores) if arrange is not np.arange else np.arange(400_000)
    sketch = _sketch((scores[order], labels[order], None), batch_size=1000, capacity=256)
    assert _known(sketch.error_bound()) < 2 / 256
    assert abs(_known(sketch.auc()) - expected) < 1e-4


def test_an_absent_class_is_undefined() -> None:
    """Catches: 0.5 for a slice in which nobody clicked."""
    sketch = AucSketch()
    assert sketch.auc() is None
    sketch.update(torch.tensor([1.0, 2.0]), torch.zeros(2))
    assert sketch.auc() is None
    sketch.update(torch.tensor([3.0]), torch.ones(1), torch.zeros(1))
    assert sketch.auc() is None
    assert sketch.state().shape == (3, 2)  # a row without weight takes no bin
    sketch.update(torch.tensor([3.0]), torch.ones(1))
    assert sketch.auc() == 1


def test_nan_scores_are_refused_and_leave_nothing() -> None:
    """Catches: a diverged model with an area, since NaN sorts above everything."""
    sketch = AucSketch()
    with pytest.raises(ValueError, match="2 NaN scores among 3"):
        sketch.update(torch.tensor([1.0, float("nan"), float("nan")]), torch.ones(3))
    assert sketch.state().shape == (3, 0)


def test_too_small_a_capacity_is_refused() -> None:
    """Catches: a collapse that can never end."""
    with pytest.raises(ValueError, match="at least 4"):
        AucSketch(3)


def test_weightings_share_their_bins() -> None:
    """Catches weightings that take each other's weights, in one sketch, merged ones, and after a way as a tensor."""
    random = torch.Generator().manual_seed(4)
    scores = torch.randn(3000, generator=random)
    labels = (scores + torch.randn(3000, generator=random) > 0).float()
    weights = torch.randint(0, 3, (4, 3000), generator=random).double()
    weights[3] = 0
    parts = [AucSketch(2000, 4), AucSketch(2000, 4)]
    for sketch, chosen in zip(parts, (slice(0, 1000), slice(1000, 3000)), strict=True):
        sketch.update(scores[chosen], labels[chosen], weights[:, chosen])
    whole = AucSketch.from_state(parts[0].state(), 2000)
    whole.merge(AucSketch.from_state(parts[1].state(), 2000))
    found = whole.aucs()
    assert found[3] is None
    for auc, weight in zip(found[:3], weights[:3], strict=True):
        assert auc == pytest.approx(roc_auc_score(labels, scores, sample_weight=weight), abs=1e-4)
    assert whole.state().shape[1] <= 2000
    exact = AucSketch(4000, 4)
    exact.update(scores, labels, weights)
    for auc, weight in zip(exact.aucs()[:3], weights[:3], strict=True):
        alone = AucSketch(4000)
        alone.update(scores, labels, weight)
        assert auc == pytest.approx(alone.auc(), abs=1e-12)
