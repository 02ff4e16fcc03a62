"""Predictions of a checkpoint for every row of some days, as Parquet in the log's own order and files."""

import functools
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import ray
import torch
import torch.distributed as dist
from ray.data import DataIterator
from torch import Tensor

from features.errors import DataError, Interrupted
from features.tasks import TaskConfig
from models.assembly import task_heads
from models.batch import RankingBatch
from models.tasks import predictions_of
from pipeline.cluster.progress import ProgressBoard
from pipeline.cluster.session import ray_session, run_workers
from pipeline.config.evaluation import EvaluationConfig
from pipeline.config.project import Config
from pipeline.evaluation.cells import dated_checkpoint
from pipeline.evaluation.evaluate import EvaluateJob, Subject, in_order, listed_days, load, measure_part, passed_over
from pipeline.evaluation.subject import encoder_of, published
from pipeline.ingest.cursor import StoredCursor
from pipeline.ingest.datasource import read_forwards
from pipeline.ingest.lanes import ResumePoint
from pipeline.ingest.parts import Part, whole_days
from pipeline.ingest.plan import RunPlan, StreamStart
from pipeline.ingest.receive import read_segments, receive_blocks
from pipeline.ingest.units import Unit, audit_sum
from pipeline.lineage.compatible import check_same_schema
from pipeline.lineage.line import Line
from pipeline.lineage.log_form import check_ids
from pipeline.scoring.written_predictions import AboutPredictions, PredictedDay, PredictionFiles
from pipeline.storage.files import Storage
from pipeline.trainer.worker_setup import Groups, begin_worker, refuse_damage

_WAITING_UNITS = 8  # units that a rank holds while they are written


@dataclass(frozen=True, slots=True)
class Columns:
    """Columns of the predictions.

    Args:
        keys: Columns that are copied from the log.
        tasks: Names of the predicted tasks.
        labels: True for the labels and weights of these tasks too.
    """

    keys: tuple[str, ...]
    tasks: tuple[str, ...]
    labels: bool = False


@dataclass(frozen=True, slots=True)
class PredictJob:
    """Job of every worker.

    Args:
        reading: The pass over the days.
        logs: Storage of the logs, built by the command, since a relative path means another place in a worker.
        columns: Columns to write.
        out: The written files.
    """

    reading: EvaluateJob
    logs: Storage
    columns: Columns
    out: PredictionFiles


def predict(
    config: Config,
    days: Sequence[str],
    out: str,
    checkpoint: str | None = None,
    *,
    labels: bool = False,
    auxiliary: bool = False,
) -> dict[str, Any]:
    """Write the predictions of every row of some days that are not there yet.

    Args:
        config: The project's configuration; `predictions.keys` names the copied columns.
        days: ISO dates, in order.
        out: Directory or s3:// prefix, empty or with predictions of the same checkpoint and columns.
        checkpoint: Name of the checkpoint below the line; None: the newest published.
        labels: True to write labels and weights too.
        auxiliary: True to predict the auxiliary tasks too.

    Returns:
        The figures of the command's JSON line.

    Raises:
        ConfigError: The checkpoint does not exist, or the target has something else.
        DataError: The logs or the checkpoint do not fit the configuration.
    """
    config = config.model_copy(update={"evaluation": EvaluationConfig()})  # no column beyond those of the features
    line = Line.of(config.root, config.line)
    name = checkpoint or published(line)
    tasks = [task for task in config.log_schema.tasks if auxiliary or task.role == "main"]
    columns = Columns(tuple(config.predictions.keys), tuple(task.name for task in tasks), labels)
    with line.pinned(name, "predict"):
        manifest = line.intact_manifest(name)
        check_same_schema(config, manifest)
        listed = listed_days(config, days, config.predictions.keys)
        check_ids(config, manifest, listed)
        files = PredictionFiles(Storage(out))
        files.begin(_about(line, name, columns, tasks))
        left = whole_days([log for log in listed if not files.is_done(log)])
        for log in listed:
            if files.day(log.day) is not None:  # a kill may have come before
                files.remove_parts(log.day)
        if left:
            _compute(config, line, name, left, columns, files)
    done = [record for day in days if (record := files.day(day)) is not None]
    return {
        "result": "predicted" if left else "nothing to do",
        "checkpoint": name,
        "days": list(days),
        "out": files.storage.url,
        "rows": sum(record.rows for record in done),
        "left_out_units": sum(len(record.left_out) for record in done),
    }


def _about(line: Line, name: str, columns: Columns, tasks: Sequence[TaskConfig]) -> AboutPredictions:
    found = dated_checkpoint(line, name)
    kinds = {task.name: task.kind for task in tasks}
    return AboutPredictions(
        line=found.line,
        checkpoint=found.own_name,
        checkpoint_digest=found.digest,
        keys=columns.keys,
        tasks=kinds,
        labels=columns.labels,
    )


def _compute(
    config: Config, line: Line, name: str, left: tuple[Part, ...], columns: Columns, files: PredictionFiles
) -> None:
    """Predict days on workers, which commit unit by unit."""
    encoder = encoder_of(config, line, line.intact_manifest(name), with_truth=False)
    logs, ingest = Storage(config.logs.path), in_order(config)
    start = functools.partial(begin_after_parts, files, left, config.seed)
    plan = RunPlan(logs, left, 1, encoder, ingest, config.seed, (start,), None, "all")
    with ray_session(config):
        board = ProgressBoard.remote()
        reading = EvaluateJob(config, (Subject(config, line, name),), left, None, board)
        reported = run_workers(config, plan, predict_worker, PredictJob(reading, logs, columns, files), board)
    if reported.get("refused"):
        raise DataError(reported["refused"])
    if reported.get("stopped"):
        raise Interrupted("stopped by SIGTERM after a day was complete: start the same command again to go on")


def begin_after_parts(files: PredictionFiles, left: Sequence[Part], seed: int) -> StreamStart:
    """Begin a stream after the units that an earlier start of the workers has written.

    Args:
        files: The written files.
        left: Parts to read, one per day.
        seed: The run's seed.
    """
    for number, part in enumerate(left):
        log = part.log
        if files.is_done(log):
            continue
        done = files.parts(log)
        if not done:
            return StreamStart(done=number)
        units = [log.units[place] for place in sorted(done)]
        counted = {unit.key: (unit.num_rows, audit_sum(unit.salt, np.arange(unit.num_rows))) for unit in units}
        lanes = [[unit.key for unit in log.units]]
        seen = StoredCursor(units=counted)
        return StreamStart(resume=ResumePoint("", 0, part.day, log.day, seen, lanes, False, seed, False, log.files))
    return StreamStart(done=len(left))


@refuse_damage
def predict_worker(job: PredictJob, lane: DataIterator) -> dict[str, Any]:
    """Predict the rows of the stream, and complete each day as it ends; runs on every worker of Ray Train."""
    reading = job.reading
    config = reading.config
    groups, device = begin_worker(config)
    loaded = load(reading.subjects[0], None, groups, device)
    blocks = receive_blocks(lane, config.ingest.prefetch_units)
    for segment in read_segments(blocks, passed_over(config)):
        part = next(part for part in reading.parts if part.key == (segment.header.day, segment.header.log_day))
        with UnitWriter(job, part) as writer:
            refused = measure_part(reading, segment, groups, loaded, writer)
            if refused is None:
                refused = next((reason for reason in groups.gather(writer.finish()) if reason), None)
        if refused is not None:
            return {"refused": refused}
        refused = _complete(job, groups, part, writer.unreadable)
        if refused is not None:
            return {"refused": refused}
        asked = dist.get_rank() == 0 and bool(ray.get(reading.board.is_stopping.remote()))
        if any(groups.gather(asked)) and part is not reading.parts[-1]:
            return {"stopped": True}
    return {}


def _complete(job: PredictJob, groups: Groups, part: Part, unreadable: dict[str, str]) -> str | None:
    """Join the parts of a day, each rank some files, and record the day as complete; collective.

    Returns:
        The error of reading a key column, the same text on every rank; None without one.

    Raises:
        RuntimeError: A unit has no part although it could be read.
    """
    log, rank, num_ranks = part.log, dist.get_rank(), dist.get_world_size()
    reasons = {key: text for of_rank in groups.gather(unreadable) for key, text in of_rank.items()}
    parts = job.out.parts(log)
    lost = [unit.key for number, unit in enumerate(log.units) if number not in parts and unit.key not in reasons]
    if lost and job.reading.config.ingest.on_bad_unit == "fail":
        raise RuntimeError(f"{log.day}: {len(lost)} units have no predictions, e.g. {lost[0]}")
    reasons |= dict.fromkeys(lost, "it could not be read: see the log of the workers")
    by_file: dict[str, list[Unit]] = {}
    for number in sorted(parts):
        by_file.setdefault(log.units[number].file, []).append(log.units[number])
    mine = list(by_file.values())[rank::num_ranks]
    rows, problem = 0, None
    try:
        rows = sum(job.out.join(log, units, _keys_of(job, units)) for units in mine)
    except DataError as error:
        problem = str(error)
    refused = next((text for text in groups.gather(problem) if text), None)
    if refused is not None:
        return refused

    def record(counts: Sequence[int]) -> None:
        expected = sum(unit.num_rows for number, unit in enumerate(log.units) if number in parts)
        assert sum(counts) == expected, (counts, expected)
        done = PredictedDay(day=log.day, rows=expected, left_out=reasons, files=dict(log.files))
        job.out.complete(done, by_file.keys())

    groups.on_first(rows, record)
    return None


def _keys_of(job: PredictJob, units: Sequence[Unit]) -> Iterator[pa.Table]:
    """Yield the key columns of each unit of a file, which is read once, forwards."""
    keys = list(job.columns.keys)
    if keys:
        yield from (pa.table({name: rows[name] for name in keys}) for rows in read_forwards(job.logs, units, keys))
    else:
        yield from (pa.table({}) for _ in units)


class UnitWriter:
    """Writer of a rank's predictions, unit by unit, in the background.

    Args:
        job: The job.
        part: The day.

    Attributes:
        problem: First error of a batch, if any; the ranks continue together.
        unreadable: Reason by key of each unit that could not be read.
    """

    def __init__(self, job: PredictJob, part: Part) -> None:
        self.problem: str | None = None
        self.unreadable: dict[str, str] = {}
        self._job, self._log = job, part.log
        self._heads = task_heads(job.reading.config.log_schema.tasks)
        self._open: dict[int, list[tuple[np.ndarray, dict[str, np.ndarray]]]] = {}
        self._pool = ThreadPoolExecutor(2, "write-predictions")
        self._writing: list[Future[None]] = []

    def __enter__(self) -> "UnitWriter":
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._pool.shutdown(cancel_futures=True)

    def update(self, outputs: Tensor, batch: RankingBatch) -> None:
        """Keep the predictions of a batch, and write the units that are complete."""
        self.unreadable |= {self._log.units[unit].key: text for unit, text in batch.cursor.quarantined.items()}
        values = self._values(outputs.cpu(), batch.to(torch.device("cpu")))
        first = 0
        for span in batch.cursor.spans:
            end = first + len(span.rows)
            rows = {name: value[first:end] for name, value in values.items()}
            pieces = self._open.setdefault(span.unit, [])
            pieces.append((span.rows, rows))
            if sum(len(numbers) for numbers, _ in pieces) >= self._log.units[span.unit].num_rows:
                self._write(span.unit, self._open.pop(span.unit))
            first = end

    def _values(self, outputs: Tensor, batch: RankingBatch) -> dict[str, np.ndarray]:
        """Return the columns of a batch but for the keys."""
        columns, schema = self._job.columns, self._job.reading.config.log_schema
        predicted = predictions_of(self._heads, outputs)
        found = {f"prediction_{name}": predicted[name].to(torch.float32).numpy() for name in columns.tasks}
        if not columns.labels:
            return found
        for place, task in enumerate(schema.tasks):
            if task.name in columns.tasks:
                labels = torch.where(batch.in_space[:, place], batch.labels[:, place], torch.nan)
                found[f"label_{task.name}"] = labels.numpy()
                if task.weight is not None or task.sampling is not None:
                    found[f"weight_{task.name}"] = batch.weight[:, place].numpy()
        return found

    def _write(self, unit: int, pieces: list[tuple[np.ndarray, dict[str, np.ndarray]]]) -> None:
        """Check that the rows of a unit are there, each once and in order, and begin to write them."""
        numbers = np.concatenate([numbers for numbers, _ in pieces])
        key = self._log.units[unit].key
        if not np.array_equal(numbers, np.arange(self._log.units[unit].num_rows)):
            self.problem = self.problem or f"{key}: its rows did not come once each and in order"
            return
        values = {name: np.concatenate([rows[name] for _, rows in pieces]) for name in pieces[0][1]}
        self._writing.append(self._pool.submit(self._commit, unit, values))
        if len(self._writing) > _WAITING_UNITS:
            self._note(self._writing.pop(0))

    def _commit(self, unit: int, values: dict[str, np.ndarray]) -> None:
        found = {name: _array(one, is_label=name.startswith("label_")) for name, one in values.items()}
        self._job.out.write_part(self._log, self._log.units[unit], pa.table(found))

    def _note(self, writing: Future[None]) -> None:
        try:
            writing.result()
        except DataError as error:
            self.problem = self.problem or str(error)

    def finish(self) -> str | None:
        """Wait until all units are written; return the first error.

        Raises:
            OSError: The target could not be written.
        """
        while self._writing:
            self._note(self._writing.pop(0))
        if self._open and self.problem is None:
            key = self._log.units[next(iter(self._open))].key
            self.problem = f"{key}: the last of its rows did not come"
        return self.problem


def _array(values: np.ndarray, *, is_label: bool) -> pa.Array:
    """Return a column: lists of probabilities for a multiclass task; a label outside the space is NaN, and null."""
    if values.ndim == 2:
        return pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), values.shape[1])
    return pa.array(values, from_pandas=is_label)
