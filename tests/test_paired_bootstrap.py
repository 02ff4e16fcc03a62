"""Differences of two models by a paired bootstrap over users: the coverage of the interval, by simulation."""

from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist

from features.hashing import salt_of
from features.tasks import TaskConfig
from pipeline.config.evaluation import BootstrapConfig
from pipeline.evaluation.bootstrap import Bootstrap, paired_interval, times_drawn

CONFIG = BootstrapConfig(by="user_id", resamples=200)
VCR = TaskConfig(name="vcr", label="share", kind="regression")
USERS, ROWS_EACH, REPEATS, RESAMPLES, TRUTH = 600, 3, 500, 200, 0.05


def _simulated(random: np.random.Generator) -> tuple[np.ndarray, list[np.ndarray]]:
    """Users, and for two models the errors on their rows, of shape (users, rows); mean squares differ by `TRUTH`.

    The errors of a user's rows are alike, and so are those of both models on a row.
    """
    users = random.integers(1, 2**62, USERS)
    common = random.normal(0, 0.8, (USERS, 1)) + random.normal(0, 0.6, (USERS, ROWS_EACH))
    return users, [common + random.normal(0, np.sqrt(TRUTH), (USERS, 1)), common]


def _drawn(users: np.ndarray, errors: list[np.ndarray]) -> list[np.ndarray]:
    """Mean squared error of each model in each resample, by the product's draws."""
    counts = np.stack([times_drawn(users, salt_of(f"bootstrap/{number}")) for number in range(RESAMPLES)])
    return [counts @ (error**2).sum(1) / (counts.sum(1) * ROWS_EACH) for error in errors]


def _contains(interval: tuple[float | None, float | None]) -> bool:
    low, high = interval
    assert low is not None
    assert high is not None
    return low <= TRUTH <= high


def test_the_interval_covers_the_true_difference() -> None:
    """Catches resamples that are not paired, draws that are too even, and an interval at other percentiles.

    The control holds resamples of one model against other resamples of the other: its interval is far too wide.
    """
    random, paired, unpaired = np.random.default_rng(11), 0, 0
    for _ in range(REPEATS):
        one, other = (values.tolist() for values in _drawn(*_simulated(random)))
        paired += _contains(paired_interval(one, other, 0.95))
        unpaired += _contains(paired_interval(one, other[::-1], 0.95))
    assert 0.93 <= paired / REPEATS <= 0.97
    assert unpaired / REPEATS > 0.99


class Resampled:
    """Resamples of two models by `Bootstrap`, on a rank of its own."""

    def __call__(self, rank: int, num_ranks: int) -> list[list[float]]:
        users, errors = _simulated(np.random.default_rng(11))
        rows = torch.from_numpy(np.repeat(users, ROWS_EACH))
        everyone, zeros = torch.ones(len(rows), dtype=torch.bool), torch.zeros(len(rows))
        found = []
        for error in errors:
            drawn, predictions = Bootstrap(CONFIG, [VCR]), torch.from_numpy(error.reshape(-1))
            drawn.update(0, rows, everyone, predictions, predictions, zeros, zeros + 1)
            assert dist.group.WORLD is not None
            (interval,) = drawn.results(dist.group.WORLD, with_draws=True)
            found.append(interval["draws"])
        return found


def test_the_simulation_draws_as_the_product_does(run_ranks: Any) -> None:
    """Catches a simulation of other resamples than those that are in the table, so that its coverage says nothing."""
    (found,) = run_ranks(Resampled(), 1)
    for draws, expected in zip(found, _drawn(*_simulated(np.random.default_rng(11))), strict=True):
        assert draws == pytest.approx(expected.tolist(), rel=1e-9)


def test_an_undefined_resample_has_no_interval() -> None:
    """Catches an interval of the resamples that happen to be defined for both models."""
    assert paired_interval([0.5, None, 0.7], [0.4, 0.4, 0.4], 0.9) == (None, None)
    assert paired_interval([], [], 0.9) == (None, None)
    low, high = paired_interval([0.5, 0.6, 0.7], [0.4, 0.4, 0.4], 0.5)
    assert low == pytest.approx(0.1)  # the first of three: rank .25 times 4
    assert high == pytest.approx(0.3)
