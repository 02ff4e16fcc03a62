"""Uncertainty weighting: each task's weight is learned, as the inverse of its homoscedastic variance.

Source: Kendall et al., "Multi-Task Learning Using Uncertainty to Weigh Losses", CVPR 2018, in the form of the Meitu
Multi-task NFwFM: L = sum_k exp(-s_k) L_k + s_k, with s_k = log sigma_k^2 learned from 0.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from features.declaration import Declaration
from features.errors import ConfigError
from features.tasks import TaskConfig
from models.parameter_names import ParameterPart


class UncertaintyWeights(nn.Module):
    """L = sum over present tasks of w_k(t) (exp(-s_k) L_k + s_k).

    Our reading where the source is silent: the schedule's w_k(t) weighs a task's whole term, so that s_k keeps its
    optimum exp(s_k) = L_k. A task without a row in its space at a step has no term in it: with L_k = 0 the lone s_k
    would fall at every such step, without a bound. `optimizer.dense.weight_decay` pulls s_k towards 0 like every dense
    parameter.

    Args:
        num_tasks: K.

    Attributes:
        log_variances: s_k.
    """

    def __init__(self, num_tasks: int) -> None:
        super().__init__()
        self.log_variances = nn.Parameter(torch.zeros(num_tasks))

    def parts(self, tasks: Sequence[str]) -> list[ParameterPart]:
        """Name the parts; see `models.parameter_names`."""
        owners = [f"log variance of task {task}" for task in tasks]
        return [
            ParameterPart(self.log_variances, index, owner, "", (((owner, ""),),)) for index, owner in enumerate(owners)
        ]

    def forward(
        self,
        losses: Float[Tensor, " task"],
        loss_weights: Float[Tensor, " task"],
        is_present: Bool[Tensor, " task"],
    ) -> Float[Tensor, ""]:
        """Compute the weighted sum of the losses.

        Args:
            losses: L_k on this rank's share; the mean over the ranks is the loss of the union.
            loss_weights: w_k(t).
            is_present: True for tasks with a row of any rank in their space; the same on all ranks.
        """
        terms = loss_weights * (torch.exp(-self.log_variances) * losses + self.log_variances)
        return torch.where(is_present, terms, 0.0).sum()


class UncertaintyConfig(Declaration):
    """Weights that are learned, as inverse variances: L = sum_k w_k (exp(-s_k) L_k + s_k).

    Args:
        kind: `uncertainty`.
    """

    kind: Literal["uncertainty"]

    def build(self, tasks: Sequence[TaskConfig]) -> UncertaintyWeights:
        """Build the method for these tasks.

        Raises:
            ConfigError: A task's loss can be negative.
        """
        refuse_negative_losses(self.kind, tasks)
        return UncertaintyWeights(len(tasks))


def refuse_negative_losses(kind: str, tasks: Sequence[TaskConfig]) -> None:
    """Check that no task's loss can be below 0, for a method that takes its logarithm or a ratio.

    Raises:
        ConfigError: A task's loss can; names the first.
    """
    for task in tasks:
        if task.loss == "poisson":
            raise ConfigError(
                f"loss_balancing is {kind}, which needs losses that are not negative, and task {task.name!r} has a "
                "poisson loss: choose another loss, or metabalance or pcgrad"
            )
