"""Accumulation of metrics over batches: the model's, those of baselines and truth, and intervals."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from features.errors import DataError
from features.tasks import TaskConfig
from models.assembly import task_heads
from models.batch import RankingBatch
from models.tasks import TaskHead, predictions_of
from pipeline.config.evaluation import EvaluationConfig
from pipeline.evaluation.bootstrap import Bootstrap
from pipeline.evaluation.calibration_curve import CurvePoint
from pipeline.evaluation.gate_use import GateUse
from pipeline.evaluation.group_rows import GroupRows
from pipeline.evaluation.metrics import TaskMetrics
from pipeline.evaluation.rank_merge import results_over_ranks
from pipeline.evaluation.row_sample import RowSample, row_hashes, sampled_figures
from pipeline.evaluation.slice_metrics import SliceMetrics
from pipeline.log_passes.popularity import Popularity

_PROBABILITY_EPS = 1e-7


class Measured:
    """Metrics of the model, of popularity and of the truth, per task.

    Args:
        tasks: The declared tasks.
        popularity: The popularity baseline, if any.
        gates: Use of experts by the model's gates.
        evaluation: Resamples, slices and metrics within groups that are asked for.
        num_rows: Number of rows that all ranks will add, about.
        with_draws: True to give intervals the metric in every resample, as `draws`, and slices such intervals too.

    Attributes:
        problem: First error of a batch, if any; the ranks continue together and exchange their errors at the end.
    """

    def __init__(
        self,
        tasks: Sequence[TaskConfig],
        popularity: Popularity | None,
        gates: GateUse,
        evaluation: EvaluationConfig | None = None,
        num_rows: int = 0,
        *,
        with_draws: bool = False,
    ) -> None:
        self.problem: str | None = None
        self._with_draws = with_draws
        asked = evaluation or EvaluationConfig()
        num_resampled = len(asked.by) if with_draws else 0
        self._bootstrap = Bootstrap(asked.bootstrap, tasks, num_resampled) if asked.bootstrap else None
        self._slices = SliceMetrics(asked.by, tasks, asked.max_slices) if asked.by else None
        binary = any(task.kind == "binary" for task in tasks)
        groups = asked.grouped if binary else None
        self._groups = GroupRows(groups, tasks, num_rows, dist.get_world_size()) if groups else None
        self._samples = {place: RowSample() for place, task in enumerate(tasks) if task.kind == "regression"}
        self._tasks = tasks
        self.gates = gates
        self._popularity = popularity
        self._heads: list[TaskHead] = task_heads(tasks)
        self._model = [TaskMetrics(task) for task in tasks]
        self._baseline = [TaskMetrics(task) for task in tasks]
        self._truth = [TaskMetrics(task) for task in tasks]

    def update(self, outputs: Tensor, batch: RankingBatch) -> None:
        """Add a batch with the model's raw outputs, shape (B, sum of outputs)."""
        if self.problem is not None:
            return
        try:
            self._update(outputs, batch)
        except (ValueError, DataError) as error:
            self.problem = self.problem or str(error)

    def _update(self, outputs: Tensor, batch: RankingBatch) -> None:
        self.gates.add(batch.cursor.num_rows)
        outputs, batch = outputs.cpu(), batch.to(torch.device("cpu"))
        predicted = predictions_of(self._heads, outputs)
        raw = torch.split(outputs, [head.num_outputs for head in self._heads], dim=1)
        raw = [one if task.kind == "multiclass" else one.squeeze(1) for one, task in zip(raw, self._tasks, strict=True)]
        self._keep_rows(batch, raw, predicted)
        popular = self._popular(batch)
        for index, task in enumerate(self._tasks):
            known = (batch.labels[:, index], batch.in_space[:, index], batch.weight[:, index])
            label, in_space, weight = known
            shown = (in_space, predicted[task.name], raw[index], label, weight)
            self._model[index].update(predicted[task.name], raw[index], *known)
            if self._bootstrap is not None and batch.users is not None:
                self._bootstrap.update(index, batch.users, *shown, slices=batch.slices)
            if self._slices is not None and batch.slices is not None:
                self._slices.update(index, batch.slices, *shown)
            if popular is not None:
                _add_baseline(self._baseline[index], popular[:, index], *known)
            if batch.truth is not None and task.truth is not None:
                _add_baseline(self._truth[index], batch.truth[:, index], *known)

    def _keep_rows(self, batch: RankingBatch, raw: Sequence[Tensor], predicted: Mapping[str, Tensor]) -> None:
        """Keep the rows, or a sample of them, for metrics that need several rows side by side."""
        if self._slices is not None:
            self._slices.name(batch.slice_texts or ())
        if self._groups is not None:
            self._groups.update(batch, raw)
        if not self._samples:
            return
        hashes = row_hashes(batch.cursor, len(batch.labels))
        for place, sample in self._samples.items():
            chosen = batch.in_space[:, place]
            known = (predicted[self._tasks[place].name], batch.labels[:, place], batch.weight[:, place])
            sample.update(hashes[chosen.numpy()], *(tensor[chosen] for tensor in known))

    def _popular(self, batch: RankingBatch) -> Tensor | None:
        if self._popularity is None:
            return None
        bags = batch.sparse[self._popularity.feature]
        scores = self._popularity.scores(bags.values().numpy(), bags.lengths().numpy())
        return torch.from_numpy(np.ascontiguousarray(scores, dtype=np.float32))

    def results(self, group: dist.ProcessGroup) -> dict[str, Any]:
        """Return the arguments of a `Measurement`, over the rows of all ranks; collective.

        Args:
            group: A group that moves CPU tensors (gloo).
        """
        found = results_over_ranks([*self._model, *self._baseline, *self._truth], group, _result_and_curve)
        num_tasks = len(self._tasks)
        tasks = []
        for place, task in enumerate(self._tasks):
            named = zip(("model", "popularity", "truth"), found[place::num_tasks], strict=True)
            entry = {"task": task.name, "kind": task.kind, "objective": task.objective, "role": task.role}
            tasks.append(entry | {name: result for name, (result, _) in named})
        if self._bootstrap is not None:
            drawn = self._bootstrap.results(group, with_draws=self._with_draws)
            for task, interval in zip(tasks, drawn, strict=True):
                task["interval"] = interval
        self._add_further(tasks, [curve for _, curve in found[:num_tasks]], group)
        means, deviations = self.gates.moments(group)
        return {"tasks": tasks, "expert_use": means, "expert_use_deviation": deviations}

    def _add_further(
        self, tasks: list[dict[str, Any]], curves: Sequence[list[CurvePoint]], group: dist.ProcessGroup
    ) -> None:
        """Add what is known of the model alone: its calibration curve, slices, XAUC and metrics within groups."""
        for task, curve in zip(tasks, curves, strict=True):
            task["calibration_curve"] = curve
        for place, sample in self._samples.items():
            of_all = sampled_figures(sample.of_all_ranks(group))
            tasks[place]["model"]["xauc"], tasks[place]["calibration_curve"] = of_all
        if self._groups is not None:
            for task, found in zip(tasks, self._groups.results(group), strict=True):
                task["model"] |= found
        if self._slices is not None:
            self._add_slices(tasks, self._slices, group)

    def _add_slices(self, tasks: list[dict[str, Any]], slices: SliceMetrics, group: dist.ProcessGroup) -> None:
        """Add the metrics of slices, with the intervals and draws that are asked for."""
        for task, found in zip(tasks, slices.results(group), strict=True):
            task["slices"] = {name: [_finite(one) for one in values] for name, values in found.items()}
        if self._bootstrap is None or not self._with_draws:
            return
        drawn = self._bootstrap.slice_results(group, slices.values())
        for task, of_slices in zip(tasks, drawn, strict=True):
            for values, intervals in zip(task["slices"].values(), of_slices, strict=True):
                for value, interval in zip(values, intervals, strict=True):
                    value["interval"] = interval


def _result_and_curve(metrics: TaskMetrics) -> tuple[dict[str, Any], list[CurvePoint]]:
    return _finite(metrics.result()), metrics.calibration_curve()


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
