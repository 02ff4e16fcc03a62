"""One training worker, top to bottom: build, restore, read, step, save."""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import ray.train
import torch
import torch.distributed as dist
from torch import Tensor

from features.statistics import Statistics
from models.ranker import StepOutput
from pipeline.batcher import Batcher
from pipeline.checkpoint import TrainState, read_checkpoint, write_checkpoint
from pipeline.config import Config
from pipeline.counts import CountedBatches
from pipeline.cursor import DayCursor, audit, union
from pipeline.lineage.line import Line
from pipeline.lineage.manifest import describe
from pipeline.progress import ProgressReporter
from pipeline.sharding import table_shardings
from pipeline.stream import SHARD, Header, Segment, read_segments, receive_blocks
from pipeline.units import DayLog, Unit
from pipeline.worker import Groups, build_state, build_train_pipeline, quiet_logs, set_device

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class TrainJob:
    """What every worker of a training run is given.

    Args:
        config: The project's configuration.
        statistics: Frozen along the line.
        line: Where checkpoints go.
        attempt: The attempt's fencing number.
        days: The days of the run, with their units.
        passes: Passes over the days.
        parent: The checkpoint that the run started from, if any.
        board: A `ProgressBoard`, or None.
    """

    config: Config
    statistics: Statistics | None
    line: Line
    attempt: str
    days: tuple[DayLog, ...]
    passes: int
    parent: str | None
    board: Any


def train_worker(settings: dict[str, TrainJob]) -> dict[str, Any]:
    """Train what the stream brings; runs on every worker of Ray Train.

    No checkpoint is handed to Ray: they are ours, and a restarted group finds the newest one by itself.

    Returns:
        The step that was reached, when the first was made, and why the run had to stop, if it had to.
    """
    job = settings["job"]
    config = job.config
    quiet_logs(ray.train.get_context().get_world_rank())
    groups = Groups.create(config.workers.timeout_s)
    device = set_device(config, ray.train.get_context().get_local_rank())
    state = build_state(config, groups.training, device)
    trainer = Trainer(job, groups, state, device)
    blocks = receive_blocks(ray.train.get_dataset_shard(SHARD), config.ingest.prefetch_units)
    refused = None
    for segment in read_segments(blocks):
        trainer.restore(segment.header)
        refused = trainer.train_day(segment)
        if refused is not None:
            break
    return {"refused": refused, "step": trainer.step, "first_step_at": trainer.first_step_at}


class Trainer:
    """The state of one worker while it trains.

    Args:
        job: What to train.
        groups: Process groups.
        state: Built and sharded.
        device: Where this rank computes.
    """

    def __init__(self, job: TrainJob, groups: Groups, state: TrainState, device: torch.device) -> None:
        self._job, self._groups, self._state, self._device = job, groups, state, device
        self._pipeline = build_train_pipeline(job.config, state, device)
        self._schedule = job.config.loss_weights.schedule(job.config.log_schema.task_names)
        self._losses = torch.zeros(len(job.config.log_schema.tasks))
        self._days = {day.day: day for day in job.days}
        self._days_done = 0
        self._within_day: list[str] = []
        self._parent = job.parent
        self._not_finite: str | None = None
        self._units: tuple[Unit, ...] = ()
        self.step = 0
        self.first_step_at: float | None = None

    def restore(self, header: Header) -> None:
        """Load the checkpoint that the stream was planned for."""
        if header.checkpoint is None:
            return
        read_checkpoint(self._state, self._job.line.storage, header.checkpoint, self._groups.checkpoint)
        manifest = self._job.line.read_manifest(header.checkpoint)
        assert manifest is not None
        self.step = self._state.optimizer.num_steps = manifest.step
        self._days_done = manifest.content["days_done"]
        self._parent = header.checkpoint if manifest.content["complete"] else manifest.content["parent"]
        logger.info("restored %s, step %d", header.checkpoint, self.step)

    def train_day(self, segment: Segment) -> str | None:
        """Train one day of one pass, and save it.

        Returns:
            None, or why the run has to stop: the same text on every rank.
        """
        day, config = self._days[segment.header.day], self._job.config
        self._units = day.units
        ingest = config.ingest
        batcher = Batcher(config.log_schema, day.units, segment.parcels, ingest.batch_size, ingest.shuffle.interleave)
        batches = CountedBatches(
            batcher.next_batch, self.step, self._loss_weights(segment.header), self._take_losses, self._groups.counts
        )
        before = DayCursor.from_json(segment.header.seen, day.units)
        stepped = DayCursor()
        reporter = ProgressReporter(self._job.board if dist.get_rank() == 0 else None, f"train {day.day}", day.num_rows)
        started, every = time.monotonic(), config.checkpoint.every_steps
        self._pipeline.reset()
        while (output := self._next_step(batches)) is not None:
            stepped.advance(output.batch.cursor)
            reporter.post(before.num_rows + batches.num_rows, self._named(batches.losses))
            if every and self.step % every == 0:
                batches.settle()
                if batches.stopped:
                    break
                self._save(segment.header, day, union([before, self._gather(stepped)]), complete=False)
        batches.settle()
        if batches.stopped:
            return self._why_stopped(batches)
        cursor = union([before, self._gather(stepped)])
        problems = audit(cursor, day.units)
        if problems:
            raise RuntimeError(f"audit of {day.day}: {len(problems)} units are not trained exactly once: {problems[0]}")
        self._days_done += 1
        self._save(segment.header, day, cursor, complete=True, seconds=time.monotonic() - started)
        reporter.post(day.num_rows, self._named(batches.losses), final=True)
        return None

    def _next_step(self, batches: CountedBatches) -> StepOutput | None:
        """One step of TorchRec's pipeline; None when the day is over on all ranks."""
        try:
            output: StepOutput = self._pipeline.progress(batches)
        except StopIteration:
            return None
        self.first_step_at = self.first_step_at or time.time()
        self.step += 1
        losses = output.losses.cpu()
        self._losses += losses
        if self._not_finite is None and not bool(torch.isfinite(losses).all()):
            units = [self._units[span.unit].key for span in output.batch.cursor.spans]
            self._not_finite = f"loss {self._named(losses)} at step {self.step - 1}, in the rows of {', '.join(units)}"
        return output

    def _take_losses(self) -> Tensor:
        taken, self._losses = self._losses, torch.zeros_like(self._losses)
        return taken

    def _named(self, losses: Tensor | None) -> dict[str, float]:
        names = self._job.config.log_schema.task_names
        return {} if losses is None else dict(zip(names, losses.tolist(), strict=True))

    def _loss_weights(self, header: Header) -> Callable[[int], Tensor]:
        return lambda step: self._schedule.weights(step=step, day=self._days_done, epoch=header.pass_index)

    def _gather(self, stepped: DayCursor) -> DayCursor:
        """The union of all ranks' cursors of this attempt; collective."""
        gathered: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(gathered, stepped, group=self._groups.checkpoint)
        return union(gathered)

    def _save(self, header: Header, day: DayLog, cursor: DayCursor, **facts: Any) -> None:
        # A day may end on the very step of a checkpoint within it, and two checkpoints never share a directory.
        suffix = "-day" if facts["complete"] else ""
        name = f"checkpoints/{day.day}/{self._job.attempt}/{self.step:010d}{suffix}"
        manifest = describe(self._job.config, self._job.statistics, header, day, cursor) | facts
        manifest |= {"parent": self._parent, "attempt": self._job.attempt, "step": self.step}
        manifest |= {"days_done": self._days_done, "sharding": table_shardings(self._state.model)}
        manifest |= {"run": {"days": [day.day for day in self._job.days], "passes": self._job.passes}}
        write_checkpoint(self._state.tensors(), self._job.line.storage, name, manifest, self._groups.checkpoint)
        logger.info("saved %s", name)
        if facts["complete"]:
            self._parent = name
        else:
            self._retire(name)

    def _retire(self, newest: str) -> None:
        """Keep the newest few of this attempt's checkpoints within days; only its own are ever removed."""
        self._within_day.append(newest)
        while len(self._within_day) > self._job.config.checkpoint.keep:
            oldest = self._within_day.pop(0)
            if dist.get_rank() == 0:
                self._job.line.remove(oldest)

    def _why_stopped(self, batches: CountedBatches) -> str:
        """The first rank's reason: a unit that could not be read, or the units of a step whose loss was not finite."""
        mine = str(batches.error) if batches.error else self._not_finite
        gathered: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(gathered, mine, group=self._groups.checkpoint)
        return next((reason for reason in gathered if reason), "a loss is not finite")
