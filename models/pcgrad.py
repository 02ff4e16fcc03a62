"""PCGrad: of two gradients that conflict, each loses its component along the other.

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
    """Find the projected gradients as sums of the original ones.

    g_i <- g_i - (g_i . g_j) / ||g_j||^2 g_j wherever g_i . g_j < 0, g_i being what is left of it and g_j as it was.

    Args:
        gram: Dot products g_i . g_j.
        orders: For each task i, the others j in the order in which they are projected on.

    Returns:
        In row i the coefficients of the original gradients in task i's.
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
    """The sum of the projected gradients, all shared parts being one vector; see `project`.

    Our reading, where the source is silent: the gradients are those of w_k(t) L_k, and the random orders are drawn from
    the number of steps that were made, so that all ranks draw the same and a resumed run goes on with the next.

    Attributes:
        num_steps: Steps that were made.
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
        """Choose the coefficients; see `BalanceRule`."""
        dice = torch.Generator().manual_seed(int(self.num_steps))
        self.num_steps.add_(1)
        orders = [torch.randperm(len(losses), generator=dice).tolist() for _ in losses]
        coefficients = torch.tensor(project(grams.sum(0).tolist(), orders)).to(grams).sum(0)
        return coefficients.expand(len(grams), -1), torch.ones_like(losses)


class PCGradConfig(Declaration):
    """Of two tasks' gradients that conflict, each loses its component along the other.

    Args:
        kind: `pcgrad`.
    """

    kind: Literal["pcgrad"]

    def build(self, tasks: Sequence[TaskConfig], num_parts: int) -> PCGrad:
        """Unpack."""
        return PCGrad()
