"""Evaluate a checkpoint on days: the model, what it has to beat and what it can at best reach, on the same rows."""

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import ray.train
import torch
import torch.distributed as dist
from torch import Tensor
from torchrec.distributed.train_pipeline import TrainPipelineBase

from features.encoding import Encoder
from features.errors import ConfigError, DataError
from features.schema import TaskConfig
from features.statistics import Statistics
from models.assembly import task_heads
from models.batch import RankingBatch
from models.ranker import StepOutput
from models.tasks import TaskHead, predictions_of
from pipeline.batcher import Batcher
from pipeline.checkpoint import read_checkpoint
from pipeline.config import Config
from pipeline.counts import CountedBatches
from pipeline.evaluation.metrics import TaskMetrics, merge_over_ranks
from pipeline.fit import Popularity, fit_popularity
from pipeline.ingest import ShuffleConfig
from pipeline.lineage.line import Line, Manifest
from pipeline.progress import ProgressBoard, ProgressReporter
from pipeline.run import check_same_schema, ray_session, run_workers
from pipeline.storage import Storage
from pipeline.stream import SHARD, RunPlan, Segment, Start, read_segments, receive_blocks
from pipeline.units import DayLog, check_days
from pipeline.worker import Groups, build_state, build_train_pipeline, quiet_logs, set_device

logger = logging.getLogger(__name__)

_PROBABILITY_EPS = 1e-7


@dataclass(frozen=True, slots=True)
class EvaluateJob:
    """What every worker of an evaluation is given.

    Args:
        config: The project's configuration.
        line: Where the checkpoint is.
        checkpoint: Its name below the line.
        days: The days, with their units.
        popularity: The popularity baseline, if there is one.
        board: A `ProgressBoard`, or None.
    """

    config: Config
    line: Line
    checkpoint: str
    days: tuple[DayLog, ...]
    popularity: Popularity | None
    board: Any


def evaluate(
    config: Config, days: Sequence[str], checkpoint: str | None, popularity_days: Sequence[str]
) -> dict[str, Any]:
    """Measure a checkpoint on days, all of them together.

    Args:
        config: The project's configuration.
        days: ISO dates.
        checkpoint: Its name below the line; None: the newest published.
        popularity_days: Days of the popularity baseline; empty: none.

    Returns:
        The figures of the command's JSON line; `tasks` has one entry per task with the metrics of the model, of
        popularity and of the truth.

    Raises:
        ConfigError: There is no such checkpoint.
        DataError: The logs or the checkpoint do not fit the configuration.
    """
    if popularity_days and config.evaluation.popularity is None:
        raise ConfigError("days of a popularity baseline are given, and evaluation.popularity names no id feature")
    line = Line.of(config.root, config.line)
    name = checkpoint or _published(line)
    with line.pinned(name, "evaluate"):
        return _evaluate(config, line, _complete(line, name), days, popularity_days)


def _evaluate(
    config: Config, line: Line, manifest: Manifest, days: Sequence[str], popularity_days: Sequence[str]
) -> dict[str, Any]:
    check_same_schema(config, manifest)
    frozen = manifest.content["statistics"]
    encoder = Encoder(config.log_schema, Statistics.model_validate(frozen) if frozen else None, with_truth=True)
    logs, max_rows, schema = Storage(config.logs.path), config.ingest.unit.max_rows, config.log_schema
    day_logs = tuple(check_days(logs, days, max_rows, schema, encoder.columns))
    history = check_days(logs, popularity_days, max_rows, schema, encoder.columns) if popularity_days else []
    in_order = config.ingest.model_copy(update={"shuffle": ShuffleConfig(units=False, rows=False)})
    with ray_session(config):
        feature = config.evaluation.popularity
        popularity = fit_popularity(config, encoder, history, feature) if history and feature else None
        plan = RunPlan(logs, day_logs, 1, encoder, in_order, config.seed, start=Start)
        board = ProgressBoard.remote()
        job = EvaluateJob(config, line, manifest.checkpoint, day_logs, popularity, board)
        reported = run_workers(config, plan, evaluate_worker, job, board)
    if reported.get("refused"):
        raise DataError(reported["refused"])
    return {"result": "evaluated", "checkpoint": manifest.checkpoint, "days": list(days), "tasks": reported["tasks"]}


def _published(line: Line) -> str:
    latest = line.latest()
    if latest is None:
        raise ConfigError(f"{line.storage.url} has nothing published: train first, or name a checkpoint")
    return str(latest["checkpoint"])


def _complete(line: Line, checkpoint: str) -> Manifest:
    manifest = line.read_manifest(checkpoint)
    if manifest is None:
        raise ConfigError(f"{line.storage.url}/{checkpoint} has no intact manifest: it is no complete checkpoint")
    problem = line.damage(manifest)
    if problem is not None:
        raise DataError(f"{line.storage.url}/{checkpoint} is damaged: {problem}")
    return manifest


def evaluate_worker(settings: dict[str, EvaluateJob]) -> dict[str, Any]:
    """Measure what the stream brings; runs on every worker of Ray Train, and returns the metrics over all ranks."""
    job = settings["job"]
    config = job.config
    quiet_logs(ray.train.get_context().get_world_rank())
    groups = Groups.create(config.workers.timeout_s, config.checkpoint.timeout_s)
    device = set_device(config, ray.train.get_context().get_local_rank())
    state = build_state(config, groups.training, device)
    read_checkpoint(state, job.line.storage, job.checkpoint, groups.saving)
    state.model.eval()
    pipeline = build_train_pipeline(config, state, device)
    measured = Measured(config.log_schema.tasks, job.popularity)
    blocks = receive_blocks(ray.train.get_dataset_shard(SHARD), config.ingest.prefetch_units)
    refused = None
    for segment in read_segments(blocks):
        refused = _measure_day(job, segment, groups, pipeline, measured)
        if refused is not None:
            break
    tasks = measured.results(groups.counts) if refused is None else []
    return {"refused": refused, "tasks": tasks}


@torch.no_grad()
def _measure_day(
    job: EvaluateJob, segment: Segment, groups: Groups, pipeline: TrainPipelineBase, measured: "Measured"
) -> str | None:
    """Measure one day; returns why it could not be read, the same text on every rank."""
    day = next(day for day in job.days if day.day == segment.header.day)
    schema = job.config.log_schema
    batcher = Batcher(schema, day.units, segment.parcels, job.config.ingest.batch_size, interleave=1)
    none, ones = torch.zeros(len(schema.tasks)), torch.ones(len(schema.tasks))
    batches = CountedBatches(batcher.next_batch, 0, lambda step: ones, none.clone, groups.counts)
    board = job.board if dist.get_rank() == 0 else None
    reporter = ProgressReporter(board, f"evaluate {day.day}", day.num_rows)
    pipeline.reset()
    while True:
        try:
            output: StepOutput = pipeline.progress(batches)
        except StopIteration:
            break
        measured.update(output.outputs, output.batch)
        reporter.post(batches.num_rows, {})
    reasons: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(reasons, str(batches.error) if batches.error else None, group=groups.control)
    return next((reason for reason in reasons if reason), None)


class Measured:
    """Metrics of the model, of popularity and of the truth, per task.

    Args:
        tasks: The declared tasks.
        popularity: The baseline, if there is one.
    """

    def __init__(self, tasks: Sequence[TaskConfig], popularity: Popularity | None) -> None:
        self._tasks = tasks
        self._popularity = popularity
        self._heads: list[TaskHead] = task_heads(tasks)
        self._model = [TaskMetrics(task) for task in tasks]
        self._baseline = [TaskMetrics(task) for task in tasks]
        self._truth = [TaskMetrics(task) for task in tasks]

    def update(self, outputs: Tensor, batch: RankingBatch) -> None:
        """Add a batch: the model's raw outputs, shape (B, sum of outputs), and what they are measured against."""
        outputs, batch = outputs.cpu(), batch.to(torch.device("cpu"))
        predicted = predictions_of(self._heads, outputs)
        raw = torch.split(outputs, [head.num_outputs for head in self._heads], dim=1)
        popular = self._popular(batch)
        for index, task in enumerate(self._tasks):
            known = (batch.labels[:, index], batch.in_space[:, index], batch.weight[:, index])
            scores = raw[index] if task.kind == "multiclass" else raw[index].squeeze(1)
            self._model[index].update(predicted[task.name], scores, *known)
            if popular is not None:
                _add_baseline(self._baseline[index], popular[:, index], *known)
            if batch.truth is not None and task.truth is not None:
                _add_baseline(self._truth[index], batch.truth[:, index], *known)

    def _popular(self, batch: RankingBatch) -> Tensor | None:
        if self._popularity is None:
            return None
        bags = batch.sparse[self._popularity.feature]
        scores = self._popularity.scores(bags.values().numpy(), bags.lengths().numpy())
        return torch.from_numpy(np.ascontiguousarray(scores, dtype=np.float32))

    def results(self, group: dist.ProcessGroup) -> list[dict[str, Any]]:
        """Metrics over the rows of all ranks, one entry per task; collective."""
        merged = [merge_over_ranks(metrics, group) for metrics in (self._model, self._baseline, self._truth)]
        return [
            {"task": task.name, "kind": task.kind, "objective": task.objective, "role": task.role}
            | {
                name: _finite(m[index].result())
                for name, m in zip(("model", "popularity", "truth"), merged, strict=True)
            }
            for index, task in enumerate(self._tasks)
        ]


def _add_baseline(metrics: TaskMetrics, values: Tensor, labels: Tensor, in_space: Tensor, weight: Tensor) -> None:
    """Add probabilities or values that somebody else predicts; multiclass tasks have no such baseline."""
    if metrics.task.kind == "binary":
        values = values.clamp(_PROBABILITY_EPS, 1 - _PROBABILITY_EPS)
        metrics.update(values, torch.logit(values), labels, in_space, weight)
    elif metrics.task.kind == "regression":
        metrics.update(values, values, labels, in_space, weight)


def _finite(result: dict[str, Any]) -> dict[str, Any]:
    """JSON has no NaN: a metric that is not finite is not defined."""
    return {
        name: None if isinstance(value, float) and not math.isfinite(value) else value for name, value in result.items()
    }
