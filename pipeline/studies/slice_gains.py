"""Gains of a comparison per slice: those of each model and task over the single-task model, on the slice's rows."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.evaluation.table import metric_of
from pipeline.studies.candidates import SINGLE
from pipeline.studies.comparison import ComparisonPlan, Outcome
from pipeline.studies.gains import Spread, gain
from pipeline.studies.verdicts import beyond_chance

_Figures = Mapping[str, Any]
_Key = tuple[str, str, str]  # declared slice, value, task


@dataclass(frozen=True, slots=True, kw_only=True)
class SliceGains:
    """Gains on the rows with one value of a declared slice, for one task.

    Args:
        value: Value of the slice.
        task: Name of the task.
        num_rows: Rows in the task's space.
        num_positives: Positive rows of a binary task; None for another one.
        is_judged: True if the slice has enough rows.
        gains: Gain over the seeds, by model.
        beyond_chance: Models whose gain or loss is beyond chance; none if the slice is not judged.
    """

    value: str
    task: str
    num_rows: int
    num_positives: int | None
    is_judged: bool
    gains: dict[str, Spread]
    beyond_chance: frozenset[str]


def slice_gains(outcomes: Sequence[Outcome], plan: ComparisonPlan) -> dict[str, list[SliceGains]]:
    """Return the gains by the name of each declared slice, task by task and value by value.

    Args:
        outcomes: All outcomes of the comparison.
        plan: Plan of the comparison, with the limits of its judgements.

    Returns:
        The gains; empty without slices, without a single-task model, and without another model.
    """
    figures = [(outcome, _figures(outcome)) for outcome in outcomes]
    alone = {outcome.seed: found for outcome, found in figures if outcome.model == SINGLE}
    if not alone:
        return {}
    first: dict[_Key, tuple[str, _Figures]] = {}
    spreads: dict[_Key, dict[str, list[float | None]]] = {}
    for outcome, found in figures:
        for key, (kind, one) in found.items() if outcome.model != SINGLE else ():
            _, other = alone[outcome.seed].get(key, (kind, {}))
            metric = metric_of(kind)
            of_model = spreads.setdefault(key, {}).setdefault(outcome.model, [])
            of_model.append(gain(one.get(metric), other.get(metric), metric))
            first.setdefault(key, (kind, one))
    gains = {key: {model: Spread.of(values) for model, values in found.items()} for key, found in spreads.items()}
    return _judged(first, gains, plan)


def _figures(outcome: Outcome) -> dict[_Key, tuple[str, _Figures]]:
    """Return kind of the task and metrics by slice, value and task."""
    return {
        (name, one["value"], task["task"]): (task["kind"], one)
        for task in outcome.tasks
        for name, values in task.get("slices", {}).items()
        for one in values
    }


def _judged(
    first: Mapping[_Key, tuple[str, _Figures]], gains: Mapping[_Key, dict[str, Spread]], plan: ComparisonPlan
) -> dict[str, list[SliceGains]]:
    """Judge the slices with enough rows; the intervals of a task's judged values in a table hold together."""
    enough = {key: _least(kind, one) >= plan.min_positives for key, (kind, one) in first.items()}
    num_judged: dict[tuple[str, str], int] = {}
    for key, found in gains.items():
        place = key[0], key[2]
        num_judged[place] = num_judged.get(place, 0) + len(found) * enough[key]
    result: dict[str, list[SliceGains]] = {}
    for key, (kind, one) in first.items():
        name, value, task = key
        beyond = [
            model
            for model, found in gains[key].items()
            if enough[key] and beyond_chance(found, plan.least_gain, num_judged[name, task])
        ]
        slice_of = SliceGains(
            value=value,
            task=task,
            num_rows=one["rows"],
            num_positives=one["positives"] if kind == "binary" else None,
            is_judged=enough[key],
            gains=gains[key],
            beyond_chance=frozenset(beyond),
        )
        result.setdefault(name, []).append(slice_of)
    return result


def _least(kind: str, figures: _Figures) -> int:
    """Return the number of rows of the rarer label of a binary task; the number of rows of another one."""
    if kind != "binary":
        return figures["rows"]
    return min(figures["positives"], figures["rows"] - figures["positives"])
