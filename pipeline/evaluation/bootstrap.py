"""Intervals by bootstrap over users: the spread of a metric over other samples of users.

Rows of one user are correlated, so whole users are drawn, not rows. Each of R resamples takes every user a number of
times drawn from Poisson(1). In the limit of many users this is the bootstrap's drawing with replacement, and it needs
neither the number of users nor their rows together (Chamandy et al., "Estimating Uncertainty for Massive Data Streams",
Google, 2012). The number is a pure function of (user, resample), so ranks need not communicate, and two models measured
on the same rows get the same resamples, whatever their vocabularies. So the differences of their metrics, resample by
resample, are those of a paired bootstrap (`paired_interval`).
"""

import math
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
import torch.distributed as dist
from jaxtyping import Float, Int
from torch import Tensor

from features.hashing import mix64, salt_of
from features.tasks import TaskConfig
from pipeline.config.evaluation import BootstrapConfig
from pipeline.evaluation.metrics import TaskMetrics
from pipeline.evaluation.rank_merge import results_over_ranks
from pipeline.evaluation.table import metric_of

_CAPACITY = 2**12  # bins of a resample's AUC: its error is far below the spread of the resamples
ROWS_AT_ONCE = 2**14  # number of rows that wait for a common pass over all resamples
# Probabilities of at most 0, 1, 2, ... under Poisson(1); 7e-10 is left beyond 11.
_POISSON = np.cumsum([math.exp(-1) / math.factorial(count) for count in range(12)])

Known = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]


class Bootstrap:
    """Resampled metrics of several tasks, added up over batches.

    Args:
        config: Configuration of the resamples.
        tasks: The tasks, in order.
    """

    def __init__(self, config: BootstrapConfig, tasks: Sequence[TaskConfig]) -> None:
        self._config = config
        self._salts = [salt_of(f"bootstrap/{number}") for number in range(config.resamples)]
        self._metrics = [[TaskMetrics(task, _CAPACITY) for task in tasks] for _ in self._salts]
        self._waiting: list[list[Known]] = [[] for _ in tasks]

    def update(self, task: int, users: Int[Tensor, " batch"], in_space: Tensor, *known: Tensor) -> None:
        """Add a batch of a task.

        Args:
            task: Number of the task.
            users: Users of the rows.
            in_space: Mask of the rows in the task's sample space; the others are dropped.
            known: Predictions, scores, labels and weights, as in `TaskMetrics.update`.
        """
        chosen = in_space.cpu()
        predictions, scores, labels, weight = (tensor.detach().cpu()[chosen] for tensor in known)
        self._waiting[task].append((users[chosen], predictions, scores, labels, weight))
        if sum(len(part[0]) for part in self._waiting[task]) >= ROWS_AT_ONCE:
            self._resample(task)

    def _resample(self, task: int) -> None:
        waiting, self._waiting[task] = self._waiting[task], []
        if not waiting:
            return
        users, predictions, scores, labels, weight = (torch.cat(parts) for parts in zip(*waiting, strict=True))
        everyone = torch.ones(len(users), dtype=torch.bool)
        for salt, metrics in zip(self._salts, self._metrics, strict=True):
            counted = weight * torch.from_numpy(times_drawn(users.numpy(), salt))
            metrics[task].update(predictions, scores, labels, everyone, counted)

    def results(self, group: dist.ProcessGroup, *, with_draws: bool = False) -> list[dict[str, Any]]:
        """Return the interval of each task's metric, over the rows of all ranks; collective. Ends the accumulation.

        Args:
            group: A group that moves CPU tensors (gloo).
            with_draws: True for the metric in every resample too, as `draws`; None for one in which it is undefined.
        """
        for task in range(len(self._waiting)):
            self._resample(task)
        tasks = [metrics.task for metrics in self._metrics[0]]
        values = results_over_ranks([one for metrics in self._metrics for one in metrics], group, _main_metric)
        drawn = [values[place :: len(tasks)] for place in range(len(tasks))]
        found = [self._interval(task, values) for task, values in zip(tasks, drawn, strict=True)]
        return [one | {"draws": values} for one, values in zip(found, drawn, strict=True)] if with_draws else found

    def _interval(self, task: TaskConfig, values: Sequence[float | None]) -> dict[str, Any]:
        """Return percentiles; None if the metric is undefined in a resample, for example with one class only."""
        low, high = percentiles(values, self._config.level)
        named = {"metric": metric_of(task.kind), "low": low, "high": high}
        return named | {"level": self._config.level, "resamples": self._config.resamples, "by": self._config.by}


def _main_metric(metrics: TaskMetrics) -> float | None:
    value = metrics.result()[metric_of(metrics.task.kind)]
    return None if value is None else float(value)


def percentiles(
    values: Sequence[float | None], level: float, method: Literal["linear", "weibull"] = "linear"
) -> tuple[float | None, float | None]:
    """Return the ends of an interval with a share of the resamples in it; None where one of them is undefined."""
    known = [value for value in values if value is not None]
    if len(known) < len(values) or not known:
        return None, None
    edge = (1 - level) / 2
    low, high = np.quantile(known, [edge, 1 - edge], method=method).tolist()
    return low, high


def paired_interval(
    one: Sequence[float | None], other: Sequence[float | None], level: float
) -> tuple[float | None, float | None]:
    """Return the interval of the difference of two models' metric, `one` less `other`, by a paired bootstrap.

    Its ends are the values of rank p (R + 1) of R resamples (Davison and Hinkley, "Bootstrap Methods and their
    Application", 1997): those of rank p (R - 1) + 1 leave out 6 % instead of 5 % with 200 resamples.

    Args:
        one: Metric of the first model in each resample, of the same rows and users as the other's.
        other: Metric of the second model in each resample, in the same order.
        level: Share of the resamples within the interval.

    Returns:
        The ends of the interval; None if the metric is undefined in a resample.
    """
    pairs = zip(one, other, strict=True)
    return percentiles([None if a is None or b is None else a - b for a, b in pairs], level, "weibull")


def times_drawn(users: np.ndarray, salt: int) -> Float[np.ndarray, " batch"]:
    """Return each row's number of draws of its user in a resample: Poisson(1), by the hash of the user.

    Args:
        users: int64, shape (B,).
        salt: Salt of the resample.
    """
    uniform = mix64(users.astype(np.uint64), salt).astype(np.float64) / 2.0**64
    return np.searchsorted(_POISSON, uniform, side="right").astype(np.float64)
