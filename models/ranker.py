"""The whole model: `Ranker` is servable, `RankerTrain` returns the loss that trains it."""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torchrec.modules.embedding_modules import EmbeddingBagCollection
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from models.batch import RankingBatch
from models.entire_space import EntireSpace
from models.fusion import FusionNetwork
from models.inputs import InputArch
from models.loss import UnionSpaceLoss
from models.slot_bias import SlotBias


class Head(nn.Module):
    """A multi-task network and its towers: (B, d) -> (B, sum of outputs).

    Args:
        network: (B, d) -> (B, K, h), e.g. `models.ple.PLE`; its `penalty` joins the loss.
        towers: (B, K, h) -> (B, sum of outputs).
        autocast: Compute matrix products in this type (bfloat16); None: in the parameters' own.
    """

    def __init__(self, network: FusionNetwork, towers: nn.Module, autocast: torch.dtype | None = None) -> None:
        super().__init__()
        self.network = network
        self.towers = towers
        self.autocast = autocast

    def forward(self, inputs: Float[Tensor, "batch input"]) -> Float[Tensor, "batch output"]:
        """Raw outputs of all tasks side by side; never narrower than float32."""
        if self.autocast is None:
            return self.towers(self.network(inputs))
        with torch.autocast(inputs.device.type, dtype=self.autocast):
            return self.towers(self.network(inputs)).float()


class Ranker(nn.Module):
    """Embedding tables, input and head.

    Args:
        embeddings: The tables.
        inputs: Makes (B, d) from pooled embeddings and dense values.
        head: (B, d) -> (B, sum of the towers' outputs).
        slot_bias: Adds the slots' logits to the towers' outputs; None: there are none.
        entire_space: Makes the tasks' outputs of the towers'; None: they are the same.
    """

    def __init__(
        self,
        embeddings: EmbeddingBagCollection,
        inputs: InputArch,
        head: Head,
        slot_bias: SlotBias | None = None,
        entire_space: EntireSpace | None = None,
    ) -> None:
        super().__init__()
        self.embeddings = embeddings
        self.inputs = inputs
        self.head = head
        self.slot_bias = slot_bias
        self.entire_space = entire_space

    def forward(
        self,
        sparse: KeyedJaggedTensor,
        dense: Float[Tensor, "batch dense"],
        slot: Int[Tensor, " batch"] | None = None,
    ) -> Float[Tensor, "batch output"]:
        """Raw outputs (logits) of all tasks side by side, shape (B, sum of outputs).

        `models.tasks` turns them into probabilities and values. A slot is for training; what is to be scored has none.
        """
        pooled = self.embeddings(sparse)
        outputs = self.head(self.inputs(pooled, sparse, dense))
        if self.slot_bias is not None:
            outputs = self.slot_bias(outputs, slot, sparse)
        return outputs if self.entire_space is None else self.entire_space(outputs)


class StepOutput(NamedTuple):
    """What comes back with a step: the per-task losses on this rank's share, the outputs, and the batch itself."""

    losses: Float[Tensor, " task"]
    outputs: Float[Tensor, "batch output"]
    batch: RankingBatch


class RankerTrain(nn.Module):
    """A ranker with its union-space loss; what TorchRec's train pipelines run.

    Args:
        ranker: The servable model.
        loss: Over the union of the tasks' sample spaces.
    """

    def __init__(self, ranker: Ranker, loss: UnionSpaceLoss) -> None:
        super().__init__()
        self.ranker = ranker
        self.loss = loss

    def forward(self, batch: RankingBatch) -> tuple[Tensor, StepOutput]:
        """One forward pass.

        Returns:
            The weighted loss with the network's penalty, a scalar, and what comes back with the step.
        """
        outputs = self.ranker(batch.sparse, batch.dense, batch.slot)
        total, losses = self.loss(
            outputs, batch.labels, batch.in_space, batch.weight, batch.denominators, batch.loss_weights
        )
        penalty = self.ranker.head.network.penalty()
        if penalty is not None:
            total = total + penalty
        return total, StepOutput(losses.detach(), outputs.detach(), batch)
