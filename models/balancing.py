"""Every way to balance the tasks' losses that a config can name, and the one function that builds it."""

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
    """Refuse what does not go with composed probabilities.

    Raises:
        ConfigError: Gradients would be balanced, where a tower is not a task's: which tasks share a parameter is
            known by the towers that it reaches.
    """
    if not isinstance(config, ScheduleConfig | UncertaintyConfig):
        raise ConfigError(
            f"loss_balancing.kind {config.kind} with model.entire_space: towers of composed probabilities are no "
            "task's own, so it is not known where tasks meet: use uncertainty or schedule"
        )


def check_pooled(config: LossBalancingConfig) -> None:
    """Refuse what does not go with sequences that are not pooled.

    Raises:
        ConfigError: Gradients would be balanced: that happens at pooled embeddings, and entries have none.
    """
    if not isinstance(config, ScheduleConfig | UncertaintyConfig):
        raise ConfigError(
            f"loss_balancing.kind {config.kind} with model.user: tasks' gradients meet at pooled embeddings, and those "
            "of events are not pooled: use uncertainty or schedule"
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
    """Build what stands between the tasks' losses and the backward pass; None: their weighted sum alone.

    Args:
        config: A member of the union.
        tasks: The tasks, in order.
        dense: All dense parameters by their names within the ranker.
        network: The multi-task network among them. On the meta device where its shared parts are not asked for.
        in_features: Width of its input.
        num_pooled: Features that are looked up in tables.
        ranks: For sums over all of them.

    Raises:
        ConfigError: The config does not fit these tasks.
    """
    if isinstance(config, ScheduleConfig):
        return None
    if isinstance(config, UncertaintyConfig):
        return config.build(tasks)
    shared = shared_slices(dense, _blocks(dense, network, in_features, len(tasks)))
    return GradientBalance(config.build(tasks, len(shared) + num_pooled), shared, ranks)


def _blocks(
    dense: Mapping[str, nn.Parameter], network: FusionNetwork, in_features: int, num_tasks: int
) -> list[ParameterBlock]:
    """Blocks of the network, and of what stands before it: that reaches all tasks, each parameter being one block."""
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
