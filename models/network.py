"""Every multi-task network that a config can name, and the one function that builds it.

A network is added by a file in models/, with a `FusionNetwork` and its config class (a `kind` and a `build`), and by
that class in the union below.
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
        task_names: The tasks, in the order of the output's second dimension.
        fields: Widths of the features that make up the input, for a network that has a token for each; None: one.
        ranks: For a network that measures the batches of all ranks; None: there is one.

    Raises:
        ConfigError: The config does not fit these tasks.
    """
    if isinstance(config, MRANConfig):
        return config.build(in_features, task_names, fields, ranks)
    return config.build(in_features, task_names)
