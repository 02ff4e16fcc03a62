"""Accumulation of metrics over batches: the model's, those of baselines and truth, and intervals."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from features.tasks import TaskConfig
from models.assembly import task_heads
from models.batch import RankingBatch
from models.tasks import TaskHead, predictions_of
from pipeline.config.evaluation import BootstrapConfig
from pipeline.evaluation.bootstrap import Bootstrap
from pipeline.evaluation.gate_use import GateUse
from pipeline.evaluation.metrics import TaskMetrics, merge_over_ranks
from pipeline.log_passes.popularity import Popularity

_PROBABILITY_EPS = 1e-7


class Measured:
    """Metrics of the model, of popularity and of the truth, per task.

    Args:
        tasks: The declared tasks.
        popularity: The popularity baseline, if any.
        gates: Use of experts by the model's gates.
        bootstrap: Resampling for intervals; None: no intervals.

    Attributes:
        problem: First error of a batch, if any; the ranks continue together and exchange their errors at the end.
    """

    def __init__(
        self,
        tasks: Sequence[TaskConfig],
        popularity: Popularity | None,
        gates: GateUse,
        bootstrap: BootstrapConfig | None = None,
    ) -> None:
        self.problem: str | None = None
        self._bootstrap = Bootstrap(bootstrap, tasks) if bootstrap else None
        self._tasks = tasks
        self.gates = gates
        self._popularity = popularity
        self._heads: list[TaskHead] = task_heads(tasks)
        self._model = [TaskMetrics(task) for task in tasks]
        self._baseline = [TaskMetrics(task) for task in tasks]
        self._truth = [TaskMetrics(task) for task in tasks]

    def update(self, outputs: Tensor, batch: RankingBatch) -> None:
        """Add a batch with the model's raw outputs, shape (B, sum of outputs)."""
        try:
            self._update(outputs, batch)
        except ValueError as error:
            self.problem = self.problem or str(error)

    def _update(self, outputs: Tensor, batch: RankingBatch) -> None:
        self.gates.add(batch.cursor.num_rows)
        outputs, batch = outputs.cpu(), batch.to(torch.device("cpu"))
        predicted = predictions_of(self._heads, outputs)
        raw = torch.split(outputs, [head.num_outputs for head in self._heads], dim=1)
        popular = self._popular(batch)
        for index, task in enumerate(self._tasks):
            known = (batch.labels[:, index], batch.in_space[:, index], batch.weight[:, index])
            scores = raw[index] if task.kind == "multiclass" else raw[index].squeeze(1)
            self._model[index].update(predicted[task.name], scores, *known)
            if self._bootstrap is not None and batch.users is not None:
                label, in_space, weight = known
                self._bootstrap.update(index, batch.users, in_space, predicted[task.name], scores, label, weight)
            if popular is not None:
                _add_baseline(self._baseline[index], popular[:, index], *known)
            if batch.truth is not None and task.truth is not None:
                _add_baseline(self._truth[index], batch.truth[:, index], *known)

    def _popular(self, batch: RankingBatch) -> Tensor | None:
        if self._popularity is None:
            return None
        bags = batch.sparse[self._popularity.feature]
        scores = self._popularity.scores(bags.values().numpy(), bags.lengths().numpy())
        return torch.from_numpy(np.ascontiguousarray(scores, dtype=np.float32))

    def results(self, group: dist.ProcessGroup, *, with_draws: bool = False) -> dict[str, Any]:
        """Return the arguments of a `Measurement`, over the rows of all ranks; collective.

        Args:
            group: A group that moves CPU tensors (gloo).
            with_draws: True to give each task's interval the metric in every resample, as `draws`.
        """
        merged = [merge_over_ranks(metrics, group) for metrics in (self._model, self._baseline, self._truth)]
        tasks = [
            {"task": task.name, "kind": task.kind, "objective": task.objective, "role": task.role}
            | {
                name: _finite(m[index].result())
                for name, m in zip(("model", "popularity", "truth"), merged, strict=True)
            }
            for index, task in enumerate(self._tasks)
        ]
        if self._bootstrap is not None:
            for task, interval in zip(tasks, self._bootstrap.results(group, with_draws=with_draws), strict=True):
                task["interval"] = interval
        means, deviations = self.gates.moments(group)
        return {"tasks": tasks, "expert_use": means, "expert_use_deviation": deviations}


def _add_baseline(metrics: TaskMetrics, values: Tensor, labels: Tensor, in_space: Tensor, weight: Tensor) -> None:
    """Add probabilities or values of a baseline; multiclass tasks have no such baseline."""
    if metrics.task.kind == "binary":
        values = values.clamp(_PROBABILITY_EPS, 1 - _PROBABILITY_EPS)
        metrics.update(values, torch.logit(values), labels, in_space, weight)
    elif metrics.task.kind == "regression":
        metrics.update(values, values, labels, in_space, weight)


def _finite(result: dict[str, Any]) -> dict[str, Any]:
    """Replace metrics that are not finite by None: JSON has no NaN."""
    return {
        name: None if isinstance(value, float) and not math.isfinite(value) else value for name, value in result.items()
    }
