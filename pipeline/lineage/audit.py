"""Audit of a line: the rows that it records as trained, compared with the logs."""

import logging
from collections.abc import Iterator
from typing import Any

import numpy as np

from features.errors import ConfigError, DataError
from pipeline.config.project import Config
from pipeline.ingest.cursor import DayCursor
from pipeline.ingest.deal import row_order
from pipeline.ingest.units import DayLog, audit_sum, list_days
from pipeline.lineage.line import Line
from pipeline.lineage.stored_checkpoint import Manifest
from pipeline.storage.files import Storage

logger = logging.getLogger(__name__)


def audit_line(config: Config, checkpoint: str | None) -> dict[str, Any]:
    """Audit a checkpoint and all days before it, back to the first.

    The trainer took the count of a unit's rows and the sum of their hashes from the batches that it stepped. The audit
    computes both again from the footers of the logs alone.

    Args:
        config: The project's configuration.
        checkpoint: Name of the checkpoint below the line; None: the newest published.

    Returns:
        The figures of the command's JSON line.

    Raises:
        ConfigError: There is no such checkpoint.
        DataError: Rows were trained twice, or not at all, or the logs are no longer those that were trained.
    """
    line = Line.of(config.root, config.line)
    latest = line.latest()
    name = checkpoint or (latest.checkpoint if latest else None)
    newest = line.read_manifest(name) if name else None
    if newest is None:
        what = f"{name} has no intact manifest" if name else "nothing is published"
        raise ConfigError(f"{line.storage.url}: {what}: train first, or name a complete checkpoint")
    lineage = list(line.lineage(newest))
    problems = list(_doubled(lineage))
    logs = Storage(config.logs.path)
    read_last = {manifest.log_day: manifest for manifest in reversed(lineage)}
    written_again = []
    for manifest in reversed(lineage):
        if read_last[manifest.log_day].files_of_log != manifest.files_of_log:
            logger.info("%s: its log was written again after it was trained, and read again since", manifest.day)
            written_again.append(manifest.log_day)
            continue
        found = list(_differing(line, manifest, logs))
        where = f"{manifest.log_day}, trained on {manifest.day}, pass {manifest.pass_index}"
        logger.info("%s: %d rows, %s", where, manifest.rows, f"{len(found)} differ" if found else "each once")
        problems += found
    if problems:
        raise DataError(f"{len(problems)} things are not as they should be, the first: {problems[0]}")
    gone = lineage[-1].parent  # of the first day that could be looked at
    return {
        "result": f"every row once since {lineage[-1].day}; {gone} is gone" if gone else "every row once",
        "checkpoint": newest.checkpoint,
        "written_again": sorted(set(written_again)),
        "days": [one.day for one in reversed(lineage) if one.is_own_log],
        "rows": sum(manifest.rows for manifest in lineage),
        "held_out": sum(manifest.held_out for manifest in lineage),
        "quarantined": sum(len(line.cursor(manifest).quarantined) for manifest in lineage),
    }


def _doubled(lineage: list[Manifest]) -> Iterator[str]:
    """Yield the days that a chain of parents has twice in one pass, for the same tasks."""
    seen = set()
    for manifest in lineage:
        trained = (manifest.log_day, manifest.pass_index, str(manifest.tasks))
        if trained in seen:
            yield f"{manifest.day} is trained twice: {manifest.checkpoint} has itself among its parents"
        seen.add(trained)


def _differing(line: Line, manifest: Manifest, logs: Storage) -> Iterator[str]:
    """Yield the differences between a day's cursor and its log, one line per unit."""
    ingest = manifest.config["ingest"]
    try:
        (day,) = list_days(logs, [manifest.log_day], ingest["unit"]["max_rows"])
        cursor = DayCursor.from_stored(line.cursor(manifest), day.units)
    except DataError as error:
        yield str(error)
        return
    if day.files != manifest.files_of_log:
        yield f"{manifest.day}: the files of the log are not those that {manifest.checkpoint} was trained on"
    for index, unit in enumerate(day.units):
        seen = cursor.seen.get(index, 0)
        if manifest.complete and seen != unit.num_rows and index not in cursor.quarantined:
            yield f"{unit.key}: {seen} rows trained of {unit.num_rows}"
        elif cursor.sums.get(index, 0) != _expected_sum(manifest, day, index, seen):
            yield f"{unit.key}: {seen} rows trained, but not each of them once"


def _expected_sum(manifest: Manifest, day: DayLog, index: int, seen: int) -> int:
    """Return the hash sum of the first rows of a unit, in training order."""
    unit = day.units[index]
    if seen == unit.num_rows:
        return audit_sum(unit.salt, np.arange(seen))
    config = manifest.config
    shuffle = config["ingest"]["shuffle"]["rows"]
    order = row_order(unit, seed=config["seed"], pass_index=manifest.pass_index, shuffle=shuffle)
    return audit_sum(unit.salt, order[:seen])
