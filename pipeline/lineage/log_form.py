"""Form of a log: the rule by which files are read and the types of ids, compared with those of a line's earlier days.

Rows that other rules would read, and ids of another type, would change a line without a word: half of a day more, or a
second row of the table for every user. So such a day is refused until a person accepts it.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence

import pyarrow as pa

from features.errors import DataError
from features.ids import IdType
from pipeline.config.project import Config
from pipeline.ingest.datasource import read_columns
from pipeline.ingest.day_files import list_files, read_footer
from pipeline.ingest.units import DayLog, IdTypes
from pipeline.lineage.records import Manifest
from pipeline.storage.files import Storage

logger = logging.getLogger(__name__)

_FILES_LOOKED_AT = 20  # of a day that an earlier version trained; a column is seldom null in so many


def check_form(config: Config, trained: Manifest | None, logs: Sequence[DayLog]) -> None:
    """Check that logs have the form of those that a line has trained.

    Args:
        config: The project's configuration.
        trained: Checkpoint from which the line continues; None: from nothing.
        logs: The days to train, listed with their schemas.

    Raises:
        DataError: A log has another form; names it, the reason and the remedy.
    """
    changes = form_changes(config, trained, logs)
    if changes:
        day = next(log.day for log in logs if form_changes(config, trained, [log]))
        raise DataError(
            f"{'; '.join(changes)}: write the log as before, or accept it with jobs.daily --day {day} "
            "--accept-anomaly REASON, after jobs.daily --discard REASON where later days are begun"
        )


def form_changes(config: Config, trained: Manifest | None, logs: Sequence[DayLog]) -> list[str]:
    """Return the differences between the form of logs and of those that a line has trained, one line each.

    Args:
        config: The project's configuration.
        trained: Checkpoint from which the line continues; None: from nothing.
        logs: The days to train, listed with their schemas.
    """
    if trained is None:
        return []
    files = (change for log in logs for change in _other_files(trained, log))
    return [*files, *_other_ids(config, trained, logs)]


def _other_files(trained: Manifest, log: DayLog) -> Iterator[str]:
    if trained.day_files != "all" and log.read_otherwise:
        yield (
            f"{log.day} has {len(log.read_otherwise)} files, the first {log.read_otherwise[0]}, that the version which "
            f"trained {trained.checkpoint} treated otherwise: it passed over sub-folders and endings other than "
            ".parquet, and it read names that begin with _"
        )


def check_ids(config: Config, trained: Manifest | None, logs: Sequence[DayLog]) -> None:
    """Check that the ids of logs to measure have the types of the ids that a model was trained on.

    Files that the version which trained the model treated otherwise are measured, and named in a warning.

    Args:
        config: The project's configuration.
        trained: Manifest of the model's checkpoint; None: it is missing, which is found elsewhere.
        logs: The days to read, listed with their schemas.

    Raises:
        DataError: A column has ids of another type; names it and the remedy.
    """
    if trained is None:
        return
    for change in (change for log in logs for change in _other_files(trained, log)):
        logger.warning("%s", change)
    changes = _other_ids(config, trained, logs)
    if changes:
        raise DataError(f"{'; '.join(changes)}: write the log with ids of the trained type")


def _other_ids(config: Config, trained: Manifest, logs: Sequence[DayLog]) -> list[str]:
    now = {column: (kind, log.day) for log in reversed(logs) for column, kind in log.id_types.items()}
    then = _trained_types(config, trained) if now else {}
    return [
        f"column {column!r} is {kind} on {day} and {then[column]} on {trained.log_day}, which {trained.checkpoint} has "
        "trained: every id would become a new one"
        for column, (kind, day) in now.items()
        if kind != then.get(column, kind)
    ]


def _trained_types(config: Config, trained: Manifest) -> Mapping[str, IdType]:
    """Return the types of the trained log's ids; an old manifest has none, so files of that log say them."""
    if trained.day_files == "all":
        return trained.id_types
    logs = Storage(config.logs.path)
    columns = read_columns(config.log_schema.columns(), config.holdout)
    types = IdTypes(columns)
    try:  # logs are not kept for ever
        there = set(list_files(logs, trained.log_day).read)
        for file in [file for file in trained.files_of_log if file in there][:_FILES_LOOKED_AT]:
            schema = read_footer(logs, file).schema
            types.add(file, pa.schema([field for field in schema if field.name not in types.found]))
    except DataError as error:
        logger.warning("ids cannot be compared with those of %s: %s", trained.log_day, error)
    return types.found
