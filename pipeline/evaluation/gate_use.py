"""Use of experts by gates, over the measured rows."""

import functools
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from models.experts import Gates


class GateUse:
    """Use of each expert by each gate: moments of its weights over the measured rows.

    Args:
        model: Model whose modules of kind `Gates` are watched.
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
        self._newest.setdefault(name, []).append(weights)  # once per slab of a batch

    def add(self, num_rows: int) -> None:
        """Count the newest batch, without its padding.

        Args:
            num_rows: Number of rows of the batch without padding.
        """
        self._num_rows += num_rows
        newest, self._newest = self._newest, {}
        for name, slabs in newest.items():
            weights = torch.cat(slabs)[:num_rows].to("cpu", torch.float64)
            total = torch.stack([weights.sum(0), weights.square().sum(0)])
            self._sums[name] = self._sums[name] + total if name in self._sums else total

    def stop(self) -> None:
        """Stop watching; the counts stay."""
        for hook in self._hooks:
            hook.remove()

    def moments(self, group: dist.ProcessGroup) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return mean and deviation of each expert's weight, per module and gate; collective. Ends the accumulation."""
        self.stop()
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
