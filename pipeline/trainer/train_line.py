"""Training run of a command: hold the line, train, publish, report the result."""

import contextlib
import logging
from collections.abc import Sequence
from typing import Any

from pipeline.cluster.live_view import show_entries
from pipeline.config.project import Config
from pipeline.ingest.chosen_days import span
from pipeline.lineage.choose_start import ends_day, start_of
from pipeline.lineage.day_entry import parts_of_run, quarantined, trained_entry
from pipeline.lineage.lease import leases
from pipeline.lineage.ledger import Ledger
from pipeline.lineage.line import Line
from pipeline.lineage.manifest import declared
from pipeline.lineage.records import Manifest
from pipeline.lineage.retention import retire
from pipeline.trainer.train_days import HeldLine, train_days

logger = logging.getLogger(__name__)


def train(config: Config, days: Sequence[str], passes: int) -> dict[str, Any]:
    """Train days, starting at the line's newest checkpoint, and publish them without a gate.

    Args:
        config: The project's configuration.
        days: ISO dates in order.
        passes: Number of passes over all of them.

    Returns:
        The figures of the command's JSON line.

    Raises:
        ConfigError: The configuration cannot be carried out.
        DataError: The logs, or what the line has trained already, do not fit; or another job holds the line.
        Interrupted: SIGTERM came; the workers have saved their state.
    """
    return train_together(config, [config], days, passes)[0]


def train_together(read: Config, configs: Sequence[Config], days: Sequence[str], passes: int) -> list[dict[str, Any]]:
    """Train models one after the other in one stream, each to the same bits as alone.

    So a model needs no stream of its own; starting one takes longer than reading a small log.

    Args:
        read: Configuration that reads the rows: the features, seed and reading that all models share, and all their
            tasks.
        configs: Configurations of the models, on lines of their own. Only one model if ids have vocabularies or labels
            come late, since the rows then depend on the line.
        days: ISO dates in order.
        passes: Number of passes over all of them.

    Returns:
        The figures of `train` for each model.

    Raises:
        ConfigError: A configuration cannot be carried out.
        DataError: The logs, or what a line has trained already, do not fit; or another job holds a line.
        Interrupted: SIGTERM came; the workers have saved their state.
    """
    results = [_nothing_to_do(config, days, passes) for config in configs]
    places = [place for place, result in enumerate(results) if result is None]
    with contextlib.ExitStack() as stack:
        lines = _take([configs[place] for place in places], days, stack) if places else []
        serials = [held.line.state().serial for held in lines]
        trained = train_days(read, lines, days, passes) if lines else []
        for place, held, serial, (finished, new) in zip(places, lines, serials, trained, strict=True):
            results[place] = _publish(held, serial, finished, passes) | ({} if new else {"result": "nothing to do"})
    return [result for result in results if result is not None]


def _nothing_to_do(config: Config, days: Sequence[str], passes: int) -> dict[str, Any] | None:
    """Return the result for a line whose days are trained and published; None otherwise."""
    line = Line.of(config.root, config.line)
    start, latest = start_of(declared(config), line, days, passes), line.latest()
    if start is None or latest is None or start.checkpoint != latest.checkpoint or latest.day != days[-1]:
        return None
    return {"result": "nothing to do", "checkpoint": start.checkpoint, "step": start.step}


def _take(configs: Sequence[Config], days: Sequence[str], stack: contextlib.ExitStack) -> list[HeldLine]:
    lines = [Line.of(config.root, config.line) for config in configs]
    runs = stack.enter_context(leases(lines, f"jobs.train {span(days)}", configs[0].daily.lease_s))
    return [HeldLine(config, line, run) for config, line, run in zip(configs, lines, runs, strict=True)]


def _publish(held: HeldLine, serial: int, finished: Manifest, passes: int) -> dict[str, Any]:
    """Enter the days of a finished run into the ledger, and publish the last."""
    line, manifests = held.line, list(parts_of_run(held.line, finished))
    parent, entries = Ledger(line).newest(), []
    for manifest in reversed(manifests):
        if ends_day(manifest, passes):
            parent = Ledger(line).enter(trained_entry(line, manifest, held.run, "train"), parent, serial)
            entries.append(parent)
    assert parent is not None
    line.publish(parent.published, serial, held.run)
    show_entries(held.config, line, entries)
    result = {
        "result": "trained",
        "checkpoint": finished.checkpoint,
        "step": finished.step,
        "rows": sum(manifest.rows for manifest in manifests),
        "rows_in_space": _rows_in_space(manifests),
        "quarantined": quarantined(line, manifests),
    }
    if held.config.checkpoint.keep_days is not None:
        retire(line, held.config.checkpoint.keep_days)
    return result


def _rows_in_space(manifests: Sequence[Manifest]) -> dict[str, int]:
    """Return the rows in each task's space over the parts of a run; name tasks that were trained on none."""
    found: dict[str, int] = {}
    for manifest in manifests:
        for task, rows in manifest.rows_in_space.items():
            if manifest.tasks is None or task in manifest.tasks:
                found[task] = found.get(task, 0) + rows
    for task, rows in found.items():
        if not rows:
            logger.warning(
                "task %r was trained on no row: its label is null, or its space is empty, on all of them", task
            )
    return found
