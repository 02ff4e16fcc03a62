"""Main metric of a task in every resample of the rows, in bounded memory: the resamples share the bins of a sketch."""

from collections.abc import Iterable

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from features.tasks import TaskConfig
from pipeline.evaluation.auc import AucSketch


class ResampledMetric:
    """AUC, MSE or accuracy of a task in each resample, added up over batches, parts and ranks.

    Args:
        task: The task; its kind determines the metric.
        num_resamples: R, the number of resamples.
        capacity: Number of bins of the AUC's sketch; a bin has 16 R bytes.
    """

    def __init__(self, task: TaskConfig, num_resamples: int, capacity: int) -> None:
        self._task, self._num_resamples, self._capacity = task, num_resamples, capacity
        self._sums = torch.zeros(2, num_resamples, dtype=torch.float64)  # of the weights, and of the weighted values
        self._ranking = AucSketch(capacity, num_resamples)

    def update(
        self,
        predictions: Float[Tensor, "batch *class"],
        scores: Float[Tensor, "batch *class"],
        labels: Float[Tensor, " batch"],
        weights: Float[Tensor, "resample batch"],
    ) -> None:
        """Add rows of the task's sample space.

        Args:
            predictions: As in `TaskMetrics.update`.
            scores: As in `TaskMetrics.update`.
            labels: In the label's own unit.
            weights: Weight of each row times the number of its draws, float64 of shape (R, B).
        """
        if self._task.kind == "binary":
            self._ranking.update(scores, labels, weights)
            return
        if self._task.kind == "regression":
            values = (predictions.to(torch.float64) - labels.to(torch.float64)).square()
        else:
            values = (predictions.argmax(1) == labels.to(torch.int64)).to(torch.float64)
        self._sums += torch.stack([weights.sum(1), weights @ values])

    def state(self) -> Float[Tensor, " value"]:
        """Return the state as one float64 tensor."""
        return torch.cat([self._sums.flatten(), self._ranking.state().flatten()])

    def merged(self, states: Iterable[Float[Tensor, " value"]]) -> "ResampledMetric":
        """Return the same metric with the rows of the states alone, added in their order."""
        whole = ResampledMetric(self._task, self._num_resamples, self._capacity)
        for state in states:
            sums, ranking = state[: 2 * self._num_resamples], state[2 * self._num_resamples :]
            whole._sums += sums.reshape(2, -1)
            whole._ranking.merge(AucSketch.from_state(ranking.reshape(1 + 2 * self._num_resamples, -1), self._capacity))
        return whole

    def values(self) -> list[float | None]:
        """Return the metric in every resample; None for one in which it is undefined."""
        if self._task.kind == "binary":
            return self._ranking.aucs()
        weight, total = self._sums.numpy()
        with np.errstate(invalid="ignore", divide="ignore"):
            means = (total / weight).tolist()
        return [mean if known else None for mean, known in zip(means, weight > 0, strict=True)]
