"""PCGrad: two conflicting gradients each lose their component along the other.

Source: Yu et al., "Gradient Surgery for Multi-Task Learning", NeurIPS 2020, algorithm 1.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from features.declaration import Declaration
from features.tasks import TaskConfig
from models.gradient_balance import BalanceRule

# The constants of SplitMix64, as signed numbers.
_GOLDEN, _MIX_1, _MIX_2 = (value - (1 << 64) for value in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))


def project(gram: Float[Tensor, "task task"], orders: Int[Tensor, "task place"]) -> Float[Tensor, "task task"]:
    """Return the projected gradients as linear combinations of the original ones.

    g_i <- g_i - (g_i . g_j) / ||g_j||^2 g_j wherever g_i . g_j < 0, with the current g_i and the original g_j.

    Args:
        gram: Dot products g_i . g_j.
        orders: For each task i, the tasks j in the order of projection; i itself is passed over.

    Returns:
        Coefficients of the original gradients, in row i for task i.
    """
    own = torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    for place in range(orders.shape[1]):
        other = orders[:, place]
        chosen = torch.zeros_like(own).scatter(1, other.unsqueeze(1), 1.0)
        dots, squares = (own * gram[other]).sum(1), gram.diagonal()[other]
        conflicts = (chosen.diagonal() == 0) & (dots < 0) & (squares > 0)
        factors = torch.where(conflicts, dots / torch.where(conflicts, squares, 1.0), 0.0)
        own = own - factors.unsqueeze(1) * chosen
    return own


def drawn_orders(step: Int[Tensor, ""], num_tasks: int) -> Int[Tensor, "task task"]:
    """Return a random order of the tasks for each task, as a function of the step alone.

    Tasks are ordered by a hash (the mixing of SplitMix64, on int64 that wraps around): a generator's seed would have to
    be read from the step's tensor, and a host would wait for its GPU.
    """
    places = torch.arange(num_tasks * num_tasks, device=step.device).view(num_tasks, num_tasks)
    mixed = (step * num_tasks * num_tasks + places + 1) * _GOLDEN
    for shift, factor in ((30, _MIX_1), (27, _MIX_2)):
        mixed = (mixed ^ _shifted(mixed, shift)) * factor
    return (mixed ^ _shifted(mixed, 31)).argsort(1)


def _shifted(values: Tensor, bits: int) -> Tensor:
    """Shift right, with zeros from the left."""
    return (values >> bits) & ((1 << (64 - bits)) - 1)


class PCGrad(BalanceRule):
    """Sum of the projected gradients, with all shared parts as one vector; see `project`.

    Our reading where the source is silent: the gradients are those of w_k(t) L_k. The random orders are drawn from the
    number of steps so far, so that all ranks draw the same and a resumed run continues with the next.

    Attributes:
        num_steps: Number of steps so far.
    """

    num_steps: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("num_steps", torch.zeros((), dtype=torch.int64))

    def forward(
        self,
        grams: Float[Tensor, "part task task"],
        losses: Float[Tensor, " task"],
        is_present: Bool[Tensor, " task"],
    ) -> tuple[Float[Tensor, "part task"], Float[Tensor, " task"]]:
        """Compute the coefficients; see `BalanceRule`."""
        orders = drawn_orders(self.num_steps, len(losses))
        self.num_steps.add_(1)
        coefficients = project(grams.sum(0), orders).sum(0)
        return coefficients.expand(len(grams), -1), torch.ones_like(losses)


class PCGradConfig(Declaration):
    """Projection of conflicting gradients: of two tasks, each loses its component along the other.

    Args:
        kind: `pcgrad`.
    """

    kind: Literal["pcgrad"]

    def build(self, tasks: Sequence[TaskConfig], num_parts: int) -> PCGrad:
        """Build the method."""
        return PCGrad()
