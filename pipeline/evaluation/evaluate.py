"""Evaluate a checkpoint on days: the model, what it has to beat and what it can at best reach, on the same rows."""

import functools
import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import ray.train
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torchrec.distributed.train_pipeline import TrainPipelineBase

from features.encoding import Encoder
from features.errors import ConfigError, DataError, Interrupted
from features.holdout import Rows
from features.schema import TaskConfig
from models.assembly import task_heads
from models.batch import RankingBatch
from models.experts import Gates
from models.ranker import StepOutput
from models.tasks import TaskHead, predictions_of
from pipeline.batcher import Batcher
from pipeline.checkpoint import read_checkpoint
from pipeline.config import Config
from pipeline.counts import CountedBatches
from pipeline.datasource import Parcel, read_columns
from pipeline.evaluation.chosen import complete_manifest, encoder_of, published
from pipeline.evaluation.metrics import TaskMetrics, merge_over_ranks
from pipeline.fit import Popularity, fit_popularity
from pipeline.ingest import ShuffleConfig
from pipeline.lineage.line import Line
from pipeline.progress import ProgressBoard, ProgressReporter
from pipeline.session import ray_session, run_workers
from pipeline.storage import Storage
from pipeline.stream import SHARD, Part, RunPlan, Segment, Start, read_segments, receive_blocks, whole_days
from pipeline.units import DayLog, check_days
from pipeline.worker import Groups, build_state, build_train_pipeline, quiet_logs, set_device

logger = logging.getLogger(__name__)

_PROBABILITY_EPS = 1e-7


@dataclass(frozen=True, slots=True)
class EvaluateJob:
    """What every worker of an evaluation is given.

    Args:
        config: The project's configuration.
        line: Where the checkpoints are.
        checkpoints: As the line names them; each is measured in a pass of its own over the same rows.
        parts: What is read.
        popularity: The popularity baseline, if there is one.
        board: A `ProgressBoard`, or None.
    """

    config: Config
    line: Line
    checkpoints: tuple[str, ...]
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
        checkpoint: Its name below the line; None: the newest published.
        popularity_days: Days of the popularity baseline; empty: none.
        rows: All of them, or only those that are `held_out`.

    Returns:
        The figures of the command's JSON line; `tasks` has one entry per task with the metrics of the model, of
        popularity and of the truth.

    Raises:
        ConfigError: There is no such checkpoint.
        DataError: The logs or the checkpoint do not fit the configuration.
    """
    if popularity_days and config.evaluation.popularity is None:
        raise ConfigError("days of a popularity baseline are given, and evaluation.popularity names no id feature")
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
    with line.pinned(checkpoint, "evaluate"):
        encoder = encoder_of(config, line, complete_manifest(line, checkpoint))
        whole = whole_days(listed_days(config, encoder, days))
        history = listed_days(config, encoder, popularity_days)
        (measured,) = measure(config, line, [checkpoint], whole, rows, history)
    return measured


def listed_days(config: Config, encoder: Encoder, days: Sequence[str]) -> list[DayLog]:
    """The units of days, whose files have what the encoder reads."""
    columns = read_columns(encoder.columns, config.holdout)
    return check_days(Storage(config.logs.path), days, config.ingest.unit.max_rows, config.log_schema, columns)


@dataclass(frozen=True, slots=True)
class Measurement:
    """What was measured of one checkpoint.

    Args:
        tasks: One entry per task, with the metrics of the model, of popularity and of the truth.
        expert_use: By module of gates: mean weight of each expert, per gate.
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
        line: Where they are.
        checkpoints: Complete and undamaged, as the line names them.
        parts: What is read, with the tasks that are measured on it.
        rows: All of them, or only those that are `held_out`.
        history: Days of the popularity baseline.

    Raises:
        DataError: The logs or a checkpoint do not fit the configuration.
    """
    if config.log_schema.vocabularies and len(checkpoints) > 1:  # a row of a table is not the same id in both
        return [measure(config, line, [name], parts, rows, history)[0] for name in checkpoints]
    encoder = encoder_of(config, line, complete_manifest(line, checkpoints[0]))
    in_order = config.ingest.model_copy(update={"shuffle": ShuffleConfig(units=False, rows=False)})
    logs = Storage(config.logs.path)
    with ray_session(config):
        feature = config.evaluation.popularity
        popularity = fit_popularity(config, encoder, history, feature) if history and feature else None
        held = config.holdout if rows == "held_out" else None
        plan = RunPlan(logs, parts, len(checkpoints), encoder, in_order, config.seed, Start, held, rows)
        board = ProgressBoard.remote()
        job = EvaluateJob(config, line, tuple(checkpoints), parts, popularity, board)
        reported = run_workers(config, plan, evaluate_worker, job, board)
    if reported.get("refused"):
        raise DataError(reported["refused"])
    if reported["asked_to_stop"]:
        raise Interrupted("stopped by SIGTERM after measuring: start the same command again to go on")
    return [Measurement(**measured) for measured in reported["measured"]]


def evaluate_worker(settings: dict[str, EvaluateJob]) -> dict[str, Any]:
    """Measure what the stream brings; runs on every worker of Ray Train, and returns the metrics over all ranks."""
    job = settings["job"]
    config = job.config
    quiet_logs(ray.train.get_context().get_world_rank())
    groups = Groups.create(config.workers.timeout_s, config.checkpoint.timeout_s)
    device = set_device(config, ray.train.get_context().get_local_rank())
    state = build_state(config, groups.training, device)
    pipeline = build_train_pipeline(config, state, device)
    measured: list[Measured] = []
    blocks = receive_blocks(ray.train.get_dataset_shard(SHARD), config.ingest.prefetch_units)
    passed_over = pass_over if config.ingest.on_bad_unit == "quarantine" else None
    for segment in read_segments(blocks, passed_over):
        if segment.header.pass_index == len(measured):
            read_checkpoint(state, *job.line.place(job.checkpoints[len(measured)]), groups.saving, config.log_schema)
            state.model.eval()
            measured.append(Measured(config.log_schema.tasks, job.popularity, GateUse(state.model)))
        refused = measure_part(job, segment, groups, pipeline, measured[-1])
        if refused is not None:
            return {"refused": refused}
    return {"measured": [one.results(groups.counts) for one in measured]}


def pass_over(parcel: Parcel) -> None:
    """Say of a unit that it could not be read."""
    logger.warning("not measured: %s", parcel.text)


@torch.no_grad()
def measure_part(
    job: EvaluateJob, segment: Segment, groups: Groups, pipeline: TrainPipelineBase, measured: Any
) -> str | None:
    """Measure one part with a `Measured`, or what is used as one.

    Returns:
        Why it could not be read, the same text on every rank.
    """
    log = next(part.log for part in job.parts if part.key == (segment.header.day, segment.header.log_day))
    schema = job.config.log_schema
    batcher = Batcher(schema, log.units, segment.parcels, job.config.ingest.batch_size, interleave=1)
    none, ones = torch.zeros(len(schema.tasks)), torch.ones(len(schema.tasks))
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
    reasons: list[Any] = [None] * dist.get_world_size()
    problem = str(batches.error) if batches.error else measured.problem
    dist.all_gather_object(reasons, problem, group=groups.control)
    return next((reason for reason in reasons if reason), None)


class Measured:
    """Metrics of the model, of popularity and of the truth, per task.

    Args:
        tasks: The declared tasks.
        popularity: The baseline, if there is one.
        gates: How the model's gates weigh its experts.

    Attributes:
        problem: Why a batch could not be measured, if one could not; the ranks go on together and tell each other then.
    """

    def __init__(self, tasks: Sequence[TaskConfig], popularity: Popularity | None, gates: "GateUse") -> None:
        self.problem: str | None = None
        self._tasks = tasks
        self._gates = gates
        self._popularity = popularity
        self._heads: list[TaskHead] = task_heads(tasks)
        self._model = [TaskMetrics(task) for task in tasks]
        self._baseline = [TaskMetrics(task) for task in tasks]
        self._truth = [TaskMetrics(task) for task in tasks]

    def update(self, outputs: Tensor, batch: RankingBatch) -> None:
        """Add a batch: the model's raw outputs, shape (B, sum of outputs), and what they are measured against."""
        try:
            self._update(outputs, batch)
        except ValueError as error:
            self.problem = self.problem or str(error)

    def _update(self, outputs: Tensor, batch: RankingBatch) -> None:
        self._gates.add(batch.cursor.num_rows)
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

    def results(self, group: dist.ProcessGroup) -> dict[str, Any]:
        """The arguments of a `Measurement`, over the rows of all ranks; collective."""
        merged = [merge_over_ranks(metrics, group) for metrics in (self._model, self._baseline, self._truth)]
        tasks = [
            {"task": task.name, "kind": task.kind, "objective": task.objective, "role": task.role}
            | {
                name: _finite(m[index].result())
                for name, m in zip(("model", "popularity", "truth"), merged, strict=True)
            }
            for index, task in enumerate(self._tasks)
        ]
        means, deviations = self._gates.moments(group)
        return {"tasks": tasks, "expert_use": means, "expert_use_deviation": deviations}


class GateUse:
    """How much each gate uses each expert: moments of its weights over the rows that are measured.

    Args:
        model: Its modules of kind `Gates` are watched.
    """

    def __init__(self, model: nn.Module) -> None:
        self._newest: dict[str, list[Tensor]] = {}
        self._sums: dict[str, Tensor] = {}
        self._num_rows = 0
        self._hooks = [
            module.register_forward_hook(functools.partial(self._note, name))
            for name, module in model.named_modules()
            if isinstance(module, Gates)
        ]

    def _note(self, name: str, module: nn.Module, inputs: Any, weights: Tensor) -> None:
        self._newest.setdefault(name, []).append(weights)  # once for each slab of a batch

    def add(self, num_rows: int) -> None:
        """Count the newest batch, without its padding.

        Args:
            num_rows: Rows of the batch that are none.
        """
        self._num_rows += num_rows
        newest, self._newest = self._newest, {}
        for name, slabs in newest.items():
            weights = torch.cat(slabs)[:num_rows].to("cpu", torch.float64)
            total = torch.stack([weights.sum(0), weights.square().sum(0)])
            self._sums[name] = self._sums[name] + total if name in self._sums else total

    def moments(self, group: dist.ProcessGroup) -> tuple[dict[str, Any], dict[str, Any]]:
        """Mean and deviation of each expert's weight, per module and gate, over all ranks; collective; ends it."""
        for hook in self._hooks:
            hook.remove()
        count = torch.tensor(float(self._num_rows), dtype=torch.float64)
        dist.all_reduce(count, group=group)
        means, deviations = {}, {}
        for name in sorted(self._sums):
            dist.all_reduce(self._sums[name], group=group)
            mean, square = self._sums[name] / count.clamp(min=1)
            short = name.rpartition("head.")[2]
            means[short] = mean.tolist()
            deviations[short] = (square - mean.square()).clamp(min=0).sqrt().tolist()
        return means, deviations


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
