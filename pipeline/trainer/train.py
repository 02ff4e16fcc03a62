"""One training worker, top to bottom: build, restore, read, step, save."""

import functools
import gc
import itertools
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import ray
import torch
import torch.distributed as dist
from ray.data import DataIterator
from torch import Tensor

from features.errors import DataError, Interrupted
from features.figure import named_figures
from models.batch import LogBatch
from models.ranker import StepOutput
from pipeline.checkpoint.saver import Saver
from pipeline.cluster.signals import PreemptionNotice, SignalReader, asked_to_stop
from pipeline.ingest.batcher import Batcher
from pipeline.ingest.batches_ahead import made_ahead
from pipeline.ingest.cursor import BatchCursor
from pipeline.ingest.plan import Header
from pipeline.ingest.receive import Segment, read_segments, receive_blocks
from pipeline.ingest.units import Units
from pipeline.log_passes.admission import Admission
from pipeline.trainer.line_progress import LineProgress
from pipeline.trainer.part_position import PartPosition, deal_again
from pipeline.trainer.part_report import PartReport
from pipeline.trainer.sharding import table_shardings
from pipeline.trainer.step_sync import CountedBatches
from pipeline.trainer.train_job import TrainJob
from pipeline.trainer.train_state import TrainState
from pipeline.trainer.worker_setup import Groups, begin_worker, build_state, build_train_pipeline, on_host, seed_step

logger = logging.getLogger(__name__)


def train_worker(jobs: Sequence[TrainJob], lane: DataIterator) -> dict[str, Any]:
    """Train what the stream brings, one model after the other; runs on every worker of Ray Train.

    No checkpoint is handed to Ray: they are ours. The command finds the newest ones when it plans the stream again.

    Returns:
        What each model has `reached`, nothing of one that was at its end; and why the run ended before its own.
    """
    config = jobs[0].config
    groups, device = begin_worker(config)
    blocks = receive_blocks(lane, config.ingest.prefetch_units)
    segments = read_segments(blocks, "quarantined" if config.ingest.on_bad_unit == "quarantine" else None)
    reached: list[dict[str, Any]] = [{} for _ in jobs]
    ended: dict[str, Any] = {}
    try:
        for model, own in itertools.groupby(segments, lambda segment: segment.header.model):
            if asked_to_stop(jobs[model].board, groups.control) and any(reached):
                raise Interrupted
            train_model(jobs[model], own, groups, device, reached[model])
            gc.collect()  # a pipeline and its model are in cycles: there may be no room for two of them
    except DataError as error:  # raised on all ranks together: nothing hangs, and nothing is tried again
        ended = {"refused": str(error)}
    except Interrupted:
        ended = {"interrupted": True}
    return ended | {"reached": reached}


def train_model(
    job: TrainJob, segments: Iterator[Segment], groups: Groups, device: torch.device, reached: dict[str, Any]
) -> None:
    """Train one model on its segments.

    Args:
        job: The model.
        segments: Its own.
        groups: Process groups.
        device: Device of this rank.
        reached: Takes the newest `checkpoint` and its `step`, and `first_step_at`, in seconds since the epoch.

    Raises:
        DataError: On all ranks: why the run has to stop.
        Interrupted: On all ranks: it was asked to end, and is saved.
    """
    first = next(segments)
    draw = first.header.checkpoint is None
    trainer = Trainer(job, groups, build_state(job.config, groups.training, device, job.statistics, draw=draw), device)
    try:
        for segment in itertools.chain([first], segments):
            trainer.restore(segment.header)
            trainer.train_part(segment)
        trainer.saver.wait()
        trainer.report.post(final=True)  # with the time of the last save
    except (DataError, Interrupted):
        trainer.saver.leave()  # the process goes on, with other jobs
        raise
    finally:
        reached |= {"checkpoint": trainer.progress.newest, "step": trainer.step, "first_step_at": trainer.first_step_at}


class Trainer:
    """State of one worker in training.

    Args:
        job: Model to train.
        groups: Process groups.
        state: Built and sharded.
        device: Device of this rank.
    """

    def __init__(self, job: TrainJob, groups: Groups, state: TrainState, device: torch.device) -> None:
        self.job, self._groups, self._state, self._device = job, groups, state, device
        self._pipeline = build_train_pipeline(job.config, state, device)
        self._schedule = job.config.loss_weights.schedule(job.config.log_schema.task_names)
        self._recent: list[tuple[int, BatchCursor, Tensor]] = []
        self._parts = {part.key: part for part in job.parts}
        self._admission: Admission = ray.get(job.admission)
        self.progress = LineProgress()
        self._not_finite: str | None = None
        self._units = Units(())
        board = job.board if dist.get_rank() == 0 else None
        self._board, self._signals, self._preemption = board, SignalReader(board), PreemptionNotice()
        self.saver = Saver(job.line, job.config.checkpoint, groups.saving)
        self.first_step_at: float | None = None
        self.report: PartReport

    @property
    def step(self) -> int:
        """Number of steps that the model has made on its line."""
        return self._state.optimizer.num_steps

    def restore(self, header: Header) -> None:
        """Load the checkpoint that the stream was planned for."""
        if header.checkpoint is None:
            if self.step == 0:
                logger.info("attempt %s begins from nothing, on %d workers", header.attempt, dist.get_world_size())
            return
        line, optimizer, config = self.job.line, self._state.optimizer, self.job.config
        self._state.resume(line, header.checkpoint, self._groups.saving, config.log_schema)
        manifest = line.read_manifest(header.checkpoint)
        assert manifest is not None
        optimizer.num_steps, optimizer.day_began_at = manifest.step, manifest.day_began_at
        if manifest.run != self.job.run:  # yesterday's: rows that have another id today start anew
            self._state.reset_rows(config.log_schema, self._admission.needed_resets())
        self.progress = LineProgress.from_manifest(manifest)
        where = (header.attempt, manifest.checkpoint, dist.get_world_size())
        logger.info("attempt %s goes on from %s, on %d workers", *where)

    def train_part(self, segment: Segment) -> None:
        """Train one part of one pass, and save it; raises as `train_model`."""
        header, config = segment.header, self.job.config
        part, ingest, tasks = self._parts[header.day, header.log_day], config.ingest, config.log_schema.task_names
        log, rank, num_ranks = part.log, dist.get_rank(), dist.get_world_size()
        dealt = self._groups.on_first(None, lambda _: deal_again(self.job, part, header, num_ranks))
        position = PartPosition(part, header, rank, num_ranks, dealt)
        if self.progress.begins(header.pass_index, header.day):
            self._state.optimizer.begin_day()
        self._units = log.units
        interleave, lookahead = ingest.shuffle.interleave, ingest.lookahead
        batcher = Batcher(self.job.read, log.units, segment.parcels, ingest.batch_size, interleave, tasks)
        with made_ahead(batcher.next_batch, self.step, lookahead, self._device) as make_batch:
            made, weights = functools.partial(self._next_batch, make_batch), self._loss_weights(header)
            signals, group = self._signals, self._groups.counts
            batches = CountedBatches(made, self.step, weights, self._take_losses, group, signals, lookahead)
            self.report = PartReport(self._board, self.job, position, batches, self.saver)
            self.progress.begin_log(log)
            self._train_batches(batches, position)
        self.progress.days_done += part.is_last
        self.save(batches, position, complete=True)
        self.report.post(final=True)

    def _train_batches(self, batches: CountedBatches, position: PartPosition) -> None:
        """Step all batches, and save the position within the part when it is time to; raises as `train_model`."""
        every = self.job.config.checkpoint.every_steps
        self._pipeline.reset()
        while (output := self.next_step(batches)) is not None:
            position.stepped.advance(output.batch.cursor)
            self.report.post()
            notice = batches.look and self._preemption.is_new()
            if notice or (every and self.step % every == 0):
                self.save(batches, position, complete=False)
                if notice:
                    self.saver.wait()
        if batches.end is not None:  # units that could not be read, met since the last step
            position.stepped.advance(batches.end)
        if batches.interrupted:
            self.save(batches, position, complete=False)
            self.saver.wait()
            raise Interrupted

    def _next_batch(self, make_batch: Callable[[int], LogBatch], step: int) -> LogBatch:
        self.saver.check()
        with self.report.waiting():
            return make_batch(step)

    def next_step(self, batches: CountedBatches) -> StepOutput | None:
        """Make one step of TorchRec's pipeline; return None when the day is over on all ranks."""
        seed_step(self.job.config.seed, self.step, dist.get_rank())
        try:
            output: StepOutput = self._pipeline.progress(batches)
        except StopIteration:
            return None
        self.first_step_at = self.first_step_at or time.time()
        self._recent.append((self.step - 1, output.batch.cursor, output.losses.detach()))
        return output

    def _take_losses(self) -> Tensor:
        """Return the mean of the losses since the last call: the device is asked once, not in every step."""
        recent, self._recent = self._recent, []
        none = torch.zeros(len(self.job.config.log_schema.tasks), device=self._device)
        losses = on_host([of_step for *_, of_step in recent] or [none])
        for (step, cursor, _), of_step in zip(recent, losses, strict=False):
            if self._not_finite is None and not bool(torch.isfinite(of_step).all()):
                keys = ", ".join(self._units[span.unit].key for span in cursor.spans)
                self._not_finite = f"loss {named_figures(self._named(of_step))} at step {step}, in the rows of {keys}"
        return losses.mean(0)

    def _named(self, losses: Tensor) -> dict[str, float]:
        return dict(zip(self.job.config.log_schema.task_names, losses.tolist(), strict=True))

    def _loss_weights(self, header: Header) -> Callable[[int], Tensor]:
        return lambda step: self._schedule.weights(step=step, day=self.progress.days_done, epoch=header.pass_index)

    def save(self, batches: CountedBatches, position: PartPosition, *, complete: bool) -> None:
        """Save what has been stepped, unless a rank has a reason to stop; a finished part is audited first."""
        batches.settle()
        if batches.stopped:
            raise DataError(self._why_stopped(batches))
        name = position.checkpoint(self.step, complete=complete)
        fields = self.progress.manifest_fields() | {
            "complete": complete,
            "step": self.step,
            "day_began_at": self._state.optimizer.day_began_at,
            "sharding": table_shardings(self._state.model),
            "loss_weights": self._named(self._loss_weights(position.header)(self.step)),
            "new_ids": self._admission.figures,
        }
        mine = position.share(self._state.not_finite() if complete else [], complete=complete)
        described = self._groups.on_first(mine, lambda shares: position.describe(self.job, shares, fields))
        if name == self.progress.newest:  # asked to end just after a save
            return
        manifest, files = described or (None, {})
        files |= self._admission.files if manifest else {}
        self.saver.save(self._state.tensors(), name, manifest, files)
        self.progress.saved(name, complete=complete)

    def _why_stopped(self, batches: CountedBatches) -> str:
        """Return the first rank's reason: a unit that could not be read, or units of a step with a loss not finite."""
        mine = str(batches.error) if batches.error else self._not_finite
        return next((reason for reason in self._groups.gather(mine) if reason), "a loss is not finite")
