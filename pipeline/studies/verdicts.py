"""Verdict on every task of a comparison: which models gain over training it alone, and which lose, beyond chance."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.studies.gains import ModelRow, Spread

_CONFIDENCE = 0.95


@dataclass(frozen=True, slots=True)
class _Judged:
    """Gain of a model on a task, with the half-width of its interval; infinite for one seed."""

    model: str
    mean: float
    half: float

    def __str__(self) -> str:
        return f"{self.model} {self.mean:+.4f}" + (f" ± {self.half:.4f}" if math.isfinite(self.half) else "")


def verdicts(rows: Sequence[ModelRow], least_gain: float) -> dict[str, str]:
    """Return a verdict for each task; empty without a single-task model.

    A model gains or loses if the interval of its mean gain over the seeds excludes 0, and the gain has the least size.
    The intervals are Student's t, all of them together at 95 %: Bonferroni's correction for the number of models, since
    the best of many is picked by chance too (Dunn, "Multiple Comparisons among Means", JASA 1961).

    Args:
        rows: The models.
        least_gain: Smallest gain that is worth the name, in the unit of the metric.
    """
    shared = [row for row in rows if row.gains is not None]
    return {task: _verdict(task, shared, least_gain) for task in (shared[0].metrics if shared else ())}


def _verdict(task: str, rows: Sequence[ModelRow], least_gain: float) -> str:
    judged = [_judge(row.model, row.gains[task], len(rows)) for row in rows if row.gains]
    known = [one for one in judged if one is not None]
    if not known:
        return f"the metric of {task} is not defined on these days: measure more of them"
    known.sort(key=lambda one: -one.mean)
    once = [one for one in known if not math.isfinite(one.half)]
    known = [one for one in known if math.isfinite(one.half)]
    if not known:
        return f"{task}: {_list(once)}; one seed says nothing of the spread: ask for 3"
    gain = [one for one in known if one.mean - one.half > 0 and one.mean >= least_gain]
    lose = [one for one in reversed(known) if one.mean + one.half < 0 and one.mean <= -least_gain]
    said = [f"{_list(gain)} gain over training {task} alone"] if gain else []
    said += [f"{_list(lose)} lose against training {task} alone"] if lose else []
    if not said:
        said = [f"no model differs from training {task} alone by more than chance and {least_gain:g} ({_list(known)})"]
    elif len(lose) == len(known) and not once:
        said.append("train it alone")
    said += [f"{_list(once)} in one seed, which says nothing of the spread"] if once else []
    return f"{task}: {'; '.join(said)}"


def beyond_chance(gain: Spread, least_gain: float, num_judged: int) -> bool:
    """Return True if a gain or a loss is beyond chance and has the least size, as a verdict counts it.

    Args:
        gain: Gain over the seeds.
        least_gain: Smallest gain that is worth the name, in the unit of the metric.
        num_judged: Number of gains whose intervals hold together.
    """
    found = _judge("", gain, num_judged)
    return found is not None and abs(found.mean) > found.half and abs(found.mean) >= least_gain


def _list(judged: Sequence[_Judged]) -> str:
    return ", ".join(map(str, judged))


def _judge(model: str, gain: Spread, num_models: int) -> _Judged | None:
    if gain.mean is None:
        return None
    seeds = sum(value is not None for value in gain.values)
    if gain.deviation is None:
        return _Judged(model, gain.mean, math.inf)
    from scipy.stats import t  # here: a command that compares nothing does not need half a second for it

    tail = (1 - _CONFIDENCE) / 2 / num_models
    return _Judged(model, gain.mean, float(t.ppf(1 - tail, seeds - 1)) * gain.deviation / math.sqrt(seeds))
