"""Intervals by bootstrap over users: the resamples by brute force, users drawn whole, and ranks that agree."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from sklearn.metrics import roc_auc_score
from torch import Tensor

from features.hashing import salt_of
from features.tasks import TaskConfig
from pipeline.config.evaluation import BootstrapConfig
from pipeline.evaluation import bootstrap
from pipeline.evaluation.bootstrap import Bootstrap, times_drawn

CTR = TaskConfig(name="ctr", label="click")
VCR = TaskConfig(name="vcr", label="share", kind="regression")
DRAWN = BootstrapConfig(by="user_id", resamples=60, level=0.9)
NUM_USERS, NUM_ROWS = 300, 3000
RATING = TaskConfig(name="rating", label="stars", kind="multiclass", num_classes=2)
TASKS = CTR, VCR, RATING


def _rows(task: TaskConfig) -> dict[str, Tensor]:
    """Ten rows of each user, whose errors and labels are much alike."""
    random = torch.Generator().manual_seed(5)
    users = torch.arange(NUM_ROWS) % NUM_USERS
    taste = torch.randn(NUM_USERS, generator=random)[users]
    scores = torch.randn(NUM_USERS, generator=random)[users] + 0.3 * torch.randn(NUM_ROWS, generator=random)
    if task is CTR:
        labels = (scores * 0.3 + 2 * taste + torch.randn(NUM_ROWS, generator=random) > 0).float()
    elif task is VCR:
        labels = scores.sigmoid() + taste
    else:
        labels = (taste > 0).float()
    in_space = torch.rand(NUM_ROWS, generator=random) < 0.7
    weight = torch.randint(1, 4, (NUM_ROWS,), generator=random).float()
    labels[~in_space] = float("nan")
    predictions = scores.sigmoid()
    if task is RATING:
        scores = torch.stack([-scores, scores], dim=1)
        predictions = scores.softmax(1)
    known = {"predictions": predictions, "scores": scores, "labels": labels, "weight": weight}
    return {"users": users, "in_space": in_space} | known


@dataclass(frozen=True)
class Resampled:
    """Resampling of a rank's share of the rows, in batches."""

    config: BootstrapConfig = DRAWN
    users: tuple[int, ...] | None = None

    def __call__(self, rank: int, num_ranks: int) -> Any:
        drawn = Bootstrap(self.config, [CTR, VCR])
        for index, task in enumerate((CTR, VCR)):
            rows = _rows(task)
            if self.users is not None:
                rows["users"] = torch.tensor(self.users)
            for start in range(rank * 500, NUM_ROWS, num_ranks * 500):
                part = [tensor[start : start + 500] for tensor in rows.values()]
                drawn.update(index, part[0], part[1], *part[2:])
        assert dist.group.WORLD is not None
        return drawn.results(dist.group.WORLD)


def _draws(task: TaskConfig, chosen: np.ndarray) -> list[float]:
    """The metric of the chosen rows in each resample, by scikit-learn."""
    rows = {name: tensor.numpy() for name, tensor in _rows(task).items()}
    kept = {name: values[rows["in_space"] & chosen] for name, values in rows.items()}
    values = []
    for number in range(DRAWN.resamples):
        weight = kept["weight"] * times_drawn(kept["users"], salt_of(f"bootstrap/{number}"))
        if task is CTR:
            values.append(roc_auc_score(kept["labels"], kept["scores"], sample_weight=weight))
        elif task is VCR:
            values.append(np.average((kept["predictions"] - kept["labels"]) ** 2, weights=weight))
        else:
            values.append(np.average(kept["predictions"].argmax(1) == kept["labels"], weights=weight))
    return values


def _expected() -> list[tuple[float, float]]:
    everyone = np.ones(NUM_ROWS, bool)
    return [tuple(np.quantile(_draws(task, everyone), [0.05, 0.95])) for task in (CTR, VCR)]


def test_it_equals_brute_force_on_any_number_of_ranks(run_ranks: Any) -> None:
    """Catches resamples that differ from rank to rank or batch to batch, and rows outside the space that count."""
    for found in run_ranks(Resampled(), 1) + run_ranks(Resampled(), 2):
        assert [interval["metric"] for interval in found] == ["auc", "mse"]
        for interval, (low, high) in zip(found, _expected(), strict=True):
            assert interval["low"] == pytest.approx(low, abs=2e-5)
            assert interval["high"] == pytest.approx(high, abs=2e-5)


SLICES = 2, 3  # number of values of two declared slices


@dataclass(frozen=True)
class ResampledSlices:
    """Resampling of a rank's share of the rows by slices; the last value of the first slice is on rank 0 alone."""

    def __call__(self, rank: int, num_ranks: int) -> Any:
        drawn, slices = Bootstrap(DRAWN, TASKS, len(SLICES)), _slices()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(bootstrap, "ROWS_AT_ONCE", 700)
            patch.setattr(bootstrap, "_DRAWS_AT_ONCE", 300 * DRAWN.resamples)
            for index, task in enumerate(TASKS):
                rows = _rows(task)
                for start in range(rank * 500, NUM_ROWS, num_ranks * 500):
                    part = [tensor[start : start + 500] for tensor in rows.values()]
                    drawn.update(index, part[0], part[1], *part[2:], slices=slices[start : start + 500])
        assert dist.group.WORLD is not None
        whole = drawn.results(dist.group.WORLD, with_draws=True)
        return whole, drawn.slice_results(dist.group.WORLD, [list(range(number)) for number in SLICES])


def _slices() -> Tensor:
    places = torch.arange(NUM_ROWS)
    return torch.stack([(places < 400).long(), places // 7 % 3], dim=1)


def test_slices_equal_brute_force_on_any_number_of_ranks(run_ranks: Any) -> None:
    """Catches a slice with another's rows, other users drawn than for all rows, and a value that one rank has met."""
    slices = _slices().numpy()
    expected = [
        [[_draws(task, slices[:, place] == value) for value in range(number)] for place, number in enumerate(SLICES)]
        for task in TASKS
    ]
    for num_ranks in (1, 2, 3):
        for whole, found in run_ranks(ResampledSlices(), num_ranks):
            for task, interval in zip(TASKS, whole, strict=True):
                assert interval["draws"] == pytest.approx(_draws(task, np.ones(NUM_ROWS, bool)), abs=2e-5)
            for of_task, of_task_expected in zip(found, expected, strict=True):
                for of_slice, of_slice_expected in zip(of_task, of_task_expected, strict=True):
                    for interval, draws in zip(of_slice, of_slice_expected, strict=True):
                        assert interval["draws"] == pytest.approx(draws, abs=1e-3)  # 256 bins, in few of them a user
                        assert interval["low"] == pytest.approx(np.quantile(draws, 0.05), abs=1e-3)


def test_the_memory_of_slices_is_bounded() -> None:
    """Catches a sketch of a slice that grows with the rows of a day."""
    drawn = Bootstrap(DRAWN, [CTR], 1)
    random = torch.Generator().manual_seed(2)
    for _ in range(20):
        scores = torch.randn(2000, generator=random)
        users = torch.randint(0, 10**9, (2000,), generator=random)
        everyone, ones = torch.ones(2000, dtype=torch.bool), torch.ones(2000)
        labels, slices = (scores > 0).float(), torch.zeros(2000, 1, dtype=torch.int64)
        drawn.update(0, users, everyone, scores.sigmoid(), scores, labels, ones, slices=slices)
    (of_slice,), whole = drawn._of_values[0][0], drawn._metrics[0]
    assert whole.state().nbytes <= 8 * (1 + 2 * DRAWN.resamples) * (2**12 + 2)
    assert of_slice.state().nbytes <= 8 * (1 + 2 * DRAWN.resamples) * (2**8 + 2)


def test_users_are_drawn_whole(run_ranks: Any) -> None:
    """Catches rows drawn one by one, whose interval is too narrow where the rows of a user are alike: the control."""
    (by_users,) = run_ranks(Resampled(), 1)
    (by_rows,) = run_ranks(Resampled(users=tuple(range(NUM_ROWS))), 1)
    for users, rows in zip(by_users, by_rows, strict=True):
        assert users["high"] - users["low"] > 1.5 * (rows["high"] - rows["low"])


def test_the_interval_has_the_width_that_theory_says(run_ranks: Any) -> None:
    """Catches draws that are too even, or too wild: of a mean of independent rows the deviation is known."""
    config = BootstrapConfig(by="user_id", resamples=400, level=0.9)
    ((_, interval),) = run_ranks(Resampled(config, tuple(range(NUM_ROWS))), 1)
    rows = _rows(VCR)
    kept = rows["in_space"]
    errors, weight = (rows["predictions"] - rows["labels"])[kept] ** 2, rows["weight"][kept]
    mean = (errors * weight).sum() / weight.sum()
    deviation = float(((errors - mean) ** 2 * weight**2).sum().sqrt() / weight.sum())
    assert interval["high"] - interval["low"] == pytest.approx(2 * 1.645 * deviation, rel=0.15)


def test_times_drawn_are_of_poisson() -> None:
    """Catches a table of chances that begins at the wrong count."""
    drawn = times_drawn(np.arange(200_000), salt_of("x"))
    assert drawn.mean() == pytest.approx(1, abs=0.01)
    assert drawn.var() == pytest.approx(1, abs=0.02)
    assert (drawn == 0).mean() == pytest.approx(np.exp(-1), abs=0.005)


def test_what_a_resample_cannot_measure_has_no_interval(run_ranks: Any) -> None:
    """Catches an interval of the resamples that happen to have both classes: with one user some have none at all."""
    (found,) = run_ranks(Resampled(users=(7,) * NUM_ROWS), 1)
    assert all(interval["low"] is None for interval in found)


def test_rows_wait_in_bounded_number(monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches rows that are kept until the end of a day."""
    monkeypatch.setattr(bootstrap, "ROWS_AT_ONCE", 700)
    drawn = Bootstrap(DRAWN, [CTR])
    users, in_space, *known = _rows(CTR).values()
    for start in range(0, NUM_ROWS, 500):
        now = slice(start, start + 500)
        drawn.update(0, users[now], in_space[now], *(tensor[now] for tensor in known))
        assert sum(len(waiting[0]) for waiting in drawn._waiting[0]) < 700
