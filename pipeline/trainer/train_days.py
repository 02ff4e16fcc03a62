"""Days of one model or several, trained to their end by one group of workers; nothing is published."""

import contextlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import ray

from features.encoding import Encoder
from features.errors import ConfigError, DataError, Interrupted
from features.measured_columns import MeasuredColumns
from features.statistics import Statistics
from pipeline.cluster.failures import RunFailed, ending_of
from pipeline.cluster.live_view import LiveView
from pipeline.cluster.progress import ProgressBoard
from pipeline.cluster.session import ray_session, run_workers
from pipeline.config.load import check_beginning
from pipeline.config.project import Config
from pipeline.ingest.datasource import read_columns
from pipeline.ingest.parts import Part, late_days, parts_of
from pipeline.ingest.plan import RunPlan
from pipeline.ingest.units import DayLog, check_days
from pipeline.lineage.choose_start import Beginning, is_last, start_of
from pipeline.lineage.frozen_statistics import STATISTICS, load_statistics
from pipeline.lineage.ledger import Ledger
from pipeline.lineage.line import Line
from pipeline.lineage.log_form import check_form
from pipeline.lineage.manifest import declared
from pipeline.lineage.records import AttemptResult, Manifest, RunScope
from pipeline.log_passes.admission import Admission, admit, read_vocabularies
from pipeline.storage.files import Storage
from pipeline.tracking.mlflow import check_tracker
from pipeline.trainer.plan_inputs import check_room_for_units
from pipeline.trainer.train import train_worker
from pipeline.trainer.train_job import TrainJob

logger = logging.getLogger(__name__)

_MANY_UNITS, _FEW_ROWS = (
    10_000,
    1000,
)  # row groups, and rows of one, at which the number of row groups is worth a warning
_UNIT_S = 0.0015  # seconds to read and hand on a row group of a few rows: benchmark `ingest_units`
OF_ROWS = ("seed", "logs", "ingest", "holdout", "workers")  # beside the schema, all that the rows of a run depend on


@dataclass(frozen=True, slots=True)
class HeldLine:
    """A line to train a model on.

    Args:
        config: The model's configuration.
        line: Line of its checkpoints.
        run: Id of the run that holds the line.
        form_accepted: True to train a log of another form than the line's earlier ones.
    """

    config: Config
    line: Line
    run: str
    form_accepted: bool = False


def train_days(
    read: Config, lines: Sequence[HeldLine], days: Sequence[str], passes: int
) -> list[tuple[Manifest, bool]]:
    """Train days to their end, publishing nothing; see `train_together`.

    Args:
        read: Configuration that reads the rows.
        lines: Lines of the models.
        days: ISO dates in order.
        passes: Number of passes over all of them.

    Returns:
        The last day's checkpoint of each model, and True if anything was left to train.

    Raises:
        ConfigError: A configuration cannot be carried out.
        DataError: The logs, or what a line has trained already, do not fit.
        Interrupted: SIGTERM came; the workers have saved their state.
    """
    check_alike(read, lines, days)
    starts = [start_of(declared(held.config), held.line, days, passes) for held in lines]
    done = [start is not None and is_last(start, days, passes) for start in starts]
    left = [(held, start) for held, start, is_done in zip(lines, starts, done, strict=True) if not is_done]
    trained = iter(_train_left(read, left, days, passes) if left else [])
    return [
        (start, False) if is_done and start is not None else (next(trained), True)
        for start, is_done in zip(starts, done, strict=True)
    ]


def _train_left(
    read: Config, left: Sequence[tuple[HeldLine, Manifest | None]], days: Sequence[str], passes: int
) -> list[Manifest]:
    """Train the rest of the models, from the checkpoints given with their lines."""
    lines, (first, start) = [held for held, _ in left], left[0]
    statistics = [_frozen_statistics(held.config, held.line, start) for held, start in left]
    _check_same_statistics(lines, statistics)
    parts = parts_to_train(read, first.line, days)
    for held, reached in left:
        if reached is None:
            check_beginning(held.config)
        if not held.form_accepted:
            check_form(held.config, reached, [part.log for part in parts])
    warn_of_small_units([part.log for part in parts])
    check_room_for_units(read, [part.log for part in parts])
    for held, _ in left:
        check_slots(held.config, [part.log for part in parts])
    begin = [Beginning(declared(held.config), held.line, tuple(days), held.run, passes) for held, _ in left]
    check_tracker(read.tracking)
    with ray_session(read), LiveView(read, *(held.line for held in lines)) as view:
        admission = _admission(read, first.line, start, RunScope(days=tuple(days), passes=passes), parts)
        encoder = Encoder(read.log_schema, statistics[0], vocabularies=admission.vocabularies)
        logs, ingest = Storage(read.logs.path), read.ingest
        plan = RunPlan(logs, parts, passes, encoder, ingest, read.seed, tuple(begin), read.holdout)
        board, admitted = ProgressBoard.remote(), ray.put(admission)
        what = [f"train {held.line.name}" if len(lines) > 1 else "train" for held in lines]
        jobs = [
            TrainJob(held.config, own, held.line, tuple(days), parts, passes, read.log_schema, admitted, board, title)
            for held, own, title in zip(lines, statistics, what, strict=True)
        ]
        try:
            reported = run_workers(read, plan, train_worker, jobs, board, view.see)
        except BaseException as error:
            ending, reason = ending_of(error)
            with contextlib.suppress(OSError, DataError):  # an unreachable storage may be the reason
                _end_attempts(lines, days, passes, ending, reason)
            raise
    return finished_checkpoints(lines, days, passes, reported)


def check_slots(config: Config, logs: Sequence[DayLog]) -> None:
    """Check that the slots of logs are those that `model.slot_bias` declares.

    Raises:
        DataError: A day has others.
    """
    bias = config.model.slot_bias
    for log in logs if bias is not None else ():
        assert bias is not None
        if log.slots_unchecked:
            files = (log.day, log.slots_unchecked)
            logger.warning("%s: the slots of %d files are not checked, since they have no statistics of them", *files)
        try:
            if log.slots is not None:
                bias.check_slots(*log.slots)
        except DataError as error:
            raise DataError(f"{log.day}: {error}") from error


def warn_of_small_units(logs: Sequence[DayLog]) -> None:
    """Log the cost of reading logs with many small row groups."""
    for log in logs:
        units, rows = len(log.units), log.num_rows
        if units >= _MANY_UNITS and rows / units < _FEW_ROWS:
            logger.warning(
                "%s has %d row groups of %.0f rows on average: reading one takes some %.1f ms whatever its size, "
                "%.0f s in all; write row groups of %d rows and more",
                *(log.day, units, rows / units, 1000 * _UNIT_S, units * _UNIT_S, 10 * _FEW_ROWS),
            )


def check_alike(read: Config, lines: Sequence[HeldLine], days: Sequence[str]) -> None:
    """Check that all models would read the same rows.

    Raises:
        ConfigError: A model would not; names the difference.
    """
    schema = read.log_schema
    if len(lines) > 1 and (schema.vocabularies or late_days(schema, days)):
        raise ConfigError("tables with a vocabulary and tasks with delay_days are trained one model at a time")
    for held in lines:
        own = held.config.log_schema
        other = [name for name in OF_ROWS if getattr(held.config, name) != getattr(read, name)]
        other += [] if own.model_copy(update={"tasks": schema.tasks}) == schema else ["schema"]
        other += [f"task {task.name}" for task in own.tasks if task not in schema.tasks]
        if other:
            raise ConfigError(f"line {held.line.name!r} cannot be trained with the others: its {other[0]} is another")


def _check_same_statistics(lines: Sequence[HeldLine], statistics: Sequence[Statistics | None]) -> None:
    """Check that all models standardise rows alike.

    Raises:
        ConfigError: A model does not; names its line.
    """
    numbers = [own.numbers if own else None for own in statistics]
    other = next((held for held, own in zip(lines, numbers, strict=True) if own != numbers[0]), None)
    if other is not None:
        raise ConfigError(
            f"line {other.line.name!r} cannot be trained with line {lines[0].line.name!r}: its {STATISTICS} has other "
            "numbers, fit both on the same days"
        )


def _admission(config: Config, line: Line, start: Manifest | None, run: RunScope, parts: Sequence[Part]) -> Admission:
    """Return the vocabularies of this run: those of its own checkpoint, or yesterday's with the days' new ids."""
    logs = [part.log for part in parts if part.is_last]
    if start is None or not config.log_schema.vocabularies:
        return admit(config, {}, logs)
    known = read_vocabularies(*line.place(start.checkpoint), config.log_schema)
    if start.run == run:
        return Admission(known, None, start.new_ids)
    return admit(config, known, logs)


def parts_to_train(
    config: Config, line: Line, days: Sequence[str], measured: MeasuredColumns | None = None
) -> tuple[Part, ...]:
    """Return the parts to read for days; late labels only of days that the line has trained, or trains now.

    Args:
        config: The project's configuration.
        line: The line.
        days: ISO dates.
        measured: Further columns that the files need, since the days are measured too; None: none.

    Raises:
        DataError: A log is missing, damaged, or lacks declared columns.
    """
    schema = config.log_schema
    late, known = late_days(schema, days), set(days)
    if late:
        known |= {entry.day for entry in Ledger(line).chain() if entry.skipped is None}
    listed = sorted({*(day for day in late if day in known), *days})
    columns = read_columns(schema.columns(), config.holdout)
    found = check_days(Storage(config.logs.path), listed, config.ingest.unit.max_rows, schema, columns, measured)
    return parts_of(schema, days, {log.day: log for log in found})


def finished_checkpoints(
    lines: Sequence[HeldLine], days: Sequence[str], passes: int, reported: dict[str, Any]
) -> list[Manifest]:
    """Record the end of the workers' attempts, and return their finished checkpoints.

    Raises:
        DataError: The workers refused to continue.
        Interrupted: The workers were asked to end.
        RunFailed: A finished checkpoint is missing.
    """
    begun = [held for held, reached in zip(lines, reported["reached"], strict=True) if reached]
    if reported.get("refused"):
        where = f"line {begun[-1].line.name!r}: " if len(lines) > 1 and begun else ""
        _end_attempts(lines, days, passes, "refused", where + reported["refused"])
        raise DataError(where + reported["refused"])
    if reported.get("interrupted"):
        _end_attempts(lines, days, passes, "interrupted")
        newest = [reached for reached in reported["reached"] if reached][-1]
        raise Interrupted(
            f"stopped by SIGTERM at step {newest['step']}, saved as {newest['checkpoint']}: start the same command "
            "again to go on"
        )
    finished = []
    for held, reached in zip(lines, reported["reached"], strict=True):
        line, name = held.line, reached.get("checkpoint")
        end = line.read_manifest(name) if name else line.newest()
        if end is None or not is_last(end, days, passes):
            raise RunFailed("the last day's checkpoint is gone or damaged: start the same command again")
        line.end_attempts(days, held.run, "done")
        finished.append(end)
    if reported["asked_to_stop"]:
        raise Interrupted(f"stopped by SIGTERM after {days[-1]} was trained: start the same command again to go on")
    return finished


def _end_attempts(
    lines: Sequence[HeldLine], days: Sequence[str], passes: int, result: AttemptResult, reason: str | None = None
) -> None:
    """Record the early end of a run of several models; models that reached their end are done."""
    for held in lines:
        newest = held.line.newest() if len(lines) > 1 else None  # a single model is not at its end
        is_done = newest is not None and is_last(newest, days, passes)
        if is_done:
            held.line.end_attempts(days, held.run, "done")
        else:
            held.line.end_attempts(days, held.run, result, reason)


def _frozen_statistics(config: Config, line: Line, start: Manifest | None) -> Statistics | None:
    if start is None:
        return load_statistics(config, line)
    return start.statistics
