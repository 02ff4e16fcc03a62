"""MetaBalance: scales auxiliary tasks' gradients to near the size of the target's, part by part.

Source: He et al., "MetaBalance: Improving Multi-Task Recommendations via Adapting Gradient Magnitudes of Auxiliary
Tasks", WWW 2022.
"""

from collections.abc import Sequence
from difflib import get_close_matches
from typing import Literal

import torch
from jaxtyping import Bool, Float
from pydantic import Field
from torch import Tensor

from features.declaration import Declaration
from features.errors import ConfigError
from features.tasks import TaskConfig
from models.gradient_balance import BalanceRule

Strategy = Literal["A", "B", "C"]


class MetaBalance(BalanceRule):
    """G_i <- (G_i m_tar / m_i) r + G_i (1 - r) for an auxiliary task i, and G = G_tar + sum_i G_i.

    m <- beta m + (1 - beta) ||G|| from m = 0, for each task in each part. All share the start-up factor 1 - beta^t, so
    their ratios need no correction. Strategy A changes only gradients larger than the target's (m_i > m_tar), B only
    smaller ones, C both.

    Our reading where the source is silent: for several targets, G_tar is the sum of their gradients, and none is
    changed. The gradients are those of w_k(t) L_k. A step without a row in a task's space counts as a gradient of 0. If
    m_i or m_tar is still 0 (no gradient yet, or a part that the target does not reach) nothing is changed, where the
    authors' code divides 0 by 0.

    Args:
        is_target: Flags of the target tasks.
        num_parts: Number of shared parts.
        strategy: A, B or C.
        beta: Decay of the moving averages.
        relax: r.

    Attributes:
        norms: m of every part: the target's, then every task's.
    """

    is_target: Tensor
    norms: Tensor

    def __init__(
        self, is_target: Sequence[bool], num_parts: int, *, strategy: Strategy, beta: float, relax: float
    ) -> None:
        super().__init__()
        self.strategy, self.beta, self.relax = strategy, beta, relax
        self.register_buffer("is_target", torch.tensor(is_target), persistent=False)
        self.register_buffer("norms", torch.zeros(num_parts, 1 + len(is_target), dtype=torch.float64))

    def forward(
        self,
        grams: Float[Tensor, "part task task"],
        losses: Float[Tensor, " task"],
        is_present: Bool[Tensor, " task"],
    ) -> tuple[Float[Tensor, "part task"], Float[Tensor, " task"]]:
        """Compute the coefficients; see `BalanceRule`."""
        target = grams[:, self.is_target][:, :, self.is_target].sum((1, 2))
        squares = torch.cat([target.unsqueeze(1), grams.diagonal(dim1=1, dim2=2)], dim=1)
        self.norms.lerp_(squares.clamp(min=0).sqrt(), 1 - self.beta)
        target, tasks = self.norms[:, :1], self.norms[:, 1:]
        is_larger = tasks > target
        changes = {"A": is_larger, "B": ~is_larger, "C": torch.ones_like(is_larger)}[self.strategy]
        changes = changes & ~self.is_target & (tasks > 0) & (target > 0)
        weights = (target / torch.where(tasks > 0, tasks, 1.0) - 1) * self.relax + 1
        return torch.where(changes, weights, 1.0), torch.ones_like(losses)


class MetaBalanceConfig(Declaration):
    """Auxiliary tasks' gradients scaled to near the size of the targets', at shared parts.

    Args:
        kind: `metabalance`.
        targets: Names of the target tasks; absent: those not declared `role: auxiliary`.
        strategy: `A` only shrinks large gradients, `B` only enlarges small ones, `C` both.
        beta: Share of a norm's moving average that is kept from the step before.
        relax: r: 0 changes nothing, 1 gives auxiliary gradients the target's size.
    """

    kind: Literal["metabalance"]
    targets: list[str] | None = Field(default=None, min_length=1)
    strategy: Strategy = "C"
    beta: float = Field(default=0.9, ge=0, lt=1)
    relax: float = Field(default=0.7, ge=0, le=1)

    def build(self, tasks: Sequence[TaskConfig], num_parts: int) -> MetaBalance:
        """Build the method for these tasks.

        Raises:
            ConfigError: A target does not exist, or all tasks are targets.
        """
        names = [task.name for task in tasks]
        targets = [task.name for task in tasks if task.role == "main"] if self.targets is None else self.targets
        for name in [name for name in targets if name not in names]:
            near = get_close_matches(name, names, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"declared are {names}"
            raise ConfigError(f"loss_balancing.targets: there is no task {name!r}: {hint}")
        if not targets or set(targets) == set(names):
            raise ConfigError(
                f"loss_balancing is metabalance, and {'all' if targets else 'none'} of the tasks {names} are targets: "
                "name some of them in loss_balancing.targets, or declare the others role: auxiliary"
            )
        is_target = [name in targets for name in names]
        return MetaBalance(is_target, num_parts, strategy=self.strategy, beta=self.beta, relax=self.relax)
