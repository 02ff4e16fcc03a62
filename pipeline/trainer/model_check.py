"""Assembly of the configured model on the meta device, before a cluster is requested."""

import torch

from models.assembly import build_ranker
from pipeline.config.project import Config


def check_model(config: Config) -> Config:
    """Assemble the configured model without its memory.

    Returns:
        The configuration itself.

    Raises:
        ConfigError: Parts of the model do not fit together.
    """
    model, schema = config.model, config.log_schema
    with torch.device("meta"):
        build_ranker(schema, model.network, model.towers, model.dropout, None, config.joint_loss, around=model)
    return config
