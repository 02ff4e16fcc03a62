"""Records of a line for its report: published entries, attempts and networks; each file of the root is read once."""

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from features.errors import ConfigError
from features.schema import Schema
from models.assembly import task_heads
from pipeline.config.project import Config, ModelConfig
from pipeline.lineage.ledger import Ledger
from pipeline.lineage.ledger_entry import LedgerEntry
from pipeline.lineage.line import Line
from pipeline.lineage.records import Attempt
from pipeline.studies.candidates import tower_names

logger = logging.getLogger(__name__)

Signature = tuple[Any, ...]
"""Modules of gates with their numbers of gates and experts, and the tasks: equal for entries of one network."""


@dataclass(frozen=True, slots=True)
class NamedNetwork:
    """Network whose gates have names.

    Args:
        setting: The network, as a config file has it.
        towers: Names of the towers, in the order of their gates.
    """

    setting: dict[str, Any]
    towers: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class LineRecords:
    """Records of a line.

    Args:
        config: The project's configuration.
        line: Name of the line.
        newest: Newest published entry of the whole line.
        entries: Published entries of the days that were asked for, the oldest first.
        earlier: Entries before them that the gate's limits of the first ones depend on, the oldest first.
        attempts: Attempts at the days that were asked for and at later ones without an entry, by number.
        networks: Networks by `signature`; those whose checkpoint is gone have the configuration's, if it fits.
    """

    config: Config
    line: str
    newest: LedgerEntry
    entries: tuple[LedgerEntry, ...]
    earlier: tuple[LedgerEntry, ...]
    attempts: tuple[Attempt, ...]
    networks: Mapping[Signature, NamedNetwork]


def read_records(config: Config, days: Sequence[str] | None) -> LineRecords:
    """Read a line.

    Args:
        config: The project's configuration, whose `line` is read.
        days: ISO dates to report; None: all.

    Raises:
        ConfigError: The line has no published day among these.
        DataError: An entry or an attempt is damaged.
    """
    line = Line.of(config.root, config.line)
    asked = None if days is None else set(days)
    entries, earlier, newest = [], [], None
    for entry in Ledger(line).chain():
        newest = newest or entry
        if asked is None or entry.day in asked:
            entries.append(entry)
        elif entry.day < min(asked):
            earlier.append(entry)
            if sum(bool(one.before) for one in earlier) >= config.daily.gate.window:
                break
    if newest is None:
        raise ConfigError(f"{line.storage.url}: nothing is published: train first, or name a line with --line NAME")
    if not entries:
        raise ConfigError(
            f"{line.storage.url} has no published day among those of --days; its newest is {newest.day}: ask for others"
        )
    return LineRecords(
        config=config,
        line=line.name,
        newest=newest,
        entries=tuple(entries[::-1]),
        earlier=tuple(earlier[::-1]),
        attempts=_attempts(line, asked, newest.day),
        networks=_networks(config, line, entries),
    )


def signature(entry: LedgerEntry) -> Signature:
    """Return the part of an entry by which entries of one network are equal."""
    gates = tuple((module, len(rows), len(rows[0]) if rows else 0) for module, rows in sorted(entry.expert_use.items()))
    return gates, tuple(entry.rows_in_space)


def _attempts(line: Line, asked: set[str] | None, newest: str) -> tuple[Attempt, ...]:
    """Return attempts at days that were asked for, and, if the newest is among them, at days begun since."""
    begun = line.storage.names("attempts")
    return tuple(
        line.attempts([day for day in begun if asked is None or day in asked or (newest in asked and day > newest)])
    )


def _networks(config: Config, line: Line, entries: Sequence[LedgerEntry]) -> dict[Signature, NamedNetwork]:
    """Read the newest checkpoint of each network that has entries."""
    newest: dict[Signature, LedgerEntry] = {}
    for entry in entries:  # the newest first
        if entry.expert_use:
            newest.setdefault(signature(entry), entry)
    return {key: _network(config, line, entry) for key, entry in newest.items()}


def _network(config: Config, line: Line, entry: LedgerEntry) -> NamedNetwork:
    own = line if entry.line in ("", line.name) else Line(line.storage.sibling(entry.line))
    manifest = own.read_manifest(entry.checkpoint)
    if manifest is not None:
        try:
            model = ModelConfig.model_validate_json(json.dumps(manifest.config["model"]))
            schema = Schema.model_validate_json(json.dumps(manifest.config["schema"]))
        except (KeyError, ValidationError):
            logger.warning("the config of %s is of another version: this one names experts", entry.checkpoint)
        else:
            towers = tuple(tower.name for tower in model.tower_heads(task_heads(schema.tasks)))
            return NamedNetwork(model.network.model_dump(mode="json"), towers)
    return NamedNetwork(config.model.network.model_dump(mode="json"), tuple(tower_names(config)))
