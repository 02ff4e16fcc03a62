"""Union of all network configs, and the one function that builds the network.

To add a network, add a file in models/ with a `FusionNetwork` and its config class (a `kind` and a `build`), and that
class to the union below.
"""

from collections.abc import Sequence
from typing import Annotated

from pydantic import Field

from models.all_reduce import Ranks
from models.mmoe import MLMMoEConfig, MMoEConfig, OMoEConfig
from models.mran import MRANConfig
from models.network_base import FusionNetwork
from models.ple import CGCConfig, PLEConfig
from models.sharing import AsymmetricSharingConfig, CustomizedSharingConfig, HardSharingConfig
from models.stitch import CrossStitchConfig, SluiceConfig

NetworkConfig = Annotated[
    PLEConfig
    | CGCConfig
    | MMoEConfig
    | OMoEConfig
    | MLMMoEConfig
    | HardSharingConfig
    | AsymmetricSharingConfig
    | CustomizedSharingConfig
    | CrossStitchConfig
    | SluiceConfig
    | MRANConfig,
    Field(discriminator="kind"),
]


def build_network(
    config: NetworkConfig,
    in_features: int,
    task_names: Sequence[str],
    fields: Sequence[int] | None = None,
    ranks: Ranks | None = None,
) -> FusionNetwork:
    """Build the network that a config describes.

    Args:
        config: A member of the union.
        in_features: Width of the network's input.
        task_names: Names of the tasks, in the order of the output's second dimension.
        fields: Widths of the features that make up the input, for a network with a token per feature; None: one.
        ranks: All ranks, for a network that measures the whole batch; None: one rank.

    Raises:
        ConfigError: The config does not fit these tasks.
    """
    if isinstance(config, MRANConfig):
        return config.build(in_features, task_names, fields, ranks)
    return config.build(in_features, task_names)
