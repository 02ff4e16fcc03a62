"""The small vector that is summed over the ranks for every block of steps: it gives losses their denominators, and ends
the day.

No rank waits for another's rows and no row is dropped: a rank whose lane has run dry feeds padding until the sum of
rows over all ranks is zero. The sums depend on the batches alone. So those of a block of steps are started in one call
when the block before it begins, and needed only when that is over. The call runs in a process group of its own, issued
from the training thread: two threads that use one group, or one group for two purposes at once, add each other's
numbers up.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from features.errors import DataError
from models.batch import LogBatch, RankingBatch
from pipeline.cluster.signals import Signals
from pipeline.ingest.cursor import BatchCursor


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockVector:
    """Vector that is summed over the ranks for a block of N steps, by its parts; all are float64.

    Args:
        weight: Weight in each task's space, of each batch, shape (N, K).
        in_space: Rows of each batch in each task's space, shape (N, K).
        rows: Rows of each batch, shape (N,).
        errors: 1 for a batch that a rank could not make, shape (N,).
        earlier_losses: Losses of steps that no vector has brought yet, shape (K,). The batches are made ahead, so the
            newest of them is the loss of the step before the last that began.
        signals: Shape (2,). First, above 0: end here, save, and be gone. Second, above 0: all ranks ask Ray at this
            step whether a node is about to be taken away.
    """

    weight: Tensor
    in_space: Tensor
    rows: Tensor
    errors: Tensor
    earlier_losses: Tensor
    signals: Tensor

    @classmethod
    def of(cls, batches: Sequence[LogBatch | None], earlier_losses: Tensor, signals: Signals) -> "BlockVector":
        """Return a rank's vector of a block.

        Args:
            batches: Its batches; None for one that could not be made, and for those after it.
            earlier_losses: As in the class.
            signals: This rank's signals.
        """
        weight = torch.zeros(len(batches), len(earlier_losses), dtype=torch.float64)
        in_space, rows = torch.zeros_like(weight), torch.zeros(len(batches), dtype=torch.float64)
        for place, batch in enumerate(batches):
            if batch is not None:
                weight[place] = (batch.in_space * batch.weight).sum(0, dtype=torch.float64)
                in_space[place] = torch.from_numpy(batch.cursor.in_space)
                rows[place] = batch.cursor.num_rows
        errors = torch.tensor([float(batch is None) for batch in batches], dtype=torch.float64)
        asked = torch.tensor([signals.stop, signals.look], dtype=torch.float64)
        return cls(
            weight=weight, in_space=in_space, rows=rows, errors=errors, earlier_losses=earlier_losses, signals=asked
        )

    def pack(self) -> Tensor:
        """Return the vector, of shape (N (2 K + 2) + K + 2,)."""
        parts = (self.weight, self.in_space, self.rows, self.errors, self.earlier_losses, self.signals)
        return torch.cat([part.flatten() for part in parts])

    @classmethod
    def unpack(cls, vector: Tensor, steps: int) -> "BlockVector":
        """Read a vector that `pack` made for N steps, or a sum of such vectors."""
        tasks = (len(vector) - 2 * steps - 2) // (2 * steps + 1)
        sizes = [steps * tasks, steps * tasks, steps, steps, tasks, 2]
        weight, in_space, rows, errors, losses, signals = vector.split(sizes)
        return cls(
            weight=weight.view(steps, tasks),
            in_space=in_space.view(steps, tasks),
            rows=rows,
            errors=errors,
            earlier_losses=losses,
            signals=signals,
        )


@dataclass(slots=True)
class _Block:
    batches: list[LogBatch | None]
    vector: Tensor
    work: dist.Work

    def wait(self) -> BlockVector:
        """Wait for the sum over the ranks."""
        self.work.wait()
        return BlockVector.unpack(self.vector, len(self.batches))


class CountedBatches(Iterator[RankingBatch]):
    """Batches of a day with their denominators, until all ranks have run dry or one of them has a reason to stop.

    Args:
        next_batch: Makes this rank's next batch, for a given step; all padding once its lane has run dry.
        first_step: The step of the first batch.
        loss_weights: w_k(t) of a step, shape (K,).
        take_losses: Sum of this rank's losses over the steps since the last call, shape (K,).
        group: A gloo process group that nothing else uses.
        signals: Signals that this rank sends with its next block.
        steps: Steps of a block. A signal is heeded at the next block but one.

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
        steps: int = 1,
    ) -> None:
        self._next_batch = next_batch
        self._step = first_step
        self._loss_weights = loss_weights
        self._take_losses = take_losses
        self._group = group
        self._signals = signals
        self._steps = steps
        self._pending: _Block | None = None
        self._left: list[LogBatch | None] = []
        self._sums: BlockVector | None = None
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
        if not self._left:
            self._begin_block()
        else:
            self.look = False
        assert self._sums is not None
        place, batch = self._steps - len(self._left), self._left.pop(0)
        rows = float(self._sums.rows[place])
        self.interrupted = self.interrupted and rows > 0
        self.stopped = self.stopped or float(self._sums.errors[place]) > 0
        if rows == 0 or self.stopped or self.interrupted:
            self._dry = True
            if batch is not None and not self.interrupted:
                self.end = batch.cursor
            raise StopIteration
        assert batch is not None
        if len(self._left) == self._steps - 1:
            self._pending = self._start()
        self.num_rows += int(rows)
        in_space = self._sums.in_space[place]
        self.in_space = in_space if self.in_space is None else self.in_space + in_space
        denominators = (self._sums.weight[place] / self._group.size()).to(torch.float32)
        return batch.for_step(denominators, self._loss_weights(batch.cursor.step))

    def _begin_block(self) -> None:
        """Wait for the sums of the next block, and read what they say of all its steps."""
        current = self._pending or self._start()
        self._sums, self._left = current.wait(), list(current.batches)
        losses = self._sums.earlier_losses / self._group.size()
        if bool(losses.any()):  # the first vectors bring none, and the last one may not
            self.losses = losses
        self.stopped = not bool(torch.isfinite(losses).all())
        stop, look = self._sums.signals.tolist()
        self.interrupted, self.look = stop > 0, look > 0

    def settle(self) -> None:
        """Look at the losses of steps that no vector has brought yet; collective, before anything is saved."""
        losses = self._take_losses().to(torch.float64)
        if self._pending is not None:  # carries the step before the last one
            losses = losses + self._pending.wait().earlier_losses / self._group.size()
        dist.all_reduce(losses, group=self._group)
        self.stopped = self.stopped or not bool(torch.isfinite(losses).all())

    def _start(self) -> _Block:
        """Make the batches of the next block and start their sum; a rank that cannot make one says so to the others."""
        losses = self._take_losses().to(torch.float64)
        batches: list[LogBatch | None] = []
        while len(batches) < self._steps and self.error is None:
            try:
                batches.append(self._next_batch(self._step))
            except DataError as error:
                self.error = error
            self._step += 1
        batches += [None] * (self._steps - len(batches))
        vector = BlockVector.of(batches, losses, self._signals()).pack()
        work = dist.all_reduce(vector, group=self._group, async_op=True)
        assert work is not None
        return _Block(batches, vector, work)
