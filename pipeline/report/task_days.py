"""Figures of each task on each day of a line, with the limits that the gate holds them to."""

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.config.daily import GateConfig
from pipeline.daily.gate import quality, usual_quality
from pipeline.lineage.ledger_entry import LedgerEntry, Metrics
from pipeline.report.line_records import LineRecords

QUALITY = {"binary": "AUC", "regression": "R²", "multiclass": "accuracy"}
"""Names of the quality of a task, by kind."""


@dataclass(frozen=True, slots=True)
class ReportedTask:
    """Task of a line.

    Args:
        name: Its name.
        kind: Its kind.
        objective: Group of tasks that it belongs to; of a task that the configuration no longer has, `other`.
    """

    name: str
    kind: str
    objective: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskDay:
    """Figures of a task on a day; None where one is not known.

    Args:
        day: ISO date.
        task: The task.
        quality: Quality of yesterday's model on this day, before training on it.
        least: Least quality that the gate lets pass.
        calibration: Sum of yesterday's model's predictions over the sum of labels, on this day.
        change: Quality of the new model on the hold-out less its parent's.
        held_out_calibration: Calibration of the new model on the hold-out.
        loss_weight: Weight of the task in the loss.
    """

    day: str
    task: str
    quality: float | None
    least: float | None
    calibration: float | None
    change: float | None
    held_out_calibration: float | None
    loss_weight: float | None

    @property
    def is_low(self) -> bool:
        """True if the quality is below the least that the gate lets pass."""
        return self.quality is not None and self.least is not None and self.quality < self.least


def reported_tasks(records: LineRecords) -> list[ReportedTask]:
    """Return the tasks of a line: those of the configuration, then those that only earlier entries have."""
    declared = {
        task.name: ReportedTask(task.name, task.kind, task.objective) for task in records.config.log_schema.tasks
    }
    kinds: dict[str, str] = {}
    for entry in records.entries:
        for metrics in _all_metrics(entry):
            kinds |= {task: found["kind"] for task, found in metrics.items()}
        kinds |= {task: kinds.get(task, "binary") for task in (*entry.rows_in_space, *entry.loss_weights)}
    gone = [ReportedTask(task, kind, "other") for task, kind in kinds.items() if task not in declared]
    return [*declared.values(), *gone]


def task_days(records: LineRecords, tasks: Sequence[ReportedTask]) -> list[TaskDay]:
    """Return the figures of all tasks, day by day."""
    gate, found = records.config.daily.gate, []
    newest: deque[Metrics] = deque((one.before for one in records.earlier if one.before), maxlen=gate.window)
    for entry in records.entries:
        usual = list(newest)[::-1]
        found += [_task_day(gate, entry, task.name, usual) for task in tasks if _has(entry, task.name)]
        if entry.before:
            newest.append(entry.before)
    return found


def calibration_points(metrics: Mapping[str, Any]) -> list[dict[str, float]]:
    """Return the calibration curve of a task's metrics: mean prediction, mean label and rows of each bin."""
    curve = metrics.get("calibration_curve") or []
    known = [one for one in curve if None not in (one.get("mean_prediction"), one.get("mean_label"))]
    return [
        {key: one[key] for key in ("mean_prediction", "mean_label")} | {"num_rows": one.get("rows", 0)} for one in known
    ]


def objectives(tasks: Sequence[ReportedTask]) -> dict[str, list[ReportedTask]]:
    """Group tasks by objective, in the order of the configuration."""
    groups: dict[str, list[ReportedTask]] = {}
    for task in tasks:
        groups.setdefault(task.objective, []).append(task)
    return groups


def _all_metrics(entry: LedgerEntry) -> Iterator[Metrics]:
    yield entry.before or {}
    if entry.holdout is not None:
        yield entry.holdout.new or {}


def _has(entry: LedgerEntry, task: str) -> bool:
    return any(task in metrics for metrics in _all_metrics(entry)) or task in entry.loss_weights


def _task_day(gate: GateConfig, entry: LedgerEntry, task: str, usual: Sequence[Metrics]) -> TaskDay:
    before = (entry.before or {}).get(task)
    held = entry.holdout
    new, parent = ((held.new or {}).get(task), (held.parent or {}).get(task)) if held else (None, None)
    held_to = usual_quality(gate, task, before, [one[task] for one in usual if task in one]) if before else None
    return TaskDay(
        day=entry.day,
        task=task,
        quality=quality(before) if before else None,
        least=held_to.least if held_to else None,
        calibration=(before or {}).get("calibration"),
        change=_difference(quality(new) if new else None, quality(parent) if parent else None),
        held_out_calibration=(new or {}).get("calibration"),
        loss_weight=entry.loss_weights.get(task),
    )


def _difference(one: float | None, other: float | None) -> float | None:
    return None if one is None or other is None else one - other
