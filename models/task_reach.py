"""Task reach: the tasks whose losses reach each row of a network's parameters.

Gradient balancing works on the parameters that several tasks share. Most parameters here are grouped (an expert, a
bottom, a column or a gate's logit is one row of a tensor), so a shared part is a range of rows.
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
        start: First row, along the first dimension.
        stop: Row after the last.
        tasks: Numbers of the tasks.
    """

    name: str
    start: int
    stop: int
    tasks: tuple[int, ...]

    def of(self, tensor: Tensor) -> Tensor:
        """Return a view of the block's rows of the parameter, or of its gradient."""
        return tensor[self.start : self.stop]


def reached_tasks(network: FusionNetwork, in_features: int) -> dict[str, Bool[Tensor, "row task"]]:
    """Find the tasks whose outputs depend on each row of each parameter.

    The result is measured, not declared, so it holds for any network. In a copy in float64 with positive weights and a
    positive input, no ReLU is off and no path from a parameter to a task cancels. So a gradient is exactly 0 only
    without a path. A parameter that no task reaches has no effect at all, like the weights of a gate with a single
    expert.

    Args:
        network: On a real device: index tables of a network on the meta device have no values.
        in_features: Width of the network's input.
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
    """Split a network's parameters into the largest ranges of rows that the same tasks reach.

    Blocks of two tasks or more are shared. Each tower belongs to one task.

    Args:
        network: As in `reached_tasks`.
        in_features: Width of the network's input.
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
