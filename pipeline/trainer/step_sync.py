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
from models.batch import RankingBatch
from pipeline.cluster.signals import Signals

_NUM_ENDS = 4  # rows, errors, and the two signals


@dataclass(slots=True)
class _Pending:
    batch: RankingBatch | None
    vector: Tensor
    work: dist.Work | None


class CountedBatches(Iterator[RankingBatch]):
    """Batches of a day with their denominators, until all ranks have run dry or one of them has a reason to stop.

    Args:
        next_batch: Makes this rank's next batch, for a given step; all padding once its lane has run dry.
        first_step: The step of the first batch.
        loss_weights: w_k(t) of a step, shape (K,).
        take_losses: Sum of this rank's losses over the steps since the last call, shape (K,).
        group: A gloo process group that nothing else uses.
        signals: What this rank has to say with its next batch.

    Attributes:
        num_rows: Rows of all ranks handed out so far.
        losses: Mean over the ranks of the newest losses that were taken, summed over their steps, shape (K,).
        error: Why this rank had to stop, if it had to.
        stopped: Whether any rank had to: nothing is saved.
        interrupted: Whether the run was asked to end; all batches that were handed out are to be stepped and saved.
        look: Whether to look for nodes that are about to be taken away; the same on all ranks at every step.
    """

    def __init__(
        self,
        next_batch: Callable[[int], RankingBatch],
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
        self.losses: Tensor | None = None
        self.error: DataError | None = None
        self.stopped = False
        self.interrupted = False
        self.look = False

    def __next__(self) -> RankingBatch:
        if self._dry:
            raise StopIteration
        current = self._pending or self._start()
        assert current.work is not None
        current.work.wait()
        weight, losses, (rows, errors, stop, look) = self._split(current.vector)
        self.losses, self.look = losses, look > 0
        self.stopped = errors > 0 or not bool(torch.isfinite(losses).all())
        self.interrupted = stop > 0 and rows > 0
        if rows == 0 or self.stopped or self.interrupted:
            self._dry = True
            raise StopIteration
        assert current.batch is not None
        self._pending = self._start()
        self.num_rows += int(rows)
        current.batch.denominators = (weight / self._group.size()).to(torch.float32)
        current.batch.loss_weights = self._loss_weights(current.batch.cursor.step)
        return current.batch

    def settle(self) -> None:
        """Look at the losses of steps that no vector has brought yet; collective, before anything is saved."""
        losses = self._take_losses().to(torch.float64)
        if self._pending is not None and self._pending.work is not None:  # carries the step before the last one
            self._pending.work.wait()
            losses = losses + self._split(self._pending.vector)[1]
        dist.all_reduce(losses, group=self._group)
        self.stopped = self.stopped or not bool(torch.isfinite(losses).all())

    def _start(self) -> _Pending:
        """Make the next batch and start its sum; a rank that cannot make one says so to the others."""
        losses = self._take_losses().to(torch.float64)
        batch: RankingBatch | None = None
        try:
            batch = self._next_batch(self._step)
        except DataError as error:
            self.error = error
        self._step += 1
        weight = torch.zeros_like(losses)
        rows, errors = 0, 1
        if batch is not None:
            weight = (batch.in_space * batch.weight).sum(0, dtype=torch.float64)
            rows, errors = batch.cursor.num_rows, 0
        ends = torch.tensor([rows, errors, *self._signals()], dtype=torch.float64)
        vector = torch.cat([weight, losses, ends])
        return _Pending(batch, vector, dist.all_reduce(vector, group=self._group, async_op=True))

    def _split(self, vector: Tensor) -> tuple[Tensor, Tensor, list[float]]:
        num_tasks = (len(vector) - _NUM_ENDS) // 2
        weight, losses, ends = vector.split([num_tasks, num_tasks, _NUM_ENDS])
        return weight, losses / self._group.size(), ends.tolist()
