"""Metrics of a task in its own sample space: added up over batches, parts and ranks.

Only rows in the space count; values outside it (NaN labels, padding) cannot change a bit. A slice of the rows, a day or
a device, is another `TaskMetrics` whose `in_space` is the intersection of space and slice.
"""

import math
from collections.abc import Iterable, Mapping

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

from features.figure import figure
from features.tasks import TaskConfig
from pipeline.evaluation.auc import AucSketch
from pipeline.evaluation.calibration_curve import CurvePoint, calibration_curve

METRICS_VERSION = 3
"""Version of the definitions of all metrics and of their resamples: raise it when one changes, and a backfill measures
again."""

_COUNTED = ("rows", "positives")
_VALUED = ("weight", "prediction", "label", "squared_label", "squared_error", "absolute_error")
_SUMS = {
    "binary": (*_COUNTED, *_VALUED, "log_loss"),
    "regression": (*_COUNTED, *_VALUED),
    "multiclass": (*_COUNTED, "weight", "log_loss", "correct"),
}
_ROUNDING = 1e-12  # rounding of equal float32 labels leaves a variance below this share of the mean square
_DISAGREEMENT = 0.01  # between predictions and scores: more than the rounding of bfloat16
_CAUSES = {
    "predictions": "the model has diverged, or overflows",
    "scores": "the model has diverged (a baseline's probabilities of 0 and 1 need torch.logit's eps)",
    "labels": "a row without a label belongs outside the space",
    "weights": "look at the task's weight expression",
}


class TaskMetrics:
    """Metrics of one task over its sample space.

    Args:
        task: The task; its name is in errors, its kind determines the metrics.
        capacity: Number of bins of the AUC's sketch.
    """

    def __init__(self, task: TaskConfig, capacity: int = 2**16) -> None:
        self.task = task
        self._sums = dict.fromkeys(_SUMS[task.kind], 0.0)
        self._ranking = AucSketch(capacity)

    def update(
        self,
        predictions: Float[Tensor, "batch *class"],
        scores: Float[Tensor, "batch *class"],
        labels: Float[Tensor, " batch"],
        in_space: Bool[Tensor, " batch"],
        weight: Float[Tensor, " batch"],
    ) -> None:
        """Add a batch; tensors on a GPU are copied to the host, so copy those of all tasks at once before.

        Args:
            predictions: In the label's own unit: probabilities (of each class, shape (B, C), for multiclass tasks).
            scores: Raw outputs of the model, of the same shape: logits for binary and multiclass tasks. Scores rank
                the rows and give the log loss; regression ignores them. A baseline's scores are `torch.logit` of its
                probabilities.
            labels: In the label's own unit, the class index for multiclass tasks.
            in_space: Mask of the rows in the task's sample space; other rows are ignored.
            weight: Weights of at least 0.

        Raises:
            ValueError: A value in the space is NaN, infinite or a negative weight, or predictions do not match the
                scores.
        """
        chosen = in_space.detach().cpu()
        named = {"predictions": predictions, "scores": scores, "labels": labels, "weights": weight}
        values = {name: tensor.detach().to("cpu", torch.float64)[chosen] for name, tensor in named.items()}
        if len(values["labels"]) == 0:
            return
        self._refuse_bad(values)
        predictions, scores, labels, weight = values.values()
        terms = {"weight": torch.ones_like(labels)}
        if self.task.kind == "multiclass":
            terms |= _class_terms(predictions, scores, labels)
        else:
            terms |= _value_terms(predictions, labels)
        if self.task.kind == "binary":
            terms["log_loss"] = F.softplus(scores) - labels * scores
            self._ranking.update(scores, labels, weight)
        self._sums["rows"] += len(labels)
        self._sums["positives"] += int((labels > 0).sum())
        sums = (torch.stack(list(terms.values())) * weight).sum(1).tolist()
        for name, value in zip(terms, sums, strict=True):
            self._sums[name] += value

    def merge(self, other: "TaskMetrics") -> None:
        """Add the rows of another part of the same task, which stays as it is."""
        for name, value in other._sums.items():
            self._sums[name] += value
        self._ranking.merge(other._ranking)

    def state(self) -> Float[Tensor, " value"]:
        """Return the state as one float64 tensor: the sums, then the ranking."""
        sums = torch.tensor(list(self._sums.values()), dtype=torch.float64)
        return torch.cat([sums, self._ranking.state().flatten()])

    @classmethod
    def from_state(cls, task: TaskConfig, state: Float[Tensor, " value"]) -> "TaskMetrics":
        """Return the metrics with a state."""
        metrics = cls(task)
        num_sums = len(metrics._sums)
        metrics._sums = dict(zip(metrics._sums, state[:num_sums].tolist(), strict=True))
        metrics._ranking = AucSketch.from_state(state[num_sums:].reshape(3, -1))
        return metrics

    def merged(self, states: Iterable[Float[Tensor, " value"]]) -> "TaskMetrics":
        """Return metrics of the same task with the rows of the states alone, added in their order."""
        whole = TaskMetrics(self.task)
        for state in states:
            whole.merge(TaskMetrics.from_state(self.task, state))
        return whole

    def result(self) -> dict[str, float | int | None]:
        """Return the metrics by name; None for an undefined one.

        All kinds have rows (a count) and weight. Binary: positives (a count), auc, log_loss, normalised_entropy (log
        loss over the entropy of the mean label; He et al., "Practical Lessons from Predicting Clicks on Ads at
        Facebook", ADKDD 2014, equation 1), mse, mae, calibration (sum of predictions over sum of labels),
        mean_prediction, mean_label, label_variance. Regression: mse, mae, r2 and the last four. Multiclass: log_loss,
        accuracy. Means are weighted.
        """
        sums = self._sums
        result: dict[str, float | int | None] = {"rows": int(sums["rows"]), "weight": sums["weight"]}
        if self.task.kind == "multiclass":
            means = {"log_loss": "log_loss", "accuracy": "correct"}
            return result | {name: _ratio(sums[key], sums["weight"]) for name, key in means.items()}
        if self.task.kind == "binary":
            log_loss = _ratio(sums["log_loss"], sums["weight"])
            result |= {"positives": int(sums["positives"]), "auc": self._ranking.auc(), "log_loss": log_loss}
            result["normalised_entropy"] = _ratio(log_loss, _entropy(_ratio(sums["label"], sums["weight"])))
        result |= _value_metrics(sums)
        if self.task.kind == "regression":
            unexplained = _ratio(result["mse"], result["label_variance"])
            result["r2"] = None if unexplained is None else 1 - unexplained
        return result

    def calibration_curve(self) -> list[CurvePoint]:
        """Return the calibration curve of a binary task; none of another kind.

        It comes from the bins of the AUC's sketch: exact up to their number of distinct scores, and beyond with the
        score in the middle of a bin for those of all its rows.
        """
        if self.task.kind != "binary":
            return []
        scores, (positive, negative) = self._ranking.bins()
        weights = positive + negative
        predictions = torch.from_numpy(scores.astype(np.float64)).sigmoid().numpy()
        return calibration_curve(predictions, positive / np.where(weights > 0, weights, 1), weights)

    def _refuse_bad(self, values: Mapping[str, Tensor]) -> None:
        """Check values in the space, by name; an error names the task."""
        task, num_rows = self.task, len(values["labels"])
        for name, value in values.items():
            num_bad = int((~value.isfinite()).sum())
            if num_bad:
                raise ValueError(
                    f"task {task.name!r}: {num_bad:,} of the {name} of {num_rows:,} rows in its sample space are NaN "
                    f"or infinite: {_CAUSES[name]}"
                )
        if (values["weights"] < 0).any():
            least = figure(float(values["weights"].min()))
            raise ValueError(f"task {task.name!r}: a weight is {least}: declare weights of at least 0")
        if task.kind == "regression":
            return
        scores = values["scores"]
        expected = scores.sigmoid() if task.kind == "binary" else scores.softmax(1)
        apart = float((values["predictions"] - expected).abs().max())
        if apart > _DISAGREEMENT:
            raise ValueError(
                f"task {task.name!r}: predictions and the probabilities of the scores are up to {figure(apart)} apart: "
                "give logits as scores (torch.logit of a baseline's probabilities)"
            )


def _value_terms(predictions: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """Return the summed terms of labels that are numbers: each of shape (B,)."""
    error = predictions - labels
    return {
        "prediction": predictions,
        "label": labels,
        "squared_label": labels.square(),
        "squared_error": error.square(),
        "absolute_error": error.abs(),
    }


def _class_terms(predictions: Tensor, scores: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """Return the summed terms of labels that are classes: each of shape (B,)."""
    classes = labels.to(torch.int64)
    return {
        "log_loss": F.cross_entropy(scores, classes, reduction="none"),
        "correct": (predictions.argmax(1) == classes).to(torch.float64),
    }


def _value_metrics(sums: Mapping[str, float]) -> dict[str, float | int | None]:
    weight = sums["weight"]
    mean_square, mean = _ratio(sums["squared_label"], weight), _ratio(sums["label"], weight)
    variance = None
    if mean_square is not None and mean is not None:
        variance = mean_square - mean * mean
        variance = variance if variance > _ROUNDING * mean_square else 0.0
    return {
        "mse": _ratio(sums["squared_error"], weight),
        "mae": _ratio(sums["absolute_error"], weight),
        "calibration": _ratio(sums["prediction"], sums["label"]),
        "mean_prediction": _ratio(sums["prediction"], weight),
        "mean_label": mean,
        "label_variance": variance,
    }


def _entropy(mean_label: float | None) -> float | None:
    """Return the entropy of a coin with this probability, in nats; None if there is one class only."""
    if mean_label is None or not 0 < mean_label < 1:
        return None
    return -mean_label * math.log(mean_label) - (1 - mean_label) * math.log1p(-mean_label)


def _ratio(numerator: float | None, denominator: float | None) -> float | None:
    return None if numerator is None or not denominator else numerator / denominator
