"""A training run as the command sees it: hold the line, train, publish, say what came out."""

import contextlib
import itertools
from collections.abc import Iterator, Sequence
from typing import Any

from pipeline.config import Config
from pipeline.lineage.lease import leases
from pipeline.lineage.ledger import Ledger, config_hash
from pipeline.lineage.line import Line
from pipeline.lineage.manifest import declared
from pipeline.lineage.start import ends_day, start_of
from pipeline.lineage.stored_checkpoint import Manifest
from pipeline.train_group import HeldLine, train_days


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


def of_run(line: Line, finished: Manifest) -> Iterator[Manifest]:
    """The finished parts of a run, the newest first."""
    return itertools.takewhile(lambda m: m.content["run"] == finished.content["run"], line.lineage(finished))


def quarantined(manifests: Sequence[Manifest]) -> dict[str, str]:
    """Units that could not be read, and why."""
    found = (manifest.content["cursor"]["quarantined"] for manifest in manifests)
    return {key: reason for units in found for key, reason in units.items()}


def described(line: Line, manifest: Manifest, run: str) -> dict[str, Any]:
    """What the ledger takes from a finished day's checkpoint, and from those of earlier days' late labels before it."""
    content = manifest.content
    sums = [int(total) for _, total in content["cursor"]["units"].values()]
    taken = (
        "rows",
        "held_out",
        "rows_in_space",
        "schema_fingerprint",
        "step",
        "days_done",
        "loss_weights",
        "pass",
        "new_ids",
    )
    return {key: content[key] for key in taken} | {
        "day": manifest.day,
        "checkpoint": manifest.checkpoint,
        "run": run,
        "attempt": content["attempt"],
        "logs": content["files_of_log"],
        "quarantined": content["cursor"]["quarantined"],
        "audit": {"units": len(sums), "rows": content["rows"], "sum": f"{sum(sums) % 2**64:016x}"},
        "config": config_hash(content["config"]),
        "train_seconds": content["seconds"],
        "late": {
            part.content["log_day"]: _late(part) for part in of_run(line, manifest) if _is_late(part, manifest.day)
        },
    }


def _is_late(part: Manifest, day: str) -> bool:
    return part.day == day and part.content["log_day"] != day


def _late(part: Manifest) -> dict[str, Any]:
    return {key: part.content[key] for key in ("tasks", "rows", "rows_in_space")} | {
        "logs": part.content["files_of_log"]
    }
