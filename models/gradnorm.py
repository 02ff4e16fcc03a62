"""GradNorm: task weights that follow the gradients' norms, so that all tasks train at a similar rate.

Source: Chen et al., "GradNorm: Gradient Normalization for Adaptive Loss Balancing in Deep Multitask Networks", ICML
2018, equations 1 and 2 and algorithm 1.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Bool, Float
from pydantic import Field
from torch import Tensor

from features.declaration import Declaration
from features.tasks import TaskConfig
from models.gradient_balance import BalanceRule
from models.uncertainty import refuse_negative_losses

# A weight of at most 0 would train its task backwards, or never again.
_LEAST_WEIGHT = 1e-3


class GradNorm(BalanceRule):
    """L = sum_k v_k L_k; v_k follows the gradient of L_grad = sum_k | G_k - G r_k^alpha |.

    G_k = v_k ||grad L_k|| over all shared parts as one vector, G their mean over the tasks; l_k = L_k(t) / L_k(0), and
    r_k = l_k over the mean of l. With G r_k^alpha held constant, dL_grad / dv_k = sign(G_k - G r_k^alpha) ||grad L_k||.
    A step uses v_k as left by the step before. Then v_k moves, and the v are scaled to sum to K again.

    Our reading where the source is silent: the gradients are those of w_k(t) L_k. L_grad is divided by G: norms at
    embeddings are smaller by orders of magnitude than weights near 1, and one learning rate has to serve all models.
    v_k stays above .001. L_k(0) is that of the first step with a row in the task's space. A task without such a row is
    left out of the means, and keeps its v_k. The source measures at the last shared layer to save time; here all
    gradients are available.

    Args:
        num_tasks: K.
        alpha: Strength of the pull on slow tasks; 0: all norms become equal.
        learning_rate: Learning rate of the v_k.

    Attributes:
        weights: v_k.
        first_losses: L_k(0); 0 before the first.
    """

    weights: Tensor
    first_losses: Tensor

    def __init__(self, num_tasks: int, alpha: float, learning_rate: float) -> None:
        super().__init__()
        self.alpha, self.learning_rate = alpha, learning_rate
        self.register_buffer("weights", torch.ones(num_tasks, dtype=torch.float64))
        self.register_buffer("first_losses", torch.zeros(num_tasks, dtype=torch.float64))

    def forward(
        self,
        grams: Float[Tensor, "part task task"],
        losses: Float[Tensor, " task"],
        is_present: Bool[Tensor, " task"],
    ) -> tuple[Float[Tensor, "part task"], Float[Tensor, " task"]]:
        """Compute the coefficients, and move the weights for the next step; see `BalanceRule`."""
        used = self.weights.clone()
        norms = grams.sum(0).diagonal().clamp(min=0).sqrt()
        self.first_losses.copy_(torch.where(self.first_losses > 0, self.first_losses, losses))
        is_moved = is_present & (norms > 0) & (self.first_losses > 0)
        self._move(used, norms, losses / torch.where(is_moved, self.first_losses, 1.0), is_moved)
        return used.expand(len(grams), -1), used

    def _move(self, used: Tensor, norms: Tensor, progress: Tensor, is_moved: Tensor) -> None:
        """Take one step of gradient descent on L_grad, for the tasks that are present; without a look from the host."""
        of_tasks = used * norms
        mean, slowness = _mean(of_tasks, is_moved), _mean(progress, is_moved)
        rates = torch.where(slowness > 0, progress / slowness, 1.0)
        gradient = torch.sign(of_tasks - mean * rates**self.alpha) * norms / mean
        moved = (used - self.learning_rate * gradient).clamp(min=_LEAST_WEIGHT)
        kept = _mean(used, is_moved) / _mean(moved, is_moved)
        self.weights.copy_(torch.where(is_moved, moved * kept, used))


def _mean(values: Tensor, chosen: Tensor) -> Tensor:
    """Return the mean of chosen values; 0 of none."""
    return torch.where(chosen, values, 0.0).sum() / chosen.sum().clamp(min=1)


class GradNormConfig(Declaration):
    """Weights that follow the gradients' norms, so that all tasks train at a similar rate.

    Args:
        kind: `gradnorm`.
        alpha: Strength of the pull on tasks that train slowly; 0: all gradients become equal in size.
        learning_rate: Learning rate of the weights, for a gradient that is a multiple of the mean norm.
    """

    kind: Literal["gradnorm"]
    alpha: float = Field(default=1.5, ge=0, allow_inf_nan=False)
    learning_rate: float = Field(default=0.025, gt=0, allow_inf_nan=False)

    def build(self, tasks: Sequence[TaskConfig], num_parts: int) -> GradNorm:
        """Build the method for these tasks.

        Raises:
            ConfigError: A task's loss can be negative.
        """
        refuse_negative_losses(self.kind, tasks)
        return GradNorm(len(tasks), self.alpha, self.learning_rate)
