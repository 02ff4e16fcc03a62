"""Copy of a run's tensors in the host's memory, from which a checkpoint is written while training goes on."""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.distributed._state_dict_utils import _copy_state_dict, _create_cpu_state_dict

_PIECE_BYTES = 64 << 20


class HostCopy:
    """Copy of tensors, of their exact size, allocated once and used for every save of a run.

    Tensors of a GPU pass through two page-locked buffers of fixed size: one is filled by the GPU while the other is
    emptied. A copy that was page-locked as a whole would take, rounded up to powers of two, up to twice the tables'
    bytes out of the host's memory for good. The way through a GPU has not been run here; the pieces have, on a CPU.

    Args:
        tensors: Tensors of all parts, as from `TrainState.tensors`; their shapes do not change.
        piece_bytes: Size of a buffer.
    """

    def __init__(self, tensors: Mapping[str, Any], piece_bytes: int = _PIECE_BYTES) -> None:
        self._copy = _create_cpu_state_dict(dict(tensors))
        self._piece_bytes = piece_bytes
        self._buffers: list[_Buffer] = []

    def refresh(self, tensors: Mapping[str, Any]) -> dict[str, Any]:
        """Copy the tensors as they are now; return the copy, which stays until the next call."""
        pairs = list(_pairs(tensors, self._copy))
        if all(source.device.type == "cpu" for source, _ in pairs):
            _copy_state_dict(dict(tensors), self._copy, type_check=False)
        else:
            self.copy_through_buffers(pairs)
        return self._copy

    def copy_through_buffers(self, pairs: list[tuple[Tensor, Tensor]]) -> None:
        """Copy each pair's first tensor to its second, in pieces, through two buffers in turns."""
        on_gpu = any(source.is_cuda for source, _ in pairs)
        if not self._buffers:
            self._buffers = [_Buffer(self._piece_bytes, pin=on_gpu) for _ in range(2)]
        for number, (source, target) in enumerate(_pieces(pairs, self._piece_bytes)):
            self._buffers[number % 2].take(source, target)
        for buffer in self._buffers:
            buffer.empty()


class _Buffer:
    """Buffer that holds a piece on its way to the host's copy."""

    def __init__(self, size: int, *, pin: bool) -> None:
        self._memory = torch.empty(size, dtype=torch.uint8, pin_memory=pin)
        self._filled = torch.cuda.Event() if pin else None
        self._target: Tensor | None = None

    def take(self, source: Tensor, target: Tensor) -> None:
        """Start the copy of a piece into the buffer, after what it held has gone to its own target."""
        self.empty()
        self._view(target).copy_(source, non_blocking=True)
        if self._filled is not None:
            self._filled.record()
        self._target = target

    def empty(self) -> None:
        """Wait for the piece, and copy it to its target."""
        if self._target is not None:
            if self._filled is not None:
                self._filled.synchronize()
            self._target.copy_(self._view(self._target))
            self._target = None

    def _view(self, like: Tensor) -> Tensor:
        return self._memory[: like.nbytes].view(like.dtype)


def _pairs(source: Any, target: Any) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield this rank's tensors of a tree with those at the same places of another."""
    if isinstance(source, Mapping):
        for name, inner in source.items():
            yield from _pairs(inner, target[name])
    elif hasattr(source, "local_shards"):
        for mine, other in zip(source.local_shards(), target.local_shards(), strict=True):
            yield mine.tensor, other.tensor
    elif isinstance(source, Tensor):
        yield source, target


def _pieces(pairs: list[tuple[Tensor, Tensor]], piece_bytes: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield flat views of at most `piece_bytes` of each pair."""
    for source, target in pairs:
        flat, numbers = source.detach().reshape(-1), piece_bytes // source.element_size()
        yield from zip(flat.split(numbers), target.view(-1).split(numbers), strict=True)
