"""Combination of the tasks' losses beyond the weights w_k(t), as configured."""

from collections.abc import Sequence
from dataclasses import dataclass

from models.balancing import SCHEDULE, LossBalancingConfig
from models.kl_bound import KLBoundConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class JointLoss:
    """Configuration of the one loss that combines the tasks' losses.

    Args:
        balancing: Method that balances the losses, or their gradients.
        bounds: Terms added to tie tasks to each other.
    """

    balancing: LossBalancingConfig = SCHEDULE
    bounds: Sequence[KLBoundConfig] = ()


WEIGHTED_SUM = JointLoss()
"""L = sum_k w_k(t) L_k, and nothing else."""
