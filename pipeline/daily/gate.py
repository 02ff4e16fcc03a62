"""Gate: checks of a new model before it is published.

The new model is compared with its parent on the hold-out, and the parent's metrics on the day's log with those of its
predecessors on their days. A difference counts beyond its limit, its spread over the newest days, and a standard error.
The gate reads figures alone, neither a log nor a model.
"""

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from features.figure import figure
from pipeline.config.daily import GateConfig
from pipeline.daily.finding import Finding
from pipeline.daily.ratios import ratio_apart
from pipeline.daily.spread import spread
from pipeline.lineage.ledger_entry import HoldoutMetrics, Metrics

_CHANCE = 2.0  # standard errors above the quality of chance that are no knowledge
_LARGEST = 700.0  # logarithm of a ratio that is still a float


def check_model(
    config: GateConfig,
    before: Metrics | None,
    usual: Sequence[Metrics],
    new: Metrics | None,
    parent: Metrics | None,
    earlier: Sequence[HoldoutMetrics] = (),
) -> list[Finding]:
    """Compare a new model with its parent, and the day with the days before.

    Args:
        config: Limits of the gate.
        before: Metrics of the parent on the day's log, before its training; None without a parent.
        usual: The same metrics of the newest entries that have them, at most `window`.
        new: Metrics of the new model on the hold-out; None if it was not measured.
        parent: Metrics of the parent on the same rows; None without a parent.
        earlier: Metrics on the hold-out of the newest entries that have them, at most `window`.

    Returns:
        The findings; empty if the model may be published.
    """
    findings: list[Finding] = []
    for task, found in (before or {}).items():
        findings += _before(config, task, found, [entry[task] for entry in usual if task in entry])
    for task, found in (new or {}).items():
        findings += _after(config, task, found, (parent or {}).get(task), earlier)
    for name in config.slices:
        findings += _of_slices(config, name, before, usual, new, parent, earlier)
    return findings


def _of_slices(
    config: GateConfig,
    name: str,
    before: Metrics | None,
    usual: Sequence[Metrics],
    new: Metrics | None,
    parent: Metrics | None,
    earlier: Sequence[HoldoutMetrics],
) -> Iterator[Finding]:
    """Compare the slices of one name as `check_model` compares tasks."""
    past = [_slices(entry, name) for entry in usual]
    held = [HoldoutMetrics(new=_slices(entry.new, name), parent=_slices(entry.parent, name)) for entry in earlier]
    of_before, of_new, of_parent = (_slices(metrics, name) for metrics in (before, new, parent))
    tasks = {
        _called(task, name, one["value"]): task
        for metrics in (before, new)
        for task, found in (metrics or {}).items()
        for one in found.get("slices", {}).get(name, [])
    }
    findings: list[Finding] = []
    for called, task in tasks.items():
        limits = config.of_slice(name, task, called)
        if called in of_before:
            findings += _before(limits, called, of_before[called], [one[called] for one in past if called in one])
        if called in of_new:
            findings += _after(limits, called, of_new[called], of_parent.get(called), held)
    for finding in findings:
        key = finding.key.removeprefix("daily.gate.")
        yield replace(finding, own_key=f"daily.gate.slices.{name}.{key}" if finding.key else "")


def _called(task: str, name: str, value: str) -> str:
    return f"{task}, {name}={value}"


def _slices(metrics: Metrics | None, name: str) -> Metrics:
    """Return the metrics of the slices of one name, as metrics of tasks of their own."""
    return {
        _called(task, name, one["value"]): {"kind": found["kind"]} | one
        for task, found in (metrics or {}).items()
        for one in found.get("slices", {}).get(name, [])
    }


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


@dataclass(frozen=True, slots=True)
class UsualQuality:
    """Quality that yesterday's model usually has on its next day.

    Args:
        middle: Median of the newest days.
        noise: Part of a drop that chance explains.
        least: Least quality that the gate lets pass.
    """

    middle: float
    noise: float
    least: float


def usual_quality(
    config: GateConfig, task: str, found: Mapping[str, Any], usual: Sequence[Mapping[str, Any]]
) -> UsualQuality | None:
    """Return the quality that a task's metrics before training are held to; None if they are not judged.

    Args:
        config: Limits of the gate.
        task: The task's name.
        found: Its metrics before training.
        usual: The same metrics of the newest entries that have them, at most `window`.
    """
    known = [value for metrics in usual if (value := quality(metrics)) is not None and _judged(config, task, metrics)]
    value = quality(found)
    if len(known) < config.min_entries or value is None or not _judged(config, task, found):
        return None
    middle, noise = statistics.median(known), config.noise * _noise(found)
    if _is_chance(found, value) and value < min(known):
        noise = excused = 0.0
    else:
        excused = config.spread * spread(known)
    return UsualQuality(middle, noise, middle - max(config.limit(task, "before_drop"), excused) - noise)


def _before(
    config: GateConfig, task: str, found: Mapping[str, Any], usual: Sequence[Mapping[str, Any]]
) -> Iterator[Finding]:
    held_to, value = usual_quality(config, task, found, usual), quality(found)
    if held_to is not None and value is not None and value < held_to.least:
        limit = config.limit(task, "before_drop")
        text = (
            f"task {task!r}: yesterday's model reaches {figure(value)} on this day, usual is {figure(held_to.middle)} "
            f"(daily.gate.before_drop {limit:g}): look whether the day's labels are right"
        )
        yield _finding(text, task, "before_drop", held_to.middle - value - held_to.noise)


def _is_chance(metrics: Mapping[str, Any], value: float) -> bool:
    """Return True if a quality may be that of predictions that know nothing; unknown for an accuracy.

    The AUC of such predictions is 1/2, with the standard error sqrt((P + N + 1) / (12 P N)) of P positive and N
    negative rows (Mann and Whitney, 1947). Their R2 is 0 or less.
    """
    rows = metrics["rows"]
    if metrics["kind"] == "binary":
        pairs = metrics["positives"] * (rows - metrics["positives"])
        return pairs > 0 and value <= 0.5 + _CHANCE * math.sqrt((rows + 1) / (12 * pairs))
    return metrics["kind"] == "regression" and value <= _CHANCE * 2 * math.sqrt(0.01 / rows)


def _finding(text: str, task: str, key: str, needed: float) -> Finding:
    return Finding(text, f"daily.gate.{key}", f"task {task!r}", needed, f"daily.gate.tasks.{task}.{key}")


def _after(
    config: GateConfig,
    task: str,
    new: Mapping[str, Any],
    parent: Mapping[str, Any] | None,
    earlier: Sequence[HoldoutMetrics],
) -> Iterator[Finding]:
    if not _judged(config, task, new):
        return
    mean = new.get("mean_prediction")
    if new["kind"] != "multiclass" and (mean is None or not math.isfinite(mean)):
        yield Finding(f"task {task!r}: the new model's predictions on the hold-out are not finite")
        return
    if parent is None:
        return
    past = _past(config, task, earlier)
    yield from _drop(config, task, new, parent, past)
    yield from _calibration(config, task, new, parent, past)
    yield from _shift(config, task, new, parent, past)


Pairs = Sequence[tuple[Mapping[str, Any], Mapping[str, Any]]]


def _past(config: GateConfig, task: str, earlier: Sequence[HoldoutMetrics]) -> Pairs:
    """Return a task's metrics of new model and parent on the days that were judged; empty if they are too few."""
    pairs = [
        (entry.new[task], entry.parent[task])
        for entry in earlier
        if entry.new and entry.parent and task in entry.new and task in entry.parent
        if _judged(config, task, entry.new[task])
    ]
    return pairs if len(pairs) >= config.min_entries else []


def _drop(
    config: GateConfig, task: str, new: Mapping[str, Any], parent: Mapping[str, Any], past: Pairs
) -> Iterator[Finding]:
    value, old, limit = quality(new), quality(parent), config.limit(task, "drop")
    if value is None or old is None:
        return
    changes = [
        after - before
        for one, its_parent in past
        if (after := quality(one)) is not None and (before := quality(its_parent)) is not None
    ]
    noise = config.noise * _noise(parent)
    if value < old - max(limit, config.spread * spread(changes)) - noise:
        text = f"task {task!r}: {figure(value)} on the hold-out, its parent {figure(old)} (daily.gate.drop {limit:g})"
        yield _finding(text, task, "drop", old - value - noise)


def _calibration(
    config: GateConfig, task: str, new: Mapping[str, Any], parent: Mapping[str, Any], past: Pairs
) -> Iterator[Finding]:
    value, old, ratio = new.get("calibration"), parent.get("calibration"), config.limit(task, "calibration_ratio")
    if value is None:
        return
    off, allowed = ratio_apart(value, 1.0), math.inf if old is None else ratio_apart(old, 1.0)
    known = [math.log(found) for one, _ in past if (found := one.get("calibration")) is not None and found > 0]
    noise = config.noise * _mean_error(new)
    if off > max(max(math.log(ratio), config.spread * spread(known)) + noise, allowed):
        parents = "undefined" if old is None else figure(old)
        text = (
            f"task {task!r}: calibration {figure(value)} on the hold-out, its parent {parents} "
            f"(daily.gate.calibration_ratio {ratio:g})"
        )
        yield _finding(text, task, "calibration_ratio", _as_ratio(off - noise))


def _shift(
    config: GateConfig, task: str, new: Mapping[str, Any], parent: Mapping[str, Any], past: Pairs
) -> Iterator[Finding]:
    mean, old, ratio = new.get("mean_prediction"), parent.get("mean_prediction"), config.limit(task, "shift_ratio")
    if mean is None or old is None:
        return
    means = [(one.get("mean_prediction"), its_parent.get("mean_prediction")) for one, its_parent in past]
    known = [math.log(after / before) for after, before in means if after and before and after / before > 0]
    off, noise = ratio_apart(mean, old), config.noise * _mean_error(new)
    if off > max(math.log(ratio), config.spread * spread(known)) + noise:
        text = (
            f"task {task!r}: mean prediction {figure(mean)} on the hold-out, its parent {figure(old)} "
            f"(daily.gate.shift_ratio {ratio:g})"
        )
        yield _finding(text, task, "shift_ratio", _as_ratio(off - noise))


def _as_ratio(off: float) -> float:
    return math.exp(off) if off < _LARGEST else math.inf
