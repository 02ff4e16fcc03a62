"""The small vector that every step sums over the ranks: it gives the loss its denominators and ends the day.

No rank waits for another's rows and no row is dropped: a rank whose lane has run dry feeds padding until the sum of
rows over all ranks is zero. The sum depends on the batch alone, so it is started when the batch is made and needed
only a step later. It runs in a process group of its own, issued from the training thread: two threads that use one
group, or one group for two purposes at once, add each other's numbers up.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from features.errors import DataError
from models.batch import LogBatch, RankingBatch
from pipeline.cluster.signals import Signals
from pipeline.ingest.cursor import BatchCursor


@dataclass(frozen=True, slots=True, kw_only=True)
class StepVector:
    """Vector that every step sums over the ranks, by its parts.

    Args:
        weight: Weight in each task's space, of the batch, float64 of shape (K,).
        losses_two_steps_ago: Losses that were taken when the batch was made, float64 of shape (K,): the batch is made
            a step ahead, and the loss of the step before that is the newest then.
        in_space: Rows of the batch in each task's space, float64 of shape (K,).
        rows: Rows of the batch.
        errors: 1 for a rank that could not make its batch.
        stop: Above 0: end here, save, and be gone.
        look: Above 0: all ranks ask Ray at this step whether a node is about to be taken away.
    """

    weight: Tensor
    losses_two_steps_ago: Tensor
    in_space: Tensor
    rows: float
    errors: float
    stop: float
    look: float

    def pack(self) -> Tensor:
        """Return the vector, float64 of shape (3 K + 4,)."""
        figures = torch.tensor([self.rows, self.errors, self.stop, self.look], dtype=torch.float64)
        return torch.cat([self.weight, self.losses_two_steps_ago, self.in_space, figures])

    @classmethod
    def unpack(cls, vector: Tensor) -> "StepVector":
        """Read a vector that `pack` made, or a sum of such vectors."""
        num_tasks = (len(vector) - 4) // 3
        weight, losses, in_space, figures = vector.split([num_tasks, num_tasks, num_tasks, 4])
        rows, errors, stop, look = figures.tolist()
        return cls(
            weight=weight,
            losses_two_steps_ago=losses,
            in_space=in_space,
            rows=rows,
            errors=errors,
            stop=stop,
            look=look,
        )


@dataclass(slots=True)
class _Pending:
    batch: LogBatch | None
    vector: Tensor
    work: dist.Work

    def wait(self) -> StepVector:
        """Wait for the sum over the ranks."""
        self.work.wait()
        return StepVector.unpack(self.vector)


class CountedBatches(Iterator[RankingBatch]):
    """Batches of a day with their denominators, until all ranks have run dry or one of them has a reason to stop.

    Args:
        next_batch: Makes this rank's next batch, for a given step; all padding once its lane has run dry.
        first_step: The step of the first batch.
        loss_weights: w_k(t) of a step, shape (K,).
        take_losses: Sum of this rank's losses over the steps since the last call, shape (K,).
        group: A gloo process group that nothing else uses.
        signals: Signals that this rank sends with its next batch.

    Attributes:
        num_rows: Rows of all ranks handed out so far.
        in_space: Rows in each task's space of all ranks handed out so far, float64 of shape (K,); None before the
            first.
        losses: Mean over the ranks of the newest losses that were taken, summed over their steps, shape (K,).
        error: Reason for which this rank had to stop, if there is one.
        stopped: True if any rank had to stop: nothing is saved.
        interrupted: True if the run was asked to end; all batches that were handed out are to be stepped and saved.
        end: Cursor of this rank's last batch, which has no row and is not stepped; None before all ranks have run dry.
        look: True to look for nodes that are about to be taken away; the same on all ranks at every step.
    """

    def __init__(
        self,
        next_batch: Callable[[int], LogBatch],
        first_step: int,
        loss_weights: Callable[[int], Tensor],
        take_losses: Callable[[], Tensor],
        group: dist.ProcessGroup,
        signals: Callable[[], Signals] = Signals,
    ) -> None:
        self._next_batch = next_batch
        self._step = first_step
        self._loss_weights = loss_weights
        self._take_losses = take_losses
        self._group = group
        self._signals = signals
        self._pending: _Pending | None = None
        self._dry = False
        self.num_rows = 0
        self.in_space: Tensor | None = None
        self.losses: Tensor | None = None
        self.error: DataError | None = None
        self.stopped = False
        self.interrupted = False
        self.look = False
        self.end: BatchCursor | None = None

    def __next__(self) -> RankingBatch:
        if self._dry:
            raise StopIteration
        current = self._pending or self._start()
        summed = current.wait()
        losses, self.look = summed.losses_two_steps_ago / self._group.size(), summed.look > 0
        if bool(losses.any()):  # the first vectors bring none, and the last one may not
            self.losses = losses
        self.stopped = summed.errors > 0 or not bool(torch.isfinite(losses).all())
        self.interrupted = summed.stop > 0 and summed.rows > 0
        if summed.rows == 0 or self.stopped or self.interrupted:
            self._dry = True
            if current.batch is not None and not self.interrupted:
                self.end = current.batch.cursor
            raise StopIteration
        assert current.batch is not None
        self._pending = self._start()
        self.num_rows += int(summed.rows)
        self.in_space = summed.in_space if self.in_space is None else self.in_space + summed.in_space
        denominators = (summed.weight / self._group.size()).to(torch.float32)
        return current.batch.for_step(denominators, self._loss_weights(current.batch.cursor.step))

    def settle(self) -> None:
        """Look at the losses of steps that no vector has brought yet; collective, before anything is saved."""
        losses = self._take_losses().to(torch.float64)
        if self._pending is not None:  # carries the step before the last one
            losses = losses + self._pending.wait().losses_two_steps_ago / self._group.size()
        dist.all_reduce(losses, group=self._group)
        self.stopped = self.stopped or not bool(torch.isfinite(losses).all())

    def _start(self) -> _Pending:
        """Make the next batch and start its sum; a rank that cannot make one says so to the others."""
        losses = self._take_losses().to(torch.float64)
        batch: LogBatch | None = None
        try:
            batch = self._next_batch(self._step)
        except DataError as error:
            self.error = error
        self._step += 1
        weight, in_space, rows = torch.zeros_like(losses), torch.zeros_like(losses), 0
        if batch is not None:
            in_space = torch.from_numpy(batch.cursor.in_space).to(torch.float64)
            weight = (batch.in_space * batch.weight).sum(0, dtype=torch.float64)
            rows = batch.cursor.num_rows
        signals, errors = self._signals(), float(batch is None)
        mine = StepVector(
            weight=weight,
            losses_two_steps_ago=losses,
            in_space=in_space,
            rows=rows,
            errors=errors,
            stop=signals.stop,
            look=signals.look,
        )
        vector = mine.pack()
        work = dist.all_reduce(vector, group=self._group, async_op=True)
        assert work is not None
        return _Pending(batch, vector, work)
