"""A training run as the command sees it: hold the line, train, publish, say what came out."""

import contextlib
from collections.abc import Sequence
from typing import Any

from pipeline.config.project import Config
from pipeline.lineage.choose_start import ends_day, start_of
from pipeline.lineage.day_entry import described, of_run, quarantined
from pipeline.lineage.lease import leases
from pipeline.lineage.ledger import Ledger
from pipeline.lineage.line import Line
from pipeline.lineage.manifest import declared
from pipeline.lineage.stored_checkpoint import Manifest
from pipeline.trainer.train_days import HeldLine, train_days


def train(config: Config, days: Sequence[str], passes: int) -> dict[str, Any]:
    """Train days, from where the line is, and publish them without a gate.

    Args:
        config: The project's configuration.
        days: ISO dates in order.
        passes: Passes over all of them.

    Returns:
        The figures of the command's JSON line.

    Raises:
        ConfigError: The configuration cannot be carried out.
        DataError: The logs, or what the line has trained already, do not fit; or another job holds the line.
        Interrupted: SIGTERM came; the workers have saved where they were.
    """
    return train_together(config, [config], days, passes)[0]


def train_together(read: Config, configs: Sequence[Config], days: Sequence[str], passes: int) -> list[dict[str, Any]]:
    """Train models one after the other in one group of workers, each to the bits that it would have alone.

    A model costs no start of Ray Train and of its workers then, which take longer than a small log does.

    Args:
        read: What rows are read with: the features, seed and reading that all of the models have, and all their tasks.
        configs: The models, on lines of their own. Where ids have vocabularies, or labels come late, what is read
            follows from a line: one model, then.
        days: ISO dates in order.
        passes: Passes over all of them.

    Returns:
        Of each model the figures of `train`.

    Raises:
        ConfigError: A configuration cannot be carried out.
        DataError: The logs, or what a line has trained already, do not fit; or another job holds a line.
        Interrupted: SIGTERM came; the workers have saved where they were.
    """
    results = [_nothing_to_do(config, days, passes) for config in configs]
    places = [place for place, result in enumerate(results) if result is None]
    with contextlib.ExitStack() as stack:
        lines = _take([configs[place] for place in places], days, stack) if places else []
        serials = [held.line.state()["serial"] for held in lines]
        trained = train_days(read, lines, days, passes) if lines else []
        for place, held, serial, (finished, new) in zip(places, lines, serials, trained, strict=True):
            results[place] = _publish(held, serial, finished, passes) | ({} if new else {"result": "nothing to do"})
    return [result for result in results if result is not None]


def _nothing_to_do(config: Config, days: Sequence[str], passes: int) -> dict[str, Any] | None:
    """The result for a line whose days are trained and published."""
    line = Line.of(config.root, config.line)
    start, latest = start_of(declared(config), line, days, passes), line.latest()
    if start is None or latest is None or start.checkpoint != latest["checkpoint"] or latest["day"] != days[-1]:
        return None
    return {"result": "nothing to do", "checkpoint": start.checkpoint, "step": start.step}


def _take(configs: Sequence[Config], days: Sequence[str], stack: contextlib.ExitStack) -> list[HeldLine]:
    lines = [Line.of(config.root, config.line) for config in configs]
    runs = stack.enter_context(leases(lines, f"jobs.train {days[0]}..{days[-1]}", configs[0].daily.lease_s))
    return [HeldLine(config, line, run) for config, line, run in zip(configs, lines, runs, strict=True)]


def _publish(held: HeldLine, serial: int, finished: Manifest, passes: int) -> dict[str, Any]:
    """Enter the days of a finished run into the ledger, and publish the last."""
    line, manifests = held.line, list(of_run(held.line, finished))
    parent = Ledger(line).newest()
    for manifest in reversed(manifests):
        if ends_day(manifest, passes):
            parent = Ledger(line).enter(described(line, manifest, held.run) | {"kind": "train"}, parent, serial)
    assert parent is not None
    line.publish(parent.content, serial, held.run)
    return {
        "result": "trained",
        "checkpoint": finished.checkpoint,
        "step": finished.step,
        "rows": sum(manifest.content["rows"] for manifest in manifests),
        "quarantined": quarantined(manifests),
    }
