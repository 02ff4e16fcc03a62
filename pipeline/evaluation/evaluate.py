"""Evaluation of a checkpoint on days: the model, its baseline and the best reachable figures, on the same rows."""

import gc
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from ray.data import DataIterator
from torchrec.distributed.train_pipeline import TrainPipelineBase

from features.errors import ConfigError, DataError, Interrupted
from features.holdout import Rows
from models.ranker import StepOutput
from pipeline.cluster.progress import ProgressBoard, ProgressReporter
from pipeline.cluster.session import ray_session, run_workers
from pipeline.config.ingest import IngestConfig, ShuffleConfig
from pipeline.config.project import Config
from pipeline.evaluation.accumulate import Measured
from pipeline.evaluation.gate_use import GateUse
from pipeline.evaluation.left_out import LeftOut, refusal
from pipeline.evaluation.subject import encoder_of, published
from pipeline.ingest.batcher import Batcher
from pipeline.ingest.datasource import read_columns
from pipeline.ingest.parts import Part, whole_days
from pipeline.ingest.plan import RunPlan, StreamStart
from pipeline.ingest.receive import Segment, read_segments, receive_blocks
from pipeline.ingest.units import DayLog, check_days
from pipeline.lineage.compatible import check_same_schema
from pipeline.lineage.line import Line
from pipeline.lineage.log_form import check_ids
from pipeline.log_passes.popularity import Popularity, fit_popularity
from pipeline.storage.files import Storage
from pipeline.trainer.step_sync import CountedBatches
from pipeline.trainer.train_state import TrainState
from pipeline.trainer.worker_setup import Groups, begin_worker, build_state, build_train_pipeline, refuse_damage

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Subject:
    """A model to measure.

    Args:
        config: Configuration of the model.
        line: Line of the checkpoint.
        checkpoint: Name of the checkpoint on the line.
    """

    config: Config
    line: Line
    checkpoint: str


@dataclass(frozen=True, slots=True)
class EvaluateJob:
    """Job of every worker of an evaluation.

    Args:
        config: Configuration whose features and tasks the rows are read with.
        subjects: Models, each measured in a pass of its own over the same rows.
        parts: Parts to read.
        popularity: The popularity baseline, if any.
        board: A `ProgressBoard`, or None.
    """

    config: Config
    subjects: tuple[Subject, ...]
    parts: tuple[Part, ...]
    popularity: Popularity | None
    board: Any


def evaluate(
    config: Config, days: Sequence[str], checkpoint: str | None, popularity_days: Sequence[str], rows: Rows = "all"
) -> dict[str, Any]:
    """Measure a checkpoint on days, all of them together.

    Args:
        config: The project's configuration.
        days: ISO dates.
        checkpoint: Name of the checkpoint below the line; None: the newest published.
        popularity_days: Days of the popularity baseline; empty: none.
        rows: All rows, or only those that are `held_out`.

    Returns:
        The figures of the command's JSON line; `tasks` has one entry per task with the metrics of the model, of
        popularity and of the truth.

    Raises:
        ConfigError: The checkpoint does not exist.
        DataError: The logs or the checkpoint do not fit the configuration.
    """
    if popularity_days and config.evaluation.popularity is None:
        raise ConfigError("days of a popularity baseline are given, but evaluation.popularity names no id feature")
    if rows == "held_out" and config.holdout is None:
        raise ConfigError("the hold-out is asked for, and the config has no section holdout")
    line = Line.of(config.root, config.line)
    name = checkpoint or published(line)
    measured = measure_days(config, line, name, days, rows, popularity_days)
    return {"result": "evaluated", "checkpoint": name, "days": list(days), "tasks": measured.tasks}


def measure_days(
    config: Config,
    line: Line,
    checkpoint: str,
    days: Sequence[str],
    rows: Rows = "all",
    popularity_days: Sequence[str] = (),
) -> "Measurement":
    """Measure one checkpoint on days, all of them together; see `evaluate`."""
    logger.info("measuring %s on %s", checkpoint, ", ".join(days))
    with line.pinned(checkpoint, "evaluate"):
        logs, history = listed_days(config, days), listed_days(config, popularity_days)
        check_ids(config, line.read_manifest(checkpoint), [*history, *logs])
        (measured,) = measure(config, line, [checkpoint], whole_days(logs), rows, history)
    return measured


def listed_days(config: Config, days: Sequence[str], further: Sequence[str] = ()) -> list[DayLog]:
    """Return the units of days, after a check that their files have the columns to measure, and further columns."""
    read = read_columns(config.log_schema.columns(with_truth=True), config.holdout)
    columns, measured = list(dict.fromkeys([*read, *further])), config.evaluation.measured_columns
    logs, max_rows = Storage(config.logs.path), config.ingest.unit.max_rows
    return check_days(logs, days, max_rows, config.log_schema, columns, measured)


def in_order(config: Config) -> IngestConfig:
    """Return the reading of a log that is not trained on: in the order of the files."""
    return config.ingest.model_copy(update={"shuffle": ShuffleConfig(units=False, rows=False)})


@dataclass(frozen=True, slots=True)
class Measurement:
    """Metrics of one checkpoint.

    Args:
        tasks: One entry per task, with the metrics of the model, of popularity and of the truth.
        expert_use: Mean weight of each expert, per gate, by module of gates.
        expert_use_deviation: Standard deviation of that weight over the rows.
    """

    tasks: list[dict[str, Any]]
    expert_use: dict[str, list[list[float]]]
    expert_use_deviation: dict[str, list[list[float]]] = field(default_factory=dict)


def measure(
    config: Config,
    line: Line,
    checkpoints: Sequence[str],
    parts: tuple[Part, ...],
    rows: Rows,
    history: Sequence[DayLog] = (),
) -> list[Measurement]:
    """Measure checkpoints, which share their statistics, on the same rows.

    Args:
        config: The project's configuration.
        line: Line of the checkpoints.
        checkpoints: Names on the line of complete, undamaged checkpoints.
        parts: Parts to read, with the tasks that are measured on each.
        rows: All rows, or only those that are `held_out`.
        history: Days of the popularity baseline.

    Raises:
        DataError: The logs or a checkpoint do not fit the configuration.
    """
    return measure_together(config, [Subject(config, line, name) for name in checkpoints], parts, rows, history)


def measure_together(
    config: Config,
    subjects: Sequence[Subject],
    parts: tuple[Part, ...],
    rows: Rows = "all",
    history: Sequence[DayLog] = (),
) -> list[Measurement]:
    """Measure models, which share features and statistics, on the same rows, read by one group of workers.

    Args:
        config: Configuration whose features and tasks the rows are read with; each model has all its tasks or some.
        subjects: The models.
        parts: Parts to read, with the tasks that are measured on each.
        rows: All rows, or only those that are `held_out`.
        history: Days of the popularity baseline.

    Raises:
        DataError: The logs or a checkpoint do not fit the configuration.
    """
    if config.log_schema.vocabularies and len(subjects) > 1:  # a row of a table is not the same id in both
        return [measure_together(config, [subject], parts, rows, history)[0] for subject in subjects]
    manifests = [subject.line.intact_manifest(subject.checkpoint) for subject in subjects]
    for subject, manifest in zip(subjects, manifests, strict=True):
        check_same_schema(subject.config, manifest)
    encoder = encoder_of(config, subjects[0].line, manifests[0])
    logs = Storage(config.logs.path)
    with ray_session(config):
        feature = config.evaluation.popularity
        popularity = fit_popularity(config, encoder, history, feature) if history and feature else None
        held = config.holdout if rows == "held_out" else None
        starts = (StreamStart,) * len(subjects)
        plan = RunPlan(logs, parts, 1, encoder, in_order(config), config.seed, starts, held, rows)
        board = ProgressBoard.remote()
        job = EvaluateJob(config, tuple(subjects), parts, popularity, board)
        reported = run_workers(config, plan, evaluate_worker, job, board)
    if reported.get("refused"):
        raise DataError(reported["refused"])
    if reported["asked_to_stop"]:
        raise Interrupted("stopped by SIGTERM after measuring: start the same command again to go on")
    return [Measurement(**measured) for measured in reported["measured"]]


@refuse_damage
def evaluate_worker(job: EvaluateJob, lane: DataIterator) -> dict[str, Any]:
    """Measure the rows of the stream; runs on every worker of Ray Train, and returns the metrics over all ranks."""
    config = job.config
    groups, device = begin_worker(config)
    loaded: Loaded | None = None
    measured: list[Measured] = []
    num_rows = sum(part.log.num_rows for part in job.parts)
    blocks = receive_blocks(lane, config.ingest.prefetch_units)
    for segment in read_segments(blocks, passed_over(config)):
        if segment.header.model == len(measured):
            subject = job.subjects[len(measured)]
            if measured:
                measured[-1].gates.stop()
            if loaded is not None and not _same_shape(loaded.config, subject.config):
                loaded = None
                gc.collect()  # a pipeline and its model form reference cycles: memory may not hold two of them
            loaded = load(subject, loaded, groups, device)
            tasks, gates = loaded.config.log_schema.tasks, GateUse(loaded.state.model)
            measured.append(Measured(tasks, job.popularity, gates, config.evaluation, num_rows))
        assert loaded is not None
        refused = measure_part(job, segment, groups, loaded, measured[-1])
        if refused is not None:
            return {"refused": refused if len(job.subjects) == 1 else f"line {subject.line.name!r}: {refused}"}
    try:
        return {"measured": [one.results(groups.counts) for one in measured]}
    except DataError as error:  # on all ranks alike
        return {"refused": str(error)}


@dataclass(frozen=True, slots=True)
class Loaded:
    """A subject's model, and its pipeline.

    Args:
        config: Configuration of the model.
        state: Tensors of the model.
        pipeline: TorchRec's pipeline.
    """

    config: Config
    state: TrainState
    pipeline: TrainPipelineBase


def _same_shape(one: Config, other: Config) -> bool:
    """Return True if one model's tensors can hold the other's weights."""
    elsewhere = {"name": one.name, "root": one.root, "line": one.line}
    return other.model_copy(update=elsewhere) == one


def load(subject: Subject, before: Loaded | None, groups: Groups, device: torch.device) -> Loaded:
    """Return a subject's model with its weights, in the tensors of the previous model if they fit; collective."""
    config = subject.config
    state = before.state if before else build_state(config, groups.training, device, draw=False)
    loaded = Loaded(config, state, before.pipeline if before else build_train_pipeline(config, state, device))
    loaded.state.load_from(subject.line, subject.checkpoint, groups.saving, config.log_schema)
    loaded.state.model.eval()
    return loaded


def passed_over(config: Config) -> str | None:
    """Return the log's text for a unit that could not be read; None: an unreadable unit is an error."""
    return "not measured:" if config.ingest.on_bad_unit == "quarantine" else None


@torch.no_grad()
def measure_part(job: EvaluateJob, segment: Segment, groups: Groups, loaded: Loaded, measured: Any) -> str | None:
    """Measure one part with a `Measured`, or an object of the same interface.

    Returns:
        The error of reading, or of too many unreadable rows, the same text on every rank; None without one.
    """
    log = next(part.log for part in job.parts if part.key == (segment.header.day, segment.header.log_day))
    schema, pipeline = job.config.log_schema, loaded.pipeline
    tasks = loaded.config.log_schema.task_names
    left_out = LeftOut(log)
    parcels = left_out.watched(segment.parcels)
    batcher = Batcher(schema, log.units, parcels, job.config.ingest.batch_size, interleave=1, tasks=tasks)
    none, ones = torch.zeros(len(tasks)), torch.ones(len(tasks))
    batches = CountedBatches(batcher.next_batch, 0, lambda step: ones, none.clone, groups.counts)
    board = job.board if dist.get_rank() == 0 else None
    reporter = ProgressReporter(board, f"evaluate {log.day}", log.num_rows)
    pipeline.reset()
    while True:
        try:
            output: StepOutput = pipeline.progress(batches)
        except StopIteration:
            break
        measured.update(output.outputs, output.batch)
        reporter.post(batches.num_rows, {})
    problem = str(batches.error) if batches.error else measured.problem
    return refusal(problem, left_out, job.config.ingest.max_quarantined, groups)
