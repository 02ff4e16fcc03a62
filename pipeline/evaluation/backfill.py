"""Backfill: checkpoints measured on past days, each pair once, by one group of workers.

Days follow one another. A day is decoded once for a group of models that fit into memory together, and encoded once for
those that encode alike. The cells of a day are committed as the day ends, so a command that is killed goes on.
"""

import contextlib
import functools
import itertools
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import ray
import torch.distributed as dist
from ray.data import DataIterator

from features.errors import ConfigError, DataError, Interrupted
from pipeline.cluster.progress import ProgressBoard
from pipeline.cluster.session import ray_session, run_workers
from pipeline.config.project import Config
from pipeline.evaluation.accumulate import Measured
from pipeline.evaluation.cells import (
    AskedCells,
    Cell,
    DatedCheckpoint,
    cell_of,
    chosen_checkpoints,
    chosen_days,
    encoder_digest,
)
from pipeline.evaluation.evaluate import in_order, passed_over
from pipeline.evaluation.gate_use import GateUse
from pipeline.evaluation.metric_table import MetricTable, begin_after
from pipeline.evaluation.resident_models import ResidentModels, measure_reading, reporter_of
from pipeline.evaluation.subject import encoder_of
from pipeline.ingest.datasource import read_columns
from pipeline.ingest.parts import Part
from pipeline.ingest.plan import RunPlan
from pipeline.ingest.receive import read_segments, receive_blocks
from pipeline.ingest.units import DayLog, check_days
from pipeline.lineage.compatible import check_same_schema
from pipeline.lineage.line import Line
from pipeline.lineage.log_form import check_ids
from pipeline.storage.files import Storage
from pipeline.trainer.worker_setup import begin_worker, refuse_damage

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Reading:
    """Models that one reading of a day measures.

    Args:
        part: The day, and the encoders of its rows.
        cells: Cell of each model.
        checkpoints: Name of each model's checkpoint, as seen from the command's line.
        encoders: Place of each model's encoder among the part's.
        ends_day: True for the last reading of its day.
    """

    part: Part
    cells: tuple[Cell, ...]
    checkpoints: tuple[str, ...]
    encoders: tuple[int, ...]
    ends_day: bool


@dataclass(frozen=True, slots=True)
class BackfillJob:
    """Job of every worker.

    Args:
        config: The project's configuration.
        line: Line by which the checkpoints are named.
        readings: Readings in order, those of a day one after the other.
        table: Table to commit to.
        board: A `ProgressBoard`.
    """

    config: Config
    line: Line
    readings: tuple[Reading, ...]
    table: MetricTable
    board: Any


@dataclass(frozen=True, slots=True)
class Backfilled:
    """Result of a backfill.

    Args:
        cells: The cells that were asked for, in the order of days and checkpoints.
        against: Key of the cell of the checkpoint that the others are held against, by day; empty: none.
        num_measured: Number of cells that this command measured.
        table: Table that has the figures of all cells.
    """

    cells: list[Cell]
    against: dict[str, str]
    num_measured: int
    table: MetricTable


def backfill(config: Config, asked: AskedCells) -> Backfilled:
    """Measure the cells that are asked for and not committed yet.

    Args:
        config: The project's configuration.
        asked: The cells.

    Raises:
        ConfigError: A checkpoint does not exist, no cell is left, or the root cannot be written.
        DataError: A day has no log or no checkpoint, or a checkpoint does not fit the configuration.
    """
    _check(config, asked)
    line, table = Line.of(config.root, config.line), MetricTable.of(config.root)
    asked_for = chosen_checkpoints(line, asked.checkpoints, skip_missing=asked.skip_missing)
    base = chosen_checkpoints(line, asked.against, "--against") if asked.against else []
    if len(base) > 1:
        raise ConfigError(f"--against {asked.against!r} names {len(base)} checkpoints: name one")
    checkpoints = list({one.digest: one for one in [*asked_for, *base]}.values())
    for one in checkpoints:
        check_same_schema(config, one.manifest)
    logs = _listed(config, chosen_days(Storage(config.logs.path), asked, asked_for))
    pairs = {log.day: [one for one in asked_for if asked.has(one.day, log.day)] for log in logs}
    cells = {log.day: [cell_of(config, one, log, asked.rows) for one in pairs[log.day]] for log in logs}
    against = {log.day: cell_of(config, base[0], log, asked.rows).key for log in logs} if base else {}
    wanted = {day: list({one.digest: one for one in [*found, *base]}.values()) for day, found in pairs.items()}
    todo = _todo(config, table, logs, wanted, asked)
    if todo:
        _measure(config, line, table, todo, asked)
    num_measured = sum(len(found) for _, found in todo)
    return Backfilled([cell for found in cells.values() for cell in found], against, num_measured, table)


def _check(config: Config, asked: AskedCells) -> None:
    if asked.rows == "held_out" and config.holdout is None:
        raise ConfigError("the hold-out is asked for, and the config has no section holdout")
    if asked.against and config.evaluation.bootstrap is None:
        raise ConfigError("--against resamples users for its intervals, and the config has no evaluation.bootstrap")
    MetricTable.of(config.root).storage.check_writable()


def _listed(config: Config, days: Sequence[str]) -> list[DayLog]:
    columns, measured = read_columns(config.log_schema.columns(), config.holdout), config.evaluation.measured_columns
    logs, max_rows = Storage(config.logs.path), config.ingest.unit.max_rows
    return check_days(logs, days, max_rows, config.log_schema, columns, measured)


Todo = list[tuple[DayLog, list[tuple[DatedCheckpoint, Cell]]]]
"""Days with cells to measure, each with its checkpoints and their cells."""


def _todo(
    config: Config,
    table: MetricTable,
    logs: Sequence[DayLog],
    wanted: dict[str, list[DatedCheckpoint]],
    asked: AskedCells,
) -> Todo:
    """Return the cells that are not committed; those that are count from now on."""
    todo: Todo = []
    for log in logs:
        done = table.keys(log.day)
        found = [(one, cell_of(config, one, log, asked.rows)) for one in wanted[log.day]]
        missing = [(one, cell) for one, cell in found if cell.key not in done]
        table.renew(log.day, [cell.key for _, cell in found])
        if missing:
            todo.append((log, missing))
    return todo


def _measure(config: Config, line: Line, table: MetricTable, todo: Todo, asked: AskedCells) -> None:
    """Measure cells on workers, which commit them day by day."""
    checkpoints = {one.digest: one for _, found in todo for one, _ in found}
    with contextlib.ExitStack() as stack:
        for one in checkpoints.values():
            stack.enter_context(line.pinned(one.name, "backfill"))
            line.intact_manifest(one.name)
            check_ids(config, one.manifest, [log for log, found in todo if any(one is other for other, _ in found)])
        logger.info("measuring %d cells on %d days", sum(len(found) for _, found in todo), len(todo))
        stack.enter_context(ray_session(config))
        readings, plan = _plan(config, line, table, todo, asked)
        board = ProgressBoard.remote()
        job = BackfillJob(config, line, readings, table, board)
        reported = run_workers(config, plan, backfill_worker, job, board)
    if reported.get("refused"):
        raise DataError(reported["refused"])
    if reported.get("stopped"):
        raise Interrupted("stopped by SIGTERM after the day was committed: start the same command again to go on")


def _plan(
    config: Config, line: Line, table: MetricTable, todo: Todo, asked: AskedCells
) -> tuple[tuple[Reading, ...], RunPlan]:
    """Return the readings, and the plan of their stream; encoders but the first are put into the object store."""
    places, encoders = {}, []
    for one in (one for _, found in todo for one, _ in found):
        digest = encoder_digest(one.manifest)
        if digest not in places:
            places[digest] = len(places)
            encoder = encoder_of(config, line, one.manifest, with_truth=False)
            encoders.append(ray.put(encoder) if encoders else encoder)
    readings = tuple(itertools.chain.from_iterable(_readings(config, *day, places) for day in todo))
    days = {log.day: [cell.key for _, cell in found] for log, found in todo}
    keys = [(reading.part.log.day, days[reading.part.log.day]) for reading in readings]
    held = config.holdout if asked.rows == "held_out" else None
    plan = RunPlan(
        logs=Storage(config.logs.path),
        parts=tuple(reading.part for reading in readings),
        passes=1,
        encoder=encoders[0],
        ingest=in_order(config),
        seed=config.seed,
        starts=(functools.partial(begin_after, table, keys),),
        holdout=held,
        rows=asked.rows,
        further=tuple(encoders[1:]),
    )
    return readings, plan


def _readings(
    config: Config, log: DayLog, found: Sequence[tuple[DatedCheckpoint, Cell]], places: dict[str, int]
) -> list[Reading]:
    """Divide the models of a day into groups that fit into memory together, those that encode alike side by side."""
    encoder_at = {one.digest: places[encoder_digest(one.manifest)] for one, _ in found}
    ordered = sorted(found, key=lambda pair: encoder_at[pair[0].digest])
    size = num_resident(config, [one for one, _ in found])
    groups = [ordered[first : first + size] for first in range(0, len(ordered), size)]
    readings = []
    for group in groups:
        used = sorted({encoder_at[one.digest] for one, _ in group})
        readings.append(
            Reading(
                part=Part(log.day, log, encoders=tuple(used)),
                cells=tuple(cell for _, cell in group),
                checkpoints=tuple(one.name for one, _ in group),
                encoders=tuple(used.index(encoder_at[one.digest]) for one, _ in group),
                ends_day=group is groups[-1],
            )
        )
    return readings


def num_resident(config: Config, checkpoints: Sequence[DatedCheckpoint]) -> int:
    """Return how many models the workers hold at once: as many as fit into `evaluation.resident_mb`, at least one."""
    largest = max(sum(mark.bytes for mark in one.manifest.files.values()) for one in checkpoints)
    return max(1, config.evaluation.resident_mb * 2**20 // max(largest, 1))


@refuse_damage
def backfill_worker(job: BackfillJob, lane: DataIterator) -> dict[str, Any]:
    """Measure the readings of the stream and commit each day as it ends; runs on every worker of Ray Train."""
    config = job.config
    groups, device = begin_worker(config)
    resident = ResidentModels(config, job.line, groups, device)
    measured: list[tuple[Cell, Any]] = []
    blocks = receive_blocks(lane, config.ingest.prefetch_units)
    for segment in read_segments(blocks, passed_over(config)):
        reading = job.readings[segment.header.place]
        loaded = resident.hold(reading.checkpoints)
        tasks, num_rows = config.log_schema.tasks, reading.part.log.num_rows
        gates = [GateUse(one.state.model) for one in loaded]
        metrics = [Measured(tasks, None, one, config.evaluation, num_rows, with_draws=True) for one in gates]
        models = list(zip(loaded, reading.encoders, metrics, strict=True))
        reporter = reporter_of(job.board, reading.part)
        refused = measure_reading(config, reading.part, segment.parcels, groups, models, reporter)
        if refused is not None:
            return {"refused": f"{reading.part.log.day}: {refused}"}
        try:
            results = [one.results(groups.counts)["tasks"] for one in metrics]
        except DataError as error:  # on all ranks alike
            return {"refused": f"{reading.part.log.day}: {error}"}
        measured += zip(reading.cells, results, strict=True)
        if reading.ends_day and _ends(job, groups, reading, measured):
            return {"stopped": reading is not job.readings[-1]}
        measured = [] if reading.ends_day else measured
    return {}


def _ends(job: BackfillJob, groups: Any, reading: Reading, measured: Sequence[tuple[Cell, Any]]) -> bool:
    """Commit the cells of a day on rank 0; return True, on all ranks alike, if the command was asked to end."""
    groups.on_first(None, lambda _: job.table.commit(reading.part.log.day, measured))
    asked = dist.get_rank() == 0 and bool(ray.get(job.board.is_stopping.remote()))
    return any(groups.gather(asked))
