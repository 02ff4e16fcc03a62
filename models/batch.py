"""Batches: rows as they are read from a log, and what a step adds to them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor
from torchrec.streamable import Pipelineable

from models.flat_tensors import FlatTensors


@dataclass(slots=True)
class LogBatch:
    """B rows of a log with F sparse features, D dense features and K tasks: all that is read.

    Padding rows have empty bags and are in no task's sample space.

    Args:
        sparse: `KeyedJaggedTensor` with F keys in schema order, values of the shape `(F, B, L[f][i])`.
        dense: float32; NaN where the value is missing.
        labels: In the label's own unit, the class index for multiclass tasks; 0 outside the space.
        in_space: Mask of the rows in each task's sample space.
        weight: Weight of each row in each task.
        slot: The item's place on the page; -1 where unknown.
        truth: True probabilities of synthetic logs, in evaluations only.
        cursor: Origin of the rows; not a tensor, it stays on the host and returns with the step.
        users: Hash of each row's user, in evaluations with resamples only.
        groups: Hash of each row's group, in evaluations with metrics within groups only; 0 for rows without one.
        slices: Hash of each row's value in each declared slice, in evaluations by slices only.
        slice_texts: Packed texts of these values, one uint8 array per unit; they stay on the host.
        flat: The buffer of all tensors, with room for what a step adds; None: each has memory of its own.
    """

    sparse: KeyedJaggedTensor
    dense: Float[Tensor, "batch dense"]
    labels: Float[Tensor, "batch task"]
    in_space: Bool[Tensor, "batch task"]
    weight: Float[Tensor, "batch task"]
    slot: Int[Tensor, " batch"]
    truth: Float[Tensor, "batch task"] | None = None
    cursor: Any = None
    users: Int[Tensor, " batch"] | None = None
    groups: Int[Tensor, " batch"] | None = None
    slices: Int[Tensor, "batch slice"] | None = None
    slice_texts: Any = None
    flat: FlatTensors | None = None

    def of_tasks(self, places: Sequence[int]) -> "LogBatch":
        """Return the batch with some of its tasks, by their numbers; fields without a task dimension are shared."""
        if list(places) == list(range(self.labels.shape[1])):
            return self
        index = torch.tensor(places)
        by_row: dict[str, Any] = {name: getattr(self, name) for name in ("labels", "in_space", "weight", "truth")}
        by_row = {name: None if tensor is None else tensor[:, index] for name, tensor in by_row.items()}
        return replace(self, **by_row)

    def for_step(self, denominators: Float[Tensor, " task"], loss_weights: Float[Tensor, " task"]) -> "RankingBatch":
        """Return the batch with what a step adds; see `RankingBatch`."""
        added: dict[str, Any] = {"denominators": denominators, "loss_weights": loss_weights}
        if self.flat is not None:
            room = self.flat.tensors()
            added = {name: room[name].copy_(tensor) for name, tensor in added.items()}
        read: dict[str, Any] = {field.name: getattr(self, field.name) for field in fields(self)}
        return RankingBatch(**read | added)

    def flattened(self, *, pin: bool) -> "LogBatch":
        """Return the batch with all its tensors in one buffer.

        Args:
            pin: True for page-locked memory.
        """
        kept = {field.name: getattr(self, field.name) for field in fields(self)}
        tensors = {name: value for name, value in kept.items() if isinstance(value, Tensor)}
        tensors |= {"sparse.values": self.sparse.values(), "sparse.lengths": self.sparse.lengths()}
        room = torch.zeros(self.labels.shape[1])
        flat = FlatTensors.of(tensors | {"denominators": room, "loss_weights": room}, pin=pin)
        views = {name: view for name, view in _views(flat, self.sparse.keys()).items() if name in kept}
        return replace(self, **views, flat=flat)


def _views(flat: FlatTensors, keys: list[str]) -> dict[str, Any]:
    """Return the fields of a batch that lie in a buffer."""
    views: dict[str, Any] = flat.tensors()
    values, lengths = views.pop("sparse.values"), views.pop("sparse.lengths")
    return views | {"sparse": KeyedJaggedTensor(keys=keys, values=values, lengths=lengths)}


@dataclass(slots=True)
class RankingBatch(Pipelineable):
    """Batch of a step: the rows of a `LogBatch`, with the denominators and weights of their losses.

    Args:
        sparse: As in `LogBatch`, like the next five.
        dense: Dense values.
        labels: Labels.
        in_space: Mask of the rows in each task's sample space.
        weight: Weight of each row in each task.
        slot: The item's place on the page.
        denominators: Weight in space per task over the batches of all ranks, divided by the number of ranks. So the
            mean over ranks of the per-rank losses is the loss of the union.
        loss_weights: w_k(t) of the batch's step.
        truth: As in `LogBatch`.
        cursor: As in `LogBatch`.
        users: As in `LogBatch`.
        groups: As in `LogBatch`.
        slices: As in `LogBatch`.
        slice_texts: As in `LogBatch`.
        flat: As in `LogBatch`.
    """

    sparse: KeyedJaggedTensor
    dense: Float[Tensor, "batch dense"]
    labels: Float[Tensor, "batch task"]
    in_space: Bool[Tensor, "batch task"]
    weight: Float[Tensor, "batch task"]
    slot: Int[Tensor, " batch"]
    denominators: Float[Tensor, " task"]
    loss_weights: Float[Tensor, " task"]
    truth: Float[Tensor, "batch task"] | None = None
    cursor: Any = None
    users: Int[Tensor, " batch"] | None = None
    groups: Int[Tensor, " batch"] | None = None
    slices: Int[Tensor, "batch slice"] | None = None
    slice_texts: Any = None
    flat: FlatTensors | None = None

    def to(self, device: torch.device, non_blocking: bool = False) -> "RankingBatch":
        """Return the batch on a device; the cursor is shared. A flat batch is copied as one buffer."""
        if self.flat is not None:
            flat = self.flat.to(device, non_blocking=non_blocking)
            return replace(self, **_views(flat, self.sparse.keys()), flat=flat)
        return self._each(lambda tensor: tensor.to(device=device, non_blocking=non_blocking))

    def record_stream(self, stream: torch.Stream) -> None:
        """Keep the tensors' memory until the stream has used them."""
        if self.flat is not None:
            self.flat.buffer.record_stream(stream)  # pyright: ignore[reportArgumentType]
            return
        self._each(lambda tensor: tensor.record_stream(stream))

    def _each(self, change: Callable[[Any], Any]) -> "RankingBatch":
        values: list[Any] = [getattr(self, field.name) for field in fields(self)]
        return RankingBatch(*[change(v) if isinstance(v, Tensor | KeyedJaggedTensor) else v for v in values])
