"""Admission of a day's ids to rows of their own, counted by a pass over its units before training."""

import functools
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from features.errors import DataError
from features.id_counts import IdCounts, SeenIds, split_keys
from features.schema import Schema
from features.tables import VocabularyConfig
from features.vocabulary import Vocabulary
from pipeline.config.project import Config
from pipeline.ingest.units import DayLog
from pipeline.log_passes.count_partitions import count_by_partition, num_partitions
from pipeline.log_passes.unit_work import CountIds
from pipeline.storage.files import Storage

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Admission:
    """Result of the days' updates of the vocabularies; all mappings are by table.

    Args:
        vocabularies: Vocabularies that encode these days, saved with the checkpoints of their training.
        rows_to_reset: Rows that have another id now, increasing, int32; before the first step their weights and
            optimizer state must start anew (`pipeline.trainer.sharding.reset_rows`). None: read from a checkpoint of
            the days, whose rows are reset already.
        figures: Figures as in `features.vocabulary.VocabularyUpdate`.
    """

    vocabularies: dict[str, Vocabulary]
    rows_to_reset: dict[str, np.ndarray] | None
    figures: dict[str, dict[str, int]]

    @functools.cached_property
    def files(self) -> dict[str, bytes]:
        """Files of the vocabularies, by name, for every checkpoint of the run: they are made once, at the first."""
        return vocabulary_files(self.vocabularies)

    def needed_resets(self) -> dict[str, np.ndarray]:
        """Return the rows to reset in the checkpoint of the day before.

        Raises:
            RuntimeError: The run fell back to it although it began from a checkpoint of the days: the rows are unknown.
        """
        if self.rows_to_reset is None:
            raise RuntimeError("the days' own checkpoint is gone or damaged: start the same command again")
        return self.rows_to_reset


def admit(config: Config, previous: Mapping[str, Vocabulary], day_logs: Sequence[DayLog]) -> Admission:
    """Update the vocabularies of all tables that declare one, within a running Ray session.

    The result is a pure function of the previous vocabularies and the rows of the days, so a restarted run computes the
    same.

    Args:
        config: The project's configuration.
        previous: Vocabularies of the checkpoint that the days start from, by table; empty without one.
        day_logs: Days that are trained next; counted together, as seen on the newest of them.

    Raises:
        DataError: A unit could not be read, or a table has become smaller.
    """
    tables = [table for table in config.log_schema.tables if table.name in config.log_schema.vocabularies]
    start = {table.name: previous.get(table.name, Vocabulary.empty(table)).grown(table.num_rows) for table in tables}
    seen = seen_ids(config, start, day_logs) if start else {}
    newest = max(day.day for day in day_logs)
    mappings = config.log_schema.vocabularies
    updates = {name: start[name].update(mappings[name], newest, seen[name]) for name in start}
    for name, update in updates.items():
        logger.info("ids of table %s on %s: %s", name, newest, update.figures)
    return Admission(
        vocabularies={name: update.vocabulary for name, update in updates.items()},
        rows_to_reset={name: update.rows_to_reset for name, update in updates.items()},
        figures={name: update.figures for name, update in updates.items()},
    )


def vocabulary_files(vocabularies: Mapping[str, Vocabulary]) -> dict[str, bytes]:
    """Return a checkpoint's files of vocabularies, by name of the file."""
    return {_file_of(name): vocabulary.to_arrow() for name, vocabulary in vocabularies.items()}


def read_vocabularies(line: Storage, checkpoint: str, schema: Schema) -> dict[str, Vocabulary]:
    """Return the vocabularies of a checkpoint, by table; a table that has grown since has room for more ids.

    Args:
        line: The folder of the line.
        checkpoint: Name of the checkpoint below that folder.
        schema: Today's schema.

    Raises:
        DataError: A file is missing, damaged, or of another table, or a table has become smaller.
    """
    found = {}
    for table in schema.tables:
        if table.name in schema.vocabularies:
            where = f"{line.url}/{checkpoint}/{_file_of(table.name)}"
            try:
                read = Vocabulary.from_arrow(line.read(f"{checkpoint}/{_file_of(table.name)}"))
            except FileNotFoundError as error:
                raise DataError(f"{where} is missing: restore the checkpoint") from error
            except DataError as error:
                raise DataError(f"{where}: {error}") from error
            if (read.table, read.tail_rows) != (table.name, schema.vocabularies[table.name].tail_rows):
                raise DataError(
                    f"{where} is of table {read.table!r} with {read.tail_rows} tail_rows, the config has "
                    f"{table.name!r} with {schema.vocabularies[table.name].tail_rows}: restore the old config"
                )
            found[table.name] = read.grown(table.num_rows)
    return found


def _file_of(table: str) -> str:
    return f"vocabulary-{table}.arrow"


def seen_ids(config: Config, vocabularies: Mapping[str, Vocabulary], day_logs: Sequence[DayLog]) -> dict[str, SeenIds]:
    """Count the ids of tables with a vocabulary, and return what the updates of the vocabularies need of the counts.

    All id and sequence features that read a table count. The counts stay in Ray tasks, by parts of the range of keys.
    The driver receives for each part the known ids that were seen, and at most as many new ones as a table has rows.

    Args:
        config: The project's configuration.
        vocabularies: Vocabularies that will be updated, by table.
        day_logs: The days.

    Returns:
        The ids by table.

    Raises:
        DataError: A unit could not be read, unless `ingest.on_bad_unit` is `quarantine`: then its ids do not count.
    """
    work = CountIds(Storage(config.logs.path), config.log_schema, config.ingest.on_bad_unit == "quarantine")
    num_parts = num_partitions(sum(len(day.units) for day in day_logs))
    finish = needed_by_part(vocabularies, config.log_schema.vocabularies, num_parts)
    found: dict[str, SeenIds] = {}
    for seen in count_by_partition(day_logs, work, finish, config.ingest):
        for name, ids in seen.items():
            found[name] = found[name].joined(ids, vocabularies[name].room) if name in found else ids
    return found


def needed_by_part(
    vocabularies: Mapping[str, Vocabulary], mappings: Mapping[str, VocabularyConfig], num_parts: int
) -> list["NeededIds"]:
    """Return for each part of the range of keys the function from its counts to the ids that the updates need.

    Args:
        vocabularies: Vocabularies that will be updated, by table.
        mappings: Rules of admission by table.
        num_parts: Number of parts, a power of two.
    """
    places = {name: split_keys(vocabulary.keys, num_parts) for name, vocabulary in vocabularies.items()}
    return [
        NeededIds(
            with_row={name: vocabulary.keys[places[name][part]] for name, vocabulary in vocabularies.items()},
            min_counts={name: mappings[name].min_count for name in vocabularies},
            most={name: vocabulary.room for name, vocabulary in vocabularies.items()},
        )
        for part in range(num_parts)
    ]


@dataclass(frozen=True, slots=True, eq=False)
class NeededIds:
    """Function from the counts of a part of the range of keys to the ids that updates of vocabularies need.

    Args:
        with_row: Keys of the part that have a row, increasing, by table.
        min_counts: Least count of a new id by table.
        most: Maximum number of new ids by table.
    """

    with_row: dict[str, np.ndarray]
    min_counts: dict[str, int]
    most: dict[str, int]

    def __call__(self, counts: Mapping[str, IdCounts]) -> dict[str, SeenIds]:
        """Return the ids by table; a part without a readable unit has none."""
        none = np.empty(0, np.uint64), np.empty(0, np.int64)
        return {
            name: SeenIds.of(counts.get(name, none), keys, self.min_counts[name], self.most[name])
            for name, keys in self.with_row.items()
        }
