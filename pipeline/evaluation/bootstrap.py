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
from pipeline.evaluation.rank_merge import results_over_ranks
from pipeline.evaluation.resampled import ResampledMetric
from pipeline.evaluation.table import metric_of

_CAPACITY = 2**12  # bins of a task's AUC: its error is far below the spread of the resamples
_SLICE_CAPACITY = 2**8  # bins of a slice's AUC: a slice has fewer rows, and there are many slices
ROWS_AT_ONCE = 2**14  # number of rows that wait for a common pass over all resamples
_DRAWS_AT_ONCE = 2**22  # number of (row, resample) pairs in memory at once
# Probabilities of at most 0, 1, 2, ... under Poisson(1); 7e-10 is left beyond 11.
_POISSON = np.cumsum([math.exp(-1) / math.factorial(count) for count in range(12)])

Known = tuple[Tensor, ...]


class Bootstrap:
    """Resampled metrics of several tasks, added up over batches.

    The memory is bounded: R resamples of a binary task have 65,536 R bytes, and those of one of its slices 4,096 R.

    Args:
        config: Configuration of the resamples.
        tasks: The tasks, in order.
        num_slices: S, the number of declared slices whose values are resampled too.
    """

    def __init__(self, config: BootstrapConfig, tasks: Sequence[TaskConfig], num_slices: int = 0) -> None:
        self._config, self._tasks = config, tasks
        self._salts = [salt_of(f"bootstrap/{number}") for number in range(config.resamples)]
        self._metrics = [ResampledMetric(task, config.resamples, _CAPACITY) for task in tasks]
        self._of_values: list[dict[int, list[ResampledMetric]]] = [{} for _ in range(num_slices)]
        self._waiting: list[list[Known]] = [[] for _ in tasks]

    def update(
        self, task: int, users: Int[Tensor, " batch"], in_space: Tensor, *known: Tensor, slices: Tensor | None = None
    ) -> None:
        """Add a batch of a task.

        Args:
            task: Number of the task.
            users: Users of the rows.
            in_space: Mask of the rows in the task's sample space; the others are dropped.
            known: Predictions, scores, labels and weights, as in `TaskMetrics.update`.
            slices: Hash of each row's values, shape (B, S); absent without slices.
        """
        chosen = in_space.cpu()
        values = slices if self._of_values and slices is not None else torch.empty(len(users), 0, dtype=torch.int64)
        kept = (users, values, *(tensor.detach().cpu() for tensor in known))
        self._waiting[task].append(tuple(tensor[chosen] for tensor in kept))
        if sum(len(part[0]) for part in self._waiting[task]) >= ROWS_AT_ONCE:
            self._resample(task)

    def _resample(self, task: int) -> None:
        """Add the rows that wait, a piece at a time."""
        waiting, self._waiting[task] = self._waiting[task], []
        if not waiting:
            return
        rows = [torch.cat(parts) for parts in zip(*waiting, strict=True)]
        at_once = max(1, _DRAWS_AT_ONCE // len(self._salts))
        for piece in zip(*(torch.split(one, at_once) for one in rows), strict=True):
            self._add(task, *piece)

    def _add(self, task: int, users: Tensor, slices: Tensor, *known: Tensor) -> None:
        predictions, scores, labels, weight = known
        drawn = torch.from_numpy(np.stack([times_drawn(users.numpy(), salt) for salt in self._salts]))
        counted = drawn * weight.to(torch.float64)
        self._metrics[task].update(predictions, scores, labels, counted)
        for metrics, column in zip(self._of_values, slices.T, strict=True):
            order = torch.argsort(column, stable=True)
            values, counts = torch.unique_consecutive(column[order], return_counts=True)
            pieces = [torch.split(tensor[order], counts.tolist()) for tensor in (predictions, scores, labels)]
            weights = torch.split(counted[:, order], counts.tolist(), dim=1)
            for value, *some, of_value in zip(values.tolist(), *pieces, weights, strict=True):
                predicted, scored, known_labels = some
                self._of(metrics, value)[task].update(predicted, scored, known_labels, of_value)

    def _of(self, metrics: dict[int, list[ResampledMetric]], value: int) -> list[ResampledMetric]:
        if value not in metrics:
            metrics[value] = [ResampledMetric(task, len(self._salts), _SLICE_CAPACITY) for task in self._tasks]
        return metrics[value]

    def results(self, group: dist.ProcessGroup, *, with_draws: bool = False) -> list[dict[str, Any]]:
        """Return the interval of each task's metric, over the rows of all ranks; collective. Ends the accumulation.

        Args:
            group: A group that moves CPU tensors (gloo).
            with_draws: True for the metric in every resample too, as `draws`; None for one in which it is undefined.
        """
        for task in range(len(self._waiting)):
            self._resample(task)
        drawn = results_over_ranks(self._metrics, group, ResampledMetric.values)
        found = [self._interval(task, values) for task, values in zip(self._tasks, drawn, strict=True)]
        return [one | {"draws": values} for one, values in zip(found, drawn, strict=True)] if with_draws else found

    def slice_results(
        self, group: dist.ProcessGroup, values: Sequence[Sequence[int]]
    ) -> list[list[list[dict[str, Any]]]]:
        """Return the intervals and draws of the slices, over the rows of all ranks; collective, after `results`.

        Args:
            group: A group that moves CPU tensors (gloo).
            values: Hashes of the values of each declared slice, in one order on all ranks.

        Returns:
            For each task and declared slice, the interval of each value, with `draws`.
        """
        metrics = [
            [self._of(found, value) for value in wanted] for found, wanted in zip(self._of_values, values, strict=True)
        ]
        flat = [one for of_slice in metrics for of_value in of_slice for one in of_value]
        drawn = iter(results_over_ranks(flat, group, ResampledMetric.values))
        results: list[list[list[dict[str, Any]]]] = [[[] for _ in values] for _ in self._tasks]
        for place, wanted in enumerate(values):
            for _ in wanted:
                for task, of_task in zip(self._tasks, results, strict=True):
                    draws = next(drawn)
                    of_task[place].append(self._interval(task, draws) | {"draws": draws})
        return results

    def _interval(self, task: TaskConfig, values: Sequence[float | None]) -> dict[str, Any]:
        """Return percentiles; None if the metric is undefined in a resample, for example with one class only."""
        low, high = percentiles(values, self._config.level)
        named = {"metric": metric_of(task.kind), "low": low, "high": high}
        return named | {"level": self._config.level, "resamples": self._config.resamples, "by": self._config.by}


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
