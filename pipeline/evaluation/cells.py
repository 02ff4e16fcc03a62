"""Cells of a backfill: which checkpoints and days are asked for, and the key of each pair's figures."""

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any

from features.errors import ConfigError, DataError
from features.holdout import Rows
from pipeline.config.project import Config
from pipeline.evaluation.metrics import METRICS_VERSION
from pipeline.evaluation.subject import published
from pipeline.ingest.chosen_days import span, without_missing
from pipeline.ingest.parts import before
from pipeline.ingest.units import DayLog, parse_days
from pipeline.lineage.ledger import Ledger
from pipeline.lineage.line import Line
from pipeline.lineage.records import Manifest
from pipeline.lineage.stored_checkpoint import MANIFEST
from pipeline.storage.files import Storage


@dataclass(frozen=True, slots=True)
class DatedCheckpoint:
    """Checkpoint of a backfill.

    Args:
        name: Name as seen from the command's line.
        line: Line that has it.
        own_name: Its name on that line.
        digest: Checksum of its manifest.
        manifest: Its manifest.
    """

    name: str
    line: str
    own_name: str
    digest: str
    manifest: Manifest

    @property
    def day(self) -> str:
        """Day that it was trained on last."""
        return self.manifest.day


@dataclass(frozen=True, slots=True)
class Cell:
    """A checkpoint on a day.

    Args:
        line: Line that has the checkpoint.
        checkpoint: Name of the checkpoint on that line.
        checkpoint_day: Day that it was trained on last, ISO date.
        day: Day that it is measured on, ISO date.
        row_set: All rows, or those that are `held_out`.
        checkpoint_digest: Checksum of the checkpoint's manifest.
        log_digest: Checksum of the sizes and fingerprints of the day's files.
        key: Checksum of all that the figures depend on.
    """

    line: str
    checkpoint: str
    checkpoint_day: str
    day: str
    row_set: Rows
    checkpoint_digest: str
    log_digest: str
    key: str

    @property
    def lag(self) -> int:
        """Days from the checkpoint's day to the measured one."""
        return lag_of(self.checkpoint_day, self.day)


@dataclass(frozen=True, slots=True)
class AskedCells:
    """Cells that a command asks for.

    Args:
        checkpoints: Days of the line, as `--days` takes them, or names of checkpoints with commas between; None: the
            newest published one.
        days: ISO dates; empty: all days that the lag gives and that have a log.
        lag: First and last number of days between a checkpoint and a measured day; None: any.
        against: Name or day of the checkpoint that the others are held against; None: none.
        rows: All rows, or only those that are `held_out`.
        skip_missing: True to leave out days of the line without a checkpoint.
    """

    checkpoints: str | None
    days: Sequence[str]
    lag: tuple[int, int] | None = None
    against: str | None = None
    rows: Rows = "all"
    skip_missing: bool = False

    def has(self, checkpoint_day: str, day: str) -> bool:
        """Return True if a checkpoint of a day is asked for on another day."""
        return self.lag is None or self.lag[0] <= lag_of(checkpoint_day, day) <= self.lag[1]


def lag_of(checkpoint_day: str, day: str) -> int:
    """Return the number of days from one ISO date to another."""
    return (date.fromisoformat(day) - date.fromisoformat(checkpoint_day)).days


def parse_lag(text: str) -> tuple[int, int]:
    """Read `3` or `1..7`.

    Raises:
        ConfigError: The text is no such number or range.
    """
    match = re.fullmatch(r"(\d{1,4})(?:\.\.(\d{1,4}))?", text)
    first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
    if last < first:
        raise ConfigError(f"--lag {text!r}: expected a number of days or a range of them, as in 1..7")
    return first, last


def chosen_checkpoints(
    line: Line, text: str | None, option: str = "--checkpoints", *, skip_missing: bool = False
) -> list[DatedCheckpoint]:
    """Return the checkpoints that a text names, in the order of their days.

    Args:
        line: The command's line.
        text: As in `AskedCells.checkpoints`.
        option: Option that the text comes from, for an error.
        skip_missing: True to leave out days without a checkpoint.

    Raises:
        ConfigError: The text names a checkpoint that does not exist.
        DataError: A day has no published checkpoint.
    """
    if text is None:
        names = [published(line)]
    elif "/" in text:
        names = text.split(",")
    else:
        names = _of_days(line, parse_days(text), option, skip_missing=skip_missing)
    found = {one.digest: one for one in (dated_checkpoint(line, name) for name in names)}
    return sorted(found.values(), key=lambda one: (one.day, one.line, one.own_name))


def _of_days(line: Line, days: Sequence[str], option: str, *, skip_missing: bool) -> list[str]:
    """Return the names of the published checkpoints of days, as seen from the line."""
    found: dict[str, str] = {}
    for entry in Ledger(line).chain():
        if entry.day < days[0]:
            break
        name = entry.checkpoint
        if entry.line != line.name and ":" not in name:
            name = f"{entry.line}:{name}"
        if entry.skipped is None and line.read_manifest(name) is not None:
            found[entry.day] = name
    missing = [day for day in days if day not in found]
    if missing and (len(missing) == len(days) or not skip_missing):
        some = ", or leave those days out with --skip-missing" if len(missing) < len(days) else ""
        raise DataError(
            f"{line.storage.url} has no checkpoint of {span(missing)}: it was not trained, was skipped, or is retired "
            f"(checkpoint.keep_days); correct {option}{some}"
        )
    return [found[day] for day in days if day in found]


def dated_checkpoint(line: Line, name: str) -> DatedCheckpoint:
    """Return a checkpoint by its name, as seen from a line.

    Raises:
        ConfigError: It does not exist, or is damaged.
    """
    manifest = line.read_manifest(name)
    if manifest is None:
        raise ConfigError(f"{line.storage.url}/{name} has no intact manifest: name a complete checkpoint")
    storage, own = line.place(name)
    digest = json.loads(storage.read(f"{own}/{MANIFEST}"))["sha256"]
    return DatedCheckpoint(name, Line(storage).name, own, digest, manifest)


def chosen_days(logs: Storage, asked: AskedCells, checkpoints: Sequence[DatedCheckpoint]) -> list[str]:
    """Return the days to measure, those with a cell; without days of the command all that have a log.

    Raises:
        ConfigError: No checkpoint is asked for on any of the days.
        DataError: No day has a log.
    """
    if asked.days:
        days = [day for day in asked.days if any(asked.has(one.day, day) for one in checkpoints)]
        if not days:
            raise ConfigError(
                f"no day of {span(asked.days)} is {_range(asked.lag)} days after a checkpoint: correct --days or --lag"
            )
        return days
    if asked.lag is None:
        raise ConfigError("which days? Give --days, or --lag for all days that lie so many days after a checkpoint")
    lags = range(asked.lag[0], asked.lag[1] + 1)
    return without_missing(logs, sorted({before(one.day, -lag) for one in checkpoints for lag in lags}))[0]


def _range(lag: tuple[int, int] | None) -> str:
    if lag is None:
        return "any number of"
    return f"{lag[0]}" if lag[0] == lag[1] else f"{lag[0]} to {lag[1]}"


def cell_of(config: Config, checkpoint: DatedCheckpoint, log: DayLog, rows: Rows) -> Cell:
    """Return the cell of a checkpoint and a day's log.

    The key has everything that the figures depend on, but for rounding: the number of workers and the sizes of batches
    and units are not in it.
    """
    asked, log_digest = config.evaluation, _digest(dict(log.files))
    depends_on = {
        "checkpoint": checkpoint.digest,
        "log": log_digest,
        "metrics": METRICS_VERSION,
        "rows": rows,
        "bootstrap": asked.bootstrap.model_dump(mode="json") if asked.bootstrap else None,
        "grouped": asked.grouped.model_dump(mode="json") if asked.grouped else None,
        "by": [one.model_dump(mode="json") for one in asked.by],
        "holdout": config.holdout.model_dump(mode="json") if config.holdout and rows == "held_out" else None,
        "precision": config.workers.precision,
        "on_bad_unit": config.ingest.on_bad_unit,
    }
    return Cell(
        line=checkpoint.line,
        checkpoint=checkpoint.own_name,
        checkpoint_day=checkpoint.day,
        day=log.day,
        row_set=rows,
        checkpoint_digest=checkpoint.digest,
        log_digest=log_digest,
        key=_digest(depends_on),
    )


def encoder_digest(manifest: Manifest) -> str:
    """Return a checksum of all that the encoding of rows for a checkpoint depends on: equal ones encode alike."""
    files = {name: mark.sha256 for name, mark in manifest.files.items() if name.startswith("vocabulary-")}
    statistics = manifest.statistics.model_dump(mode="json") if manifest.statistics else None
    return _digest({"schema": manifest.schema_fingerprint, "statistics": statistics, "vocabularies": files})


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
