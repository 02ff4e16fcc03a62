"""Where tasks meet: which tasks' losses reach which rows of a network's parameters.

Methods that balance gradients work on what several tasks share. Most parameters here are grouped (an expert, a bottom,
a column or a gate's logit being one row of a tensor), so what is shared is a range of rows.
"""

import copy
from dataclasses import dataclass
from itertools import groupby

import torch
from jaxtyping import Bool
from torch import Tensor

from models.network_base import FusionNetwork


@dataclass(frozen=True, slots=True, kw_only=True)
class ParameterBlock:
    """Rows of a parameter that the same tasks' losses reach.

    Args:
        name: The parameter's name within the network.
        start: Its first row, along the first dimension.
        stop: The row after its last.
        tasks: The tasks, by number.
    """

    name: str
    start: int
    stop: int
    tasks: tuple[int, ...]

    def of(self, tensor: Tensor) -> Tensor:
        """A view of the rows of the parameter, or of its gradient."""
        return tensor[self.start : self.stop]


def reached_tasks(network: FusionNetwork, in_features: int) -> dict[str, Bool[Tensor, "row task"]]:
    """Find which task's outputs depend on which rows of which parameter.

    It is asked of the network, not declared by it, so it holds for any network: a copy in float64 with positive weights
    and a positive input has no ReLU that is off, and of a path from a parameter to a task nothing cancels, so that a
    gradient is exactly 0 only where there is no path. What no task reaches has no effect at all, like the weights of a
    gate that has one expert to choose from.

    Args:
        network: On a real device: index tables of a network on the meta device have no values.
        in_features: Width of its input.
    """
    generator = torch.Generator().manual_seed(0)
    probe = copy.deepcopy(network).to("cpu", torch.float64).eval()
    for parameter in probe.parameters():
        # Divided by the fan-in, so that sums stay near 1 and no gate saturates.
        fan_in = parameter.shape[-1] if parameter.dim() else 1
        parameter.data.uniform_(0, 1, generator=generator).div_(fan_in)
    named = dict(probe.named_parameters())
    fused = probe(torch.rand(1, in_features, dtype=torch.float64, generator=generator))
    columns = []
    for task in range(fused.shape[1]):
        grads = torch.autograd.grad(
            fused[:, task].sum(), list(named.values()), retain_graph=True, materialize_grads=True
        )
        columns.append([grad.reshape(grad.shape[0] if grad.dim() else 1, -1).ne(0).any(1) for grad in grads])
    return {
        name: torch.stack(of_tasks, dim=1) for name, of_tasks in zip(named, zip(*columns, strict=True), strict=True)
    }


def parameter_blocks(network: FusionNetwork, in_features: int) -> list[ParameterBlock]:
    """Cut a network's parameters into the largest ranges of rows that the same tasks reach.

    Those with two tasks or more are shared; those with all are shared by all. The towers are each task's own.

    Args:
        network: As of `reached_tasks`.
        in_features: Width of its input.
    """
    blocks = []
    for name, reached in reached_tasks(network, in_features).items():
        start = 0
        for row, rows in groupby(reached.tolist()):
            stop = start + len(list(rows))
            tasks = tuple(task for task, reaches in enumerate(row) if reaches)
            blocks.append(ParameterBlock(name=name, start=start, stop=stop, tasks=tasks))
            start = stop
    return blocks
