"""What stands around a network, whichever it is, as a configuration names it."""

from collections.abc import Sequence

from features.schema import Declaration
from models.entire_space import EntireSpaceConfig
from models.interaction import NFwFMConfig
from models.slot_bias import SlotBiasConfig
from models.tasks import TaskHead


class AroundConfig(Declaration):
    """What stands around the multi-task network; absent, each changes no bit.

    Args:
        entire_space: Tasks whose probabilities are composed of several towers'.
        slot_bias: A logit for the slot, added to tasks' own in training.
        interaction: Products of every two features' embeddings, before the network.
    """

    entire_space: EntireSpaceConfig | None = None
    slot_bias: SlotBiasConfig | None = None
    interaction: NFwFMConfig | None = None

    def tower_heads(self, heads: Sequence[TaskHead]) -> Sequence[TaskHead]:
        """The towers of declared tasks; the tasks themselves unless some are composed."""
        return heads if self.entire_space is None else self.entire_space.tower_heads(heads)
