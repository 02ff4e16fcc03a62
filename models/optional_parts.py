"""Optional parts around the multi-task network: entire-space composition, slot bias, interaction, user tower."""

from collections.abc import Sequence
from typing import Self

from pydantic import model_validator

from features.declaration import Declaration
from models.entire_space import EntireSpaceConfig
from models.interaction import NFwFMConfig
from models.slot_bias import SlotBiasConfig
from models.tasks import TaskHead
from models.user import UserConfig


class AroundConfig(Declaration):
    """Optional parts around the multi-task network; an absent part changes no bit.

    Args:
        entire_space: Tasks whose probabilities are composed of the outputs of several towers.
        slot_bias: A logit of the slot, added to the tasks' logits in training.
        interaction: Products of every two features' embeddings, before the network.
        user: The user tower, computed once per user.
    """

    entire_space: EntireSpaceConfig | None = None
    slot_bias: SlotBiasConfig | None = None
    interaction: NFwFMConfig | None = None
    user: UserConfig | None = None

    @model_validator(mode="after")
    def _check_user(self) -> Self:
        if self.user is None:
            return self
        if self.interaction is not None:
            raise ValueError(
                "model.interaction with model.user: it multiplies the embeddings of single features, but the user's "
                "side is one vector: leave one of the two out"
            )
        composed = self.entire_space.probabilities if self.entire_space else {}
        read = {name for probability in composed.values() for name in probability.names}
        for name in self.user.without_tower:
            if name in {*composed, *read, *(self.slot_bias.tasks if self.slot_bias else [])}:
                raise ValueError(
                    f"model.user: task {name!r} is read from the user's vector, so it has no tower that entire_space "
                    "or slot_bias could name"
                )
        return self

    def meaning(self) -> Self:
        """Return the configuration without the keys that change no tensor: how slots are scored and checked."""
        if self.slot_bias is None:
            return self
        default = {"when_scoring": "missing", "beyond_last": "refuse"}
        return self.model_copy(update={"slot_bias": self.slot_bias.model_copy(update=default)})

    def network_heads(self, heads: Sequence[TaskHead]) -> list[TaskHead]:
        """Return the heads of the network's tasks: all tasks but those read from the user's vector."""
        without = self.user.without_tower if self.user else []
        return [head for head in heads if head.name not in without]

    def tower_heads(self, heads: Sequence[TaskHead]) -> Sequence[TaskHead]:
        """Return the heads of the towers; the network's tasks themselves unless some are composed."""
        heads = self.network_heads(heads)
        return heads if self.entire_space is None else self.entire_space.tower_heads(heads)
