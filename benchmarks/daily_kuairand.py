"""Day after day against from scratch, on KuaiRand: next-day metrics and trainer-seconds of both."""

import statistics
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from features.kuairand.partitions import import_kuairand
from pipeline.config import Config, load_config
from pipeline.evaluation.evaluate import evaluate
from pipeline.fit import fit_statistics
from pipeline.lineage.checks import quality
from pipeline.lineage.daily import Accepted, run_days
from pipeline.lineage.ledger import Ledger
from pipeline.lineage.line import Line
from pipeline.lineage.work import RayWork
from pipeline.run import of_run, train
from pipeline.session import ray_session

_SOURCE = Path(__file__).parents[2] / "shared/data/kuairand-pure"
_CONFIG = Path(__file__).parents[1] / "jobs/configs/kuairand.yaml"
_SEEDS = (1, 2, 3)
_FITTED = 3  # days that the statistics are of
_PASSES = (1, 2)


def run(quick: bool) -> dict[str, Any]:
    """Train all days one after the other, and for each next day a model on all days before it, in one pass and in two.

    One pass over the same days in the same order is the same model, to the bit: that column shows what it costs. Two
    passes are what only somebody who trains from scratch can do.

    Args:
        quick: One seed, and three of the next days.
    """
    if not _SOURCE.is_dir():
        return {"skipped": "the log is not there; it is not part of the project"}
    found: dict[str, Any] = {"seeds": [], "days": []}
    with tempfile.TemporaryDirectory() as folder:
        days = list(import_kuairand(str(_SOURCE), f"{folder}/logs").rows)
        measured = days[len(days) // 3 :: 5] if quick else days[1:]
        for seed in _SEEDS[:1] if quick else _SEEDS:
            config = load_config(_CONFIG, [f"root={folder}/{seed}", f"seed={seed}", f"logs.path={folder}/logs"])
            with ray_session(config):
                found["seeds"].append(_one_seed(config, days, measured))
    found["days"] = measured
    return found | _summed_up(found["seeds"], measured)


def _one_seed(config: Config, days: list[str], measured: Sequence[str]) -> dict[str, Any]:
    """Quality by way of training, day and task, and trainer-seconds by way and day."""
    daily = config.model_copy(update={"line": "daily"})
    line = Line.of(config.root, "daily")
    fit_statistics(daily, days[:_FITTED])
    with ExitStack() as stack:
        run_days(daily, line, RayWork(daily, line, stack), days, len(days), Accepted(gate="a benchmark"))
    ways: dict[str, Any] = {"daily": {"quality": {}, "seconds": {}}}
    for entry in Ledger(line).chain():
        ways["daily"]["seconds"][entry.day] = entry.content["train_seconds"]
        if entry.day in measured:
            ways["daily"]["quality"][entry.day] = dict(_qualities(entry.content["before"].items()))
    for passes in _PASSES:
        ways[f"scratch x{passes}"] = {"quality": {}, "seconds": {}}
        for day in measured:
            scratch = config.model_copy(update={"line": f"scratch-{passes}-{day}"})
            before = days[: days.index(day)]
            fit_statistics(scratch, days[:_FITTED])
            trained = train(scratch, before, passes)
            manifest = Line.of(config.root, scratch.line).read_manifest(trained["checkpoint"])
            assert manifest is not None
            parts = of_run(Line.of(config.root, scratch.line), manifest)
            ways[f"scratch x{passes}"]["seconds"][day] = sum(part.content["seconds"] for part in parts)
            tasks = evaluate(scratch, [day], trained["checkpoint"], [])["tasks"]
            pairs = [(task["task"], task["model"] | {"kind": task["kind"]}) for task in tasks]
            ways[f"scratch x{passes}"]["quality"][day] = dict(_qualities(pairs))
    return ways


def _qualities(tasks: Any) -> Iterator[tuple[str, float | None]]:
    return ((name, quality(metrics)) for name, metrics in tasks)


def _summed_up(seeds: list[dict[str, Any]], measured: Sequence[str]) -> dict[str, Any]:
    """Per task: mean quality of each way, their difference and the spread over seeds; and what each way costs."""
    tasks = list(seeds[0]["daily"]["quality"][measured[0]])
    table = {}
    for task in tasks:
        means = {way: [_mean(ways[way]["quality"], task) for ways in seeds] for way in seeds[0]}
        row = {way: round(statistics.mean(values), 4) for way, values in means.items()}
        row["spread over seeds"] = round(statistics.stdev(means["daily"]), 4) if len(seeds) > 1 else None
        table[task] = row
    seconds = {
        way: [sum(found for day, found in ways[way]["seconds"].items() if day in measured) for ways in seeds]
        for way in seeds[0]
    }
    ratios = {
        f"{way} over daily": round(statistics.median(a / b for a, b in zip(found, seconds["daily"], strict=True)), 2)
        for way, found in seconds.items()
        if way != "daily"
    }
    return {"mean next-day quality (AUC, R2)": table, "trainer-seconds": ratios}


def _mean(quality_of: dict[str, dict[str, float | None]], task: str) -> float:
    found = [tasks[task] for tasks in quality_of.values() if tasks[task] is not None]
    return statistics.mean(value for value in found if value is not None) if found else float("nan")
