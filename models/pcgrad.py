"""PCGrad: two conflicting gradients each lose their component along the other.

Source: Yu et al., "Gradient Surgery for Multi-Task Learning", NeurIPS 2020, algorithm 1.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from features.declaration import Declaration
from features.tasks import TaskConfig
from models.gradient_balance import BalanceRule


def project(gram: Sequence[Sequence[float]], orders: Sequence[Sequence[int]]) -> list[list[float]]:
    """Return the projected gradients as linear combinations of the original ones.

    g_i <- g_i - (g_i . g_j) / ||g_j||^2 g_j wherever g_i . g_j < 0, with the current g_i and the original g_j.

    Args:
        gram: Dot products g_i . g_j.
        orders: For each task i, the others j in the order of projection.

    Returns:
        Coefficients of the original gradients, in row i for task i.
    """
    tasks = range(len(gram))
    found = []
    for task, others in zip(tasks, orders, strict=True):
        own = [float(task == other) for other in tasks]
        for other in others:
            dot = sum(own[each] * gram[each][other] for each in tasks)
            if other != task and dot < 0 < gram[other][other]:
                own[other] -= dot / gram[other][other]
        found.append(own)
    return found


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
        dice = torch.Generator().manual_seed(int(self.num_steps))
        self.num_steps.add_(1)
        orders = [torch.randperm(len(losses), generator=dice).tolist() for _ in losses]
        coefficients = torch.tensor(project(grams.sum(0).tolist(), orders)).to(grams).sum(0)
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
