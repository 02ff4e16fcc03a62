"""Union of all loss-balancing configs, and the one function that builds the method."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Literal

from pydantic import Field
from torch import nn

from features.declaration import Declaration
from features.errors import ConfigError
from features.tasks import TaskConfig
from models.all_reduce import Ranks
from models.gradient_balance import GradientBalance, shared_slices
from models.gradnorm import GradNormConfig
from models.metabalance import MetaBalanceConfig
from models.network_base import FusionNetwork
from models.pcgrad import PCGradConfig
from models.task_reach import ParameterBlock, parameter_blocks
from models.uncertainty import UncertaintyConfig, UncertaintyWeights


class ScheduleConfig(Declaration):
    """The weights of `loss_weights` alone: L = sum_k w_k(t) L_k.

    Args:
        kind: `schedule`.
    """

    kind: Literal["schedule"]


LossBalancingConfig = Annotated[
    ScheduleConfig | UncertaintyConfig | MetaBalanceConfig | GradNormConfig | PCGradConfig,
    Field(discriminator="kind"),
]
SCHEDULE = ScheduleConfig(kind="schedule")


def check_composed(config: LossBalancingConfig) -> None:
    """Check that the method supports composed probabilities.

    Raises:
        ConfigError: The method balances gradients. It needs the tasks that share a parameter, known by the towers that
            the parameter reaches, and a tower of composed probabilities belongs to no single task.
    """
    if not isinstance(config, ScheduleConfig | UncertaintyConfig):
        raise ConfigError(
            f"loss_balancing.kind {config.kind} with model.entire_space: towers of composed probabilities "
            "belong to no single task, so the tasks' shared parts are unknown: use uncertainty or schedule"
        )


def check_pooled(config: LossBalancingConfig) -> None:
    """Check that the method supports unpooled sequences.

    Raises:
        ConfigError: The method balances gradients at pooled embeddings, which unpooled entries do not have.
    """
    if not isinstance(config, ScheduleConfig | UncertaintyConfig):
        raise ConfigError(
            f"loss_balancing.kind {config.kind} with model.user: gradients are balanced at pooled embeddings, but "
            "events are not pooled: use uncertainty or schedule"
        )


def build_balancing(
    config: LossBalancingConfig,
    tasks: Sequence[TaskConfig],
    dense: Mapping[str, nn.Parameter],
    network: FusionNetwork,
    in_features: int,
    num_pooled: int,
    ranks: Ranks,
) -> UncertaintyWeights | GradientBalance | None:
    """Build the method between the tasks' losses and the backward pass; None: their weighted sum alone.

    Args:
        config: A member of the union.
        tasks: The tasks, in order.
        dense: All dense parameters by their names within the ranker.
        network: The multi-task network that owns some of them. May be on the meta device unless shared parts are
            needed.
        in_features: Width of the network's input.
        num_pooled: Number of features looked up in tables.
        ranks: All ranks, for sums over them.

    Raises:
        ConfigError: The config does not fit these tasks.
    """
    if isinstance(config, ScheduleConfig):
        return None
    if isinstance(config, UncertaintyConfig):
        return config.build(tasks)
    shared = shared_slices(dense, blocks_of_dense(dense, network, in_features, len(tasks)))
    return GradientBalance(config.build(tasks, len(shared) + num_pooled), shared, ranks)


def blocks_of_dense(
    dense: Mapping[str, nn.Parameter], network: FusionNetwork, in_features: int, num_tasks: int
) -> list[ParameterBlock]:
    """Return blocks of the network and of the modules before it; each of the latter's parameters reaches all tasks."""
    tasks = tuple(range(num_tasks))
    before = [(name, parameter) for name, parameter in dense.items() if name.startswith(("inputs.", "interaction."))]
    blocks = [ParameterBlock(name=n, start=0, stop=len(p), tasks=tasks) for n, p in before if len(p)]
    if any(parameter.is_meta for parameter in dense.values()):
        return blocks
    of_network = parameter_blocks(network, in_features)
    prefix = "head.network."
    return blocks + [
        ParameterBlock(name=prefix + block.name, start=block.start, stop=block.stop, tasks=block.tasks)
        for block in of_network
    ]
