"""Daily training against training from scratch, on KuaiRand: next-day metrics and trainer-seconds of both."""

import statistics
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from features.kuairand.partitions import import_kuairand
from pipeline.cluster.session import ray_session
from pipeline.config.load import load_config
from pipeline.config.project import Config
from pipeline.daily.accepted import Accepted
from pipeline.daily.gate import quality
from pipeline.daily.ray_work import RayWork
from pipeline.daily.run_days import run_days
from pipeline.evaluation.evaluate import evaluate
from pipeline.lineage.day_entry import parts_of_run
from pipeline.lineage.ledger import Ledger
from pipeline.lineage.line import Line
from pipeline.log_passes.statistics import fit_statistics
from pipeline.trainer.train_line import train

_SOURCE = Path(__file__).parents[2] / "shared/data/kuairand-pure"
_CONFIG = Path(__file__).parents[1] / "jobs/configs/kuairand.yaml"
_SEEDS = (1, 2, 3)
_FITTED = 3  # number of days that the statistics cover
_PASSES = 2
_EVERY = 3  # a model from scratch is trained for each so manieth of the next days
_BEYOND = "a benchmark takes all days"

Qualities = dict[str, float | None]


def run(quick: bool) -> dict[str, Any]:
    """Train all days in order, and for some next days models from scratch on all days before them.

    One pass from scratch over the same days in the same order gives the daily job's model, to the bit. It is trained
    for the last day only, as proof; its cost for every day follows from the daily job's seconds. Two passes are
    possible from scratch only.

    Args:
        quick: One seed, and two of the next days.
    """
    if not _SOURCE.is_dir():
        return {"skipped": "the log is not there; it is not part of the project"}
    seeds = []
    with tempfile.TemporaryDirectory() as folder:
        days = list(import_kuairand(str(_SOURCE), f"{folder}/logs").rows)
        measured = days[-1:0:-_EVERY][::-1]
        for seed in _SEEDS[:1] if quick else _SEEDS:
            config = load_config(_CONFIG, [f"root={folder}/{seed}", f"seed={seed}", f"logs.path={folder}/logs"])
            with ray_session(config):
                seeds.append(_one_seed(config, days, measured[-2:] if quick else measured))
    return _summed_up(seeds)


def _one_seed(config: Config, days: list[str], measured: Sequence[str]) -> dict[str, Any]:
    """Return qualities by day and task of both ways, and their trainer-seconds."""
    entries = _daily(config.model_copy(update={"line": "daily"}), days)
    daily = {day: _qualities(entry["before"].items()) for day, entry in entries.items() if entry["before"]}
    seconds = {day: entry["train_seconds"] for day, entry in entries.items()}
    once, once_seconds = _from_scratch(config, days[:-1], 1)
    found = {day: _from_scratch(config, days[: days.index(day)], _PASSES) for day in measured}
    return {
        "daily": daily,
        "scratch": {day: qualities for day, (qualities, _) in found.items()},
        "refused": {day: said for day, entry in entries.items() if (said := _problems(entry))},
        "one pass from scratch is the same model": once == daily[days[-1]],
        "trainer-seconds over the daily job's": {
            "one pass, every next day": sum(_before(seconds, day) for day in days[1:]) / _before(seconds, days[-1]),
            "one pass, the last day as measured": once_seconds / _before(seconds, days[-1]),
            f"{_PASSES} passes, for the days measured": sum(spent for _, spent in found.values())
            / sum(seconds[day] for day in measured),
        },
    }


def _before(seconds: dict[str, float], day: str) -> float:
    return sum(spent for other, spent in seconds.items() if other < day)


def _daily(config: Config, days: list[str]) -> dict[str, dict[str, Any]]:
    """Train each day by the daily job; return its ledger entries by day."""
    line = Line.of(config.root, config.line)
    fit_statistics(config, days[:_FITTED])
    for day in days:
        with ExitStack() as stack:
            run_days(config, line, RayWork(config, line, stack), [day], 1, Accepted(anomaly=_BEYOND, gate=_BEYOND))
    return {entry.day: entry.model_dump(by_alias=True) for entry in reversed(list(Ledger(line).chain()))}


def _problems(entry: dict[str, Any]) -> list[str]:
    """Return the reasons for which the daily job would have refused a day."""
    return [*entry["preflight"]["problems"], *entry["gate"]["problems"]]


def _from_scratch(config: Config, before: Sequence[str], passes: int) -> tuple[Qualities, float]:
    """Return qualities on the next day, and trainer-seconds, of a model on all days before it."""
    scratch = config.model_copy(update={"line": f"scratch-{passes}-{before[-1]}"})
    line = Line.of(scratch.root, scratch.line)
    fit_statistics(scratch, before[:_FITTED])
    trained = train(scratch, before, passes)
    manifest = line.read_manifest(trained["checkpoint"])
    assert manifest is not None
    seconds = sum(part.seconds for part in parts_of_run(line, manifest))
    later = sorted(folder.name[3:] for folder in Path(config.logs.path).glob("dt=*") if folder.name[3:] > before[-1])
    tasks = evaluate(scratch, later[:1], trained["checkpoint"], [])["tasks"]
    return _qualities((task["task"], task["model"] | {"kind": task["kind"]}) for task in tasks), seconds


def _qualities(tasks: Any) -> Qualities:
    return {name: quality(metrics) for name, metrics in tasks}


def _summed_up(seeds: list[dict[str, Any]]) -> dict[str, Any]:
    """Return per task the mean over next days: of all, and of those for which both ways were trained; and the costs."""
    tasks, measured = list(next(iter(seeds[0]["daily"].values()))), list(seeds[0]["scratch"])
    table, by_day = {}, {}
    for task in tasks:
        daily = [_mean(seed["daily"], measured, task) for seed in seeds]
        scratch = [_mean(seed["scratch"], measured, task) for seed in seeds]
        table[task] = {
            "daily, all next days": _rounded(_mean(seed["daily"], seed["daily"], task) for seed in seeds),
            "daily": _rounded(daily),
            f"scratch, {_PASSES} passes": _rounded(scratch),
            "daily less scratch": _rounded(a - b for a, b in zip(daily, scratch, strict=True)),
        }
    for day in seeds[0]["daily"]:
        by_day[day] = {
            way: {task: _rounded(_known(seed[way][day][task] for seed in seeds)) for task in tasks}
            for way in ("daily", "scratch")
            if day in seeds[0][way]
        }
    costs = {
        what: round(statistics.median(seed["trainer-seconds over the daily job's"][what] for seed in seeds), 2)
        for what in seeds[0]["trainer-seconds over the daily job's"]
    }
    return {
        "quality (AUC, R2): mean and spread over seeds": table,
        "by day": by_day,
        "one pass from scratch is the same model": [seed["one pass from scratch is the same model"] for seed in seeds],
        "trainer-seconds over the daily job's": costs,
        "days that its checks would have refused": [seed["refused"] for seed in seeds],
    }


def _mean(qualities: dict[str, Qualities], days: Any, task: str) -> float:
    return statistics.mean(_known(qualities[day][task] for day in days))


def _known(values: Any) -> list[float]:
    return [value for value in values if value is not None]


def _rounded(values: Any) -> list[float | None]:
    """Return mean and standard deviation."""
    known = list(values)
    if not known:
        return [None, None]
    return [round(statistics.mean(known), 4), round(statistics.stdev(known), 4) if len(known) > 1 else None]
