"""Lanes of a log: which rank reads which units, from the log's start or from a checkpoint within it.

Lanes and cursor of a day with 150,000 units have megabytes. So they do not travel with the stream to every rank. The
command computes them when it plans the stream, and rank 0, which writes them into checkpoints, computes them again
from the same checkpoint.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from features.errors import DataError
from pipeline.config.ingest import IngestConfig
from pipeline.ingest.cursor import DayCursor, StoredCursor
from pipeline.ingest.deal import Lanes, deal, unit_order
from pipeline.ingest.units import DayLog


@dataclass(frozen=True, slots=True)
class ResumePoint:
    """Position of the model in a checkpoint.

    Args:
        checkpoint: Its name below the line's checkpoints.
        pass_index: Pass that was being trained.
        day: Day that was being trained.
        log_day: Day whose log was being read for it.
        seen: Rows that the model had seen of the log.
        lanes: The day's lanes, as unit keys per rank.
        complete: True if all rows of the log have been stepped.
        seed: Seed of the run that wrote it.
        shuffle_rows: True if that run shuffled rows within their unit.
        files: Sizes and fingerprints of the log's files at the time of reading.
    """

    checkpoint: str
    pass_index: int
    day: str
    log_day: str
    seen: StoredCursor
    lanes: Sequence[Sequence[str]]
    complete: bool
    seed: int
    shuffle_rows: bool
    files: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class DealtLog:
    """Units of a log, dealt to the ranks.

    Args:
        lanes: Indices of units per rank.
        before: Rows that the model has seen before the first batch.
    """

    lanes: Lanes
    before: DayCursor = field(default_factory=DayCursor)


def deal_log(
    log: DayLog,
    num_ranks: int,
    pass_index: int,
    ingest: IngestConfig,
    seed: int,
    resume: ResumePoint | None = None,
) -> DealtLog:
    """Deal a log to the ranks; a pure function.

    Args:
        log: The log.
        num_ranks: Number of ranks.
        pass_index: The pass over the days.
        ingest: Shuffling.
        seed: The run's seed.
        resume: Checkpoint within this log to continue from; None: from the log's start.

    Raises:
        DataError: The log has changed since the checkpoint was written.
    """
    order = unit_order(log.units, seed=seed, pass_index=pass_index, day=log.day, shuffle=ingest.shuffle.units)
    if resume is None:
        return DealtLog(deal(log.units, num_ranks, order))
    places = log.units.places()  # of 150,000 units it takes .3 s
    _check_unchanged(resume, log, ingest, seed, places)
    before = DayCursor.from_stored(resume.seen, log.units, places)
    missing = before.missing(log.units)
    if len(resume.lanes) != num_ranks:
        return DealtLog(deal(log.units, num_ranks, order, missing), before)
    return DealtLog([[index for key in lane if (index := places[key]) in missing] for lane in resume.lanes], before)


def _check_unchanged(
    resume: ResumePoint, log: DayLog, ingest: IngestConfig, seed: int, places: Mapping[str, int]
) -> None:
    """Refuse to continue within a log if "the first n rows of a unit" are no longer the trained ones."""
    if (resume.seed, resume.shuffle_rows) != (seed, ingest.shuffle.rows):
        raise DataError(
            f"{resume.checkpoint} is within {log.day}, trained with seed {resume.seed} and shuffle.rows "
            f"{resume.shuffle_rows}, the config has {seed} and {ingest.shuffle.rows}: restore them until the day is "
            "done"
        )
    then = {key for lane in resume.lanes for key in lane}
    then.update(resume.seen.units, resume.seen.quarantined)
    changed = sorted(then ^ places.keys())
    what = f"{len(changed)} units, e.g. {changed[0]}" if changed else None
    rewritten = sorted(file for file, mark in resume.files.items() if log.files.get(file, mark) != mark)
    if rewritten and not changed:
        file = rewritten[0]
        what = f"{file} was {resume.files[file]} (bytes and fingerprint) and is {log.files[file]}"
    if what:
        raise DataError(
            f"{resume.checkpoint} is within {log.day}, whose log or ingest.unit.max_rows has changed since "
            f"({what}): restore them, or train the day on a new line"
        )
