"""Gate: checks of a new model before it is published.

The new model is compared with its parent on the hold-out, and the parent's metrics on the day's log with those of its
predecessors on their days. The gate reads figures alone, neither a log nor a model.
"""

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from features.figure import figure
from pipeline.config.daily import GateConfig
from pipeline.daily.ratios import ratio_apart


def check_model(
    config: GateConfig,
    before: Mapping[str, Any] | None,
    usual: Sequence[Mapping[str, Any]],
    new: Mapping[str, Any] | None,
    parent: Mapping[str, Any] | None,
) -> list[str]:
    """Compare a new model with its parent, and the day with the days before.

    All metrics are by task name, as in `TaskMetrics.result` with the task's kind.

    Args:
        config: Limits of the gate.
        before: Metrics of the parent on the day's log, before its training; None without a parent.
        usual: The same metrics of the newest entries that have them, at most `window`.
        new: Metrics of the new model on the hold-out; None without a hold-out.
        parent: Metrics of the parent on the same rows; None without a parent.

    Returns:
        One line for each finding; empty if the model may be published.
    """
    problems: list[str] = []
    for task, found in (before or {}).items():
        problems += _before(config, task, found, [entry[task] for entry in usual if task in entry])
    for task, found in (new or {}).items():
        problems += _after(config, task, found, (parent or {}).get(task))
    return problems


def quality(metrics: Mapping[str, Any]) -> float | None:
    """Return a task's main metric: AUC, R2 or accuracy, higher is better; None if it is undefined."""
    return metrics.get({"binary": "auc", "regression": "r2", "multiclass": "accuracy"}[metrics["kind"]])


def _noise(metrics: Mapping[str, Any]) -> float:
    """Return one standard error of a task's quality; for two models on the same rows it is more than three.

    For the AUC the bound sqrt(A (1 - A) / min(positives, negatives)) (Birnbaum and Klose, 1957); for R2 its asymptotic
    2 (1 - R2) sqrt(R2 / rows), with at least .01 under the root; for the accuracy the binomial one.
    """
    value, rows = quality(metrics), metrics["rows"]
    if value is None or not rows:
        return 0.0
    if metrics["kind"] == "regression":
        return 2 * (1 - value) * math.sqrt(max(value, 0.01) / rows)
    counted = min(metrics["positives"], rows - metrics["positives"]) if metrics["kind"] == "binary" else rows
    return math.sqrt(value * (1 - value) / max(counted, 1))


def _mean_error(metrics: Mapping[str, Any]) -> float:
    """Return the standard error of the logarithm of a task's mean label on its rows; 0 if it is not known."""
    rows, positives = metrics["rows"], metrics.get("positives", 0)
    if metrics["kind"] == "binary":
        return math.sqrt((1 - positives / rows) / positives) if positives else 0.0
    mean, variance = metrics.get("mean_label"), metrics.get("label_variance")
    return math.sqrt(variance / rows) / abs(mean) if mean and variance else 0.0


def is_judged(config: GateConfig, task: str, kind: str, rows: int, positives: int) -> bool:
    """Return True if a task has enough rows for its metrics to be judged.

    Args:
        config: Limits of the gate.
        task: The task's name.
        kind: Its kind.
        rows: Number of rows in its space.
        positives: Number of positive ones among them; only of a binary task.
    """
    enough = min(positives, rows - positives) if kind == "binary" else rows
    return enough >= config.limit(task, "min_positives")


def may_be_judged(config: GateConfig, task: str, kind: str, rows: int) -> bool:
    """Return True if so many rows can be enough, whatever their labels are; arguments as of `is_judged`."""
    return is_judged(config, task, kind, rows, rows // 2)


def _judged(config: GateConfig, task: str, metrics: Mapping[str, Any]) -> bool:
    return is_judged(config, task, metrics["kind"], metrics["rows"], metrics.get("positives", 0))


def _before(
    config: GateConfig, task: str, found: Mapping[str, Any], usual: Sequence[Mapping[str, Any]]
) -> Iterator[str]:
    known = [value for metrics in usual if (value := quality(metrics)) is not None and _judged(config, task, metrics)]
    value, limit = quality(found), config.limit(task, "before_drop")
    if len(known) < config.min_entries or value is None or not _judged(config, task, found):
        return
    if value < statistics.median(known) - limit - _noise(found):
        usually = figure(statistics.median(known))
        yield (
            f"task {task!r}: yesterday's model reaches {figure(value)} on this day, usual is {usually} "
            f"(daily.gate.before_drop {limit:g}): look whether the day's labels are right"
        )


def _after(config: GateConfig, task: str, new: Mapping[str, Any], parent: Mapping[str, Any] | None) -> Iterator[str]:
    if not _judged(config, task, new):
        return
    mean, calibration = new.get("mean_prediction"), new.get("calibration")
    if new["kind"] != "multiclass" and (mean is None or not math.isfinite(mean)):
        yield f"task {task!r}: the new model's predictions on the hold-out are not finite"
        return
    if parent is None:
        return
    value, old, limit = quality(new), quality(parent), config.limit(task, "drop")
    if value is not None and old is not None and value < old - limit - _noise(parent):
        yield f"task {task!r}: {figure(value)} on the hold-out, its parent {figure(old)} (daily.gate.drop {limit:g})"
    ratio, before = config.limit(task, "calibration_ratio"), parent.get("calibration")
    off, allowed = (math.inf if value is None else ratio_apart(value, 1.0) for value in (calibration, before))
    parents = "undefined" if before is None else figure(before)
    error = _mean_error(new)
    if calibration is not None and off > max(math.log(ratio) + error, allowed):
        yield (
            f"task {task!r}: calibration {figure(calibration)} on the hold-out, its parent {parents} "
            f"(daily.gate.calibration_ratio {ratio:g})"
        )
    ratio, before = config.limit(task, "shift_ratio"), parent.get("mean_prediction")
    if mean is not None and before is not None and ratio_apart(mean, before) > math.log(ratio) + error:
        yield (
            f"task {task!r}: mean prediction {figure(mean)} on the hold-out, its parent {figure(before)} "
            f"(daily.gate.shift_ratio {ratio:g})"
        )
