"""How the tasks' losses become one, as a configuration names it, beyond the weights w_k(t)."""

from collections.abc import Sequence
from dataclasses import dataclass

from models.balancing import SCHEDULE, LossBalancingConfig
from models.kl_bound import KLBoundConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class JointLoss:
    """What a configuration says of the one loss that is made of the tasks'.

    Args:
        balancing: How they, or their gradients, are balanced.
        bounds: What is added to hold tasks to each other.
    """

    balancing: LossBalancingConfig = SCHEDULE
    bounds: Sequence[KLBoundConfig] = ()


WEIGHTED_SUM = JointLoss()
"""L = sum_k w_k(t) L_k, and nothing else."""
