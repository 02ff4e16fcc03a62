"""Tensors in one buffer, so that one copy moves all of them to a GPU."""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
import torch
from torch import Tensor

_ALIGNED = 64  # bytes; every type's own alignment divides it


@dataclass(frozen=True, slots=True)
class FlatTensors:
    """Named tensors that lie one after the other in a buffer.

    Args:
        buffer: uint8, in page-locked memory where it was asked for.
        places: Type, shape and first byte of each tensor.
    """

    buffer: Tensor
    places: Mapping[str, tuple[torch.dtype, torch.Size, int]]

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor], *, pin: bool) -> "FlatTensors":
        """Copy tensors of the host into a new buffer.

        NumPy copies: it starts no threads of its own, which would take the cores of the training thread.

        Args:
            tensors: The tensors.
            pin: True for page-locked memory, from which a copy to a GPU is asynchronous.
        """
        sizes = [-(-tensor.nbytes // _ALIGNED) * _ALIGNED for tensor in tensors.values()]
        starts = list(accumulate(sizes, initial=0))
        buffer = torch.empty(starts[-1], dtype=torch.uint8, pin_memory=pin)
        places = {name: (of.dtype, of.shape, at) for (name, of), at in zip(tensors.items(), starts, strict=False)}
        flat = cls(buffer, places)
        for name, view in flat.tensors().items():
            np.copyto(view.numpy(), tensors[name].numpy())
        return flat

    def tensors(self) -> dict[str, Tensor]:
        """Return the tensors, views of the buffer."""
        return {
            name: self.buffer[start : start + shape.numel() * dtype.itemsize].view(dtype).view(shape)
            for name, (dtype, shape, start) in self.places.items()
        }

    def to(self, device: torch.device, *, non_blocking: bool) -> "FlatTensors":
        """Copy the buffer to a device, at once."""
        return FlatTensors(self.buffer.to(device=device, non_blocking=non_blocking), self.places)
