"""The two checks of a day: of its log before it is trained, and of the new model before it is published.

Both compare with the newest entries of the ledger, and both give their findings as lines that say what was got, what
was expected, and by which key of the config. They look at figures alone: nothing here reads a log or a model.
"""

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Self

from pydantic import Field, model_validator

from features.declaration import Declaration
from features.profile import DayProfile
from features.schema import Schema

_NOISE = 4.0  # standard errors within which a mean label says nothing


def _refuse_never(min_entries: int, window: int) -> None:
    if min_entries > window:
        raise ValueError(f"min_entries {min_entries} is above window {window}: nothing would ever be compared")


class PreflightConfig(Declaration):
    """What a day's log is held against: the median of the newest entries of the ledger.

    Args:
        success_marker: The day's folder has to hold a file `_SUCCESS`.
        window: How many of the newest entries are looked at.
        min_entries: With fewer than this, only the hard checks hold: the day is there, readable, of the declared
            columns, and has a row in every task's space.
        rows_ratio: The number of rows is at most this many times the median, and at least one over it.
        nulls: The share of rows in which a column is null differs from the median by at most this.
        label_ratio: A task's mean label is at most this many times the median, and at least one over it, beyond what
            four standard errors explain.
        unseen_ids: The share of rows whose id was on none of the days of the window is at most this much above the
            median.
    """

    success_marker: bool = False
    window: int = Field(default=7, ge=1, le=90)
    min_entries: int = Field(default=3, ge=1)
    rows_ratio: float = Field(default=1.5, gt=1)
    nulls: float = Field(default=0.05, gt=0, le=1)
    label_ratio: float = Field(default=1.5, gt=1)
    unseen_ids: float = Field(default=0.2, gt=0, le=1)

    @model_validator(mode="after")
    def _check(self) -> Self:
        _refuse_never(self.min_entries, self.window)
        return self


class GateConfig(Declaration):
    """What a new model is held against; the quality of a task is its AUC, R2 or accuracy: higher is better.

    Drops count beyond one standard error of the quality, which follows from the number of rows.

    Args:
        window: How many of the newest entries are looked at.
        min_entries: With fewer, what yesterday's model reached on today's log is not compared with them.
        before_drop: Yesterday's model, on today's log, is at most this much worse than the median of what its
            predecessors reached on their next day.
        drop: The new model is at most this much worse than its parent on the hold-out.
        calibration_ratio: The new model's calibration on the hold-out (sum of predictions over sum of labels) is
            within this ratio of 1, or nearer to 1 than its parent's.
        shift_ratio: The mean prediction on the hold-out is within this ratio of the parent's.
        min_positives: A task with fewer positive, or fewer negative, rows (or rows, if it is no binary task) is not
            judged.
        tasks: By task name: other limits for that task.
    """

    window: int = Field(default=7, ge=1, le=90)
    min_entries: int = Field(default=3, ge=1)
    before_drop: float = Field(default=0.1, gt=0)
    drop: float = Field(default=0.02, gt=0)
    calibration_ratio: float = Field(default=1.5, gt=1)
    shift_ratio: float = Field(default=1.5, gt=1)
    min_positives: int = Field(default=50, ge=1)
    tasks: dict[str, "TaskGateConfig"] = {}

    @model_validator(mode="after")
    def _check(self) -> Self:
        _refuse_never(self.min_entries, self.window)
        return self

    def limit(self, task: str, key: str) -> float:
        """A limit, as it holds for a task."""
        own = getattr(self.tasks.get(task), key, None)
        return getattr(self, key) if own is None else own


class TaskGateConfig(Declaration):
    """A task's own limits; what is absent is as for all.

    Args:
        before_drop: As in `daily.gate`.
        drop: As in `daily.gate`.
        calibration_ratio: As in `daily.gate`.
        shift_ratio: As in `daily.gate`.
        min_positives: As in `daily.gate`.
    """

    before_drop: float | None = Field(default=None, gt=0)
    drop: float | None = Field(default=None, gt=0)
    calibration_ratio: float | None = Field(default=None, gt=1)
    shift_ratio: float | None = Field(default=None, gt=1)
    min_positives: int | None = Field(default=None, ge=1)


class OnRefusalConfig(Declaration):
    """Whom to tell when a day is refused; trying is all that is done, and is logged.

    Args:
        webhook: A url that is sent a JSON object by POST: project, line, day, step, text. It is in no checkpoint or
            entry, since such urls are secrets.
    """

    webhook: str | None = Field(default=None, exclude=True, repr=False, pattern=r"^https?://")


def check_profile(
    config: PreflightConfig, schema: Schema, today: DayProfile, earlier: Sequence[DayProfile]
) -> list[str]:
    """Hold a day's figures against those of earlier days.

    Args:
        config: How far off is too far.
        schema: The declared tasks.
        today: The day's figures.
        earlier: Of the newest entries that have some, at most `window`.

    Returns:
        One line for each thing that is wrong; empty when the day may be trained.
    """
    problems = list(_empty_spaces(schema, today))
    if len(earlier) >= config.min_entries:
        problems += [*_rows(config, today, earlier), *_nulls(config, today, earlier)]
        problems += [*_labels(config, today, earlier), *_unseen(config, today, earlier)]
    return problems


def _empty_spaces(schema: Schema, today: DayProfile) -> Iterator[str]:
    for task in schema.tasks:
        if task.name in today.labels and not today.labels[task.name][0]:
            yield f"no row is in the space of task {task.name!r} ({task.label}): look at its columns"


def _rows(config: PreflightConfig, today: DayProfile, earlier: Sequence[DayProfile]) -> Iterator[str]:
    usual = statistics.median(profile.rows for profile in earlier)
    if not usual / config.rows_ratio <= today.rows <= usual * config.rows_ratio:
        yield f"{today.rows:,} rows, usual are {usual:,.0f} (daily.preflight.rows_ratio {config.rows_ratio:g})"


def _nulls(config: PreflightConfig, today: DayProfile, earlier: Sequence[DayProfile]) -> Iterator[str]:
    for column, count in today.nulls.items():
        shares = [profile.nulls[column] / profile.rows for profile in earlier if column in profile.nulls]
        if shares and abs(count / today.rows - statistics.median(shares)) > config.nulls:
            yield (
                f"column {column!r} is null in {count / today.rows:.1%} of the rows, usual is "
                f"{statistics.median(shares):.1%} (daily.preflight.nulls {config.nulls:g})"
            )


def _labels(config: PreflightConfig, today: DayProfile, earlier: Sequence[DayProfile]) -> Iterator[str]:
    for task in today.labels:
        found = today.label_mean(task)
        means = [known[0] for profile in earlier if (known := profile.label_mean(task)) is not None]
        if found is None or not means:
            continue
        (mean, error), usual = found, statistics.median(means)
        near = abs(mean - usual) <= _NOISE * error
        if not near and not _within(mean, usual, config.label_ratio):
            yield (
                f"task {task!r} has a mean label of {mean:.4g}, usual is {usual:.4g} (daily.preflight.label_ratio "
                f"{config.label_ratio:g})"
            )


def _unseen(config: PreflightConfig, today: DayProfile, earlier: Sequence[DayProfile]) -> Iterator[str]:
    newest_first = list(earlier)
    for name, sketch in today.ids.items():
        days = [profile.ids[name] for profile in newest_first if name in profile.ids]
        share = sketch.unseen(days)
        usual = [found for place, day in enumerate(days) if (found := day.unseen(days[place + 1 :])) is not None]
        if share is not None and usual and share > statistics.median(usual) + config.unseen_ids:
            yield (
                f"{share:.1%} of the rows have an id of {name!r} that was on none of the last {len(days)} days, usual "
                f"is {statistics.median(usual):.1%} (daily.preflight.unseen_ids {config.unseen_ids:g})"
            )


def check_model(
    config: GateConfig,
    before: Mapping[str, Any] | None,
    usual: Sequence[Mapping[str, Any]],
    new: Mapping[str, Any] | None,
    parent: Mapping[str, Any] | None,
) -> list[str]:
    """Hold a new model against its parent, and the day against the days before.

    All are metrics by task name, as `TaskMetrics.result` gives them with the task's kind.

    Args:
        config: How far off is too far.
        before: Of the parent on the day's log, before it was trained; None without a parent.
        usual: The same of the newest entries that have it, at most `window`.
        new: Of the new model on the hold-out; None without a hold-out.
        parent: Of the parent on the same rows; None without a parent.

    Returns:
        One line for each thing that is wrong; empty when the model may be published.
    """
    problems: list[str] = []
    for task, found in (before or {}).items():
        problems += _before(config, task, found, [entry[task] for entry in usual if task in entry])
    for task, found in (new or {}).items():
        problems += _after(config, task, found, (parent or {}).get(task))
    return problems


def quality(metrics: Mapping[str, Any]) -> float | None:
    """What a task is judged by: AUC, R2 or accuracy, of which more is better; None where it is not defined."""
    return metrics.get({"binary": "auc", "regression": "r2", "multiclass": "accuracy"}[metrics["kind"]])


def _noise(metrics: Mapping[str, Any]) -> float:
    """What chance does to a task's quality: one standard error, for two models on the same rows more than three.

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


def _judged(config: GateConfig, task: str, metrics: Mapping[str, Any]) -> bool:
    """Whether a task has enough rows for its metrics to say something."""
    rows, positives = metrics["rows"], metrics.get("positives", 0)
    enough = min(positives, rows - positives) if metrics["kind"] == "binary" else rows
    return enough >= config.limit(task, "min_positives")


def _before(
    config: GateConfig, task: str, found: Mapping[str, Any], usual: Sequence[Mapping[str, Any]]
) -> Iterator[str]:
    known = [value for metrics in usual if (value := quality(metrics)) is not None and _judged(config, task, metrics)]
    value, limit = quality(found), config.limit(task, "before_drop")
    if len(known) < config.min_entries or value is None or not _judged(config, task, found):
        return
    if value < statistics.median(known) - limit - _noise(found):
        yield (
            f"task {task!r}: yesterday's model reaches {value:.4f} on this day, usual is {statistics.median(known):.4f}"
            f" (daily.gate.before_drop {limit:g}): look whether the day's labels are right"
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
        yield f"task {task!r}: {value:.4f} on the hold-out, its parent {old:.4f} (daily.gate.drop {limit:g})"
    ratio, before = config.limit(task, "calibration_ratio"), parent.get("calibration")
    off, allowed = (math.inf if value is None else _apart(value, 1.0) for value in (calibration, before))
    if calibration is not None and off > max(math.log(ratio), allowed):
        yield (
            f"task {task!r}: calibration {calibration:.3f} on the hold-out, its parent {parent['calibration']} "
            f"(daily.gate.calibration_ratio {ratio:g})"
        )
    ratio, before = config.limit(task, "shift_ratio"), parent.get("mean_prediction")
    if mean is not None and before is not None and not _within(mean, before, ratio):
        yield (
            f"task {task!r}: mean prediction {mean:.4g} on the hold-out, its parent {before:.4g} "
            f"(daily.gate.shift_ratio {ratio:g})"
        )


def _within(value: float, usual: float, ratio: float) -> bool:
    return _apart(value, usual) <= math.log(ratio)


def _apart(value: float, usual: float) -> float:
    """How far apart two numbers of one sign are, as the logarithm of their ratio; infinite where they have no ratio."""
    if value == usual:
        return 0.0
    return abs(math.log(value / usual)) if usual and value / usual > 0 else math.inf
