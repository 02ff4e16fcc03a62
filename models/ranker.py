"""Whole model: `Ranker` is servable, `RankerTrain` returns the loss that trains it."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
import torch.fx
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torchrec.modules.embedding_modules import EmbeddingBagCollection
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor, KeyedTensor

from models.batch import RankingBatch
from models.entire_space import EntireSpace
from models.gradient_balance import GradientBalance, carry_over
from models.inputs import InputArch, LookedUp
from models.interaction import NFwFM
from models.kl_bound import KLBound
from models.loss import UnionSpaceLoss
from models.network_base import FusionNetwork
from models.slot_bias import SlotBias
from models.uncertainty import UncertaintyWeights
from models.user import UserArch


class Head(nn.Module):
    """A multi-task network and its towers: (B, d) -> (B, sum of outputs).

    Args:
        network: (B, d) -> (B, K, h), e.g. `models.ple.PLE`; its `penalty` joins the loss.
        towers: (B, K, h) -> (B, sum of outputs).
        autocast: Dtype of the matrix products (bfloat16); None: that of the parameters.
    """

    def __init__(self, network: FusionNetwork, towers: nn.Module, autocast: torch.dtype | None = None) -> None:
        super().__init__()
        self.network = network
        self.towers = towers
        self.autocast = autocast

    def forward(
        self, inputs: Float[Tensor, "batch input"], is_real: Bool[Tensor, " batch"] | None = None
    ) -> Float[Tensor, "batch output"]:
        """Compute raw outputs of all tasks side by side; never narrower than float32.

        Args:
            inputs: Input of the network.
            is_real: Mask of the non-padding rows, for a network that measures the batch in training; None: all.
        """
        rows = (inputs, is_real) if self.network.reads_real_rows else (inputs,)
        if self.autocast is None:
            return self.towers(self.network(*rows))
        with torch.autocast(inputs.device.type, dtype=self.autocast):
            return self.towers(self.network(*rows)).float()


class Ranker(nn.Module):
    """Embedding tables, input and head.

    Args:
        embeddings: Tables read as bags only; None: there are none.
        inputs: Module from pooled embeddings and dense values to (B, d).
        head: (B, d) -> (B, sum of the towers' outputs).
        slot_bias: Module that adds the slots' logits to the towers' outputs; None: no slot bias.
        entire_space: Map from the towers' outputs to the tasks'; None: they are the same.
        interaction: Map from the input to the head's input; None: they are the same.
        sequences: Tables that unpooled sequences read, in collections of one width each; None: there are none.
        user: User tower, from the user's features to a vector; None: the network reads all features directly.
    """

    def __init__(
        self,
        embeddings: EmbeddingBagCollection | None,
        inputs: InputArch,
        head: Head,
        slot_bias: SlotBias | None = None,
        entire_space: EntireSpace | None = None,
        interaction: NFwFM | None = None,
        sequences: nn.ModuleDict | None = None,
        user: UserArch | None = None,
    ) -> None:
        super().__init__()
        self.embeddings = embeddings
        self.inputs = inputs
        self.head = head
        self.slot_bias = slot_bias
        self.entire_space = entire_space
        self.interaction = interaction
        self.sequences = sequences
        self.user = user

    def forward(
        self,
        sparse: KeyedJaggedTensor,
        dense: Float[Tensor, "batch dense"],
        slot: Int[Tensor, " batch"] | None = None,
        is_real: Bool[Tensor, " batch"] | None = None,
    ) -> Float[Tensor, "batch output"]:
        """Compute raw outputs (logits) of all tasks side by side, shape (B, sum of outputs).

        `models.tasks` turns them into probabilities and values. Slots are for training; rows to be scored have none.
        `is_real` is the head's, and matters in training only.
        """
        pooled, sequences = self.look_up(sparse)
        return self.above(pooled, sparse, dense, slot, is_real, sequences)

    def look_up(self, sparse: KeyedJaggedTensor) -> tuple[KeyedTensor | None, LookedUp]:
        """Return the sums of bags, and the entries that are looked up one by one."""
        pooled = None if self.embeddings is None else self.embeddings(sparse)
        return pooled, [] if self.sequences is None else [collection(sparse) for collection in self.sequences.values()]

    def above(
        self,
        pooled: KeyedTensor | None,
        sparse: KeyedJaggedTensor,
        dense: Float[Tensor, "batch dense"],
        slot: Int[Tensor, " batch"] | None,
        is_real: Bool[Tensor, " batch"] | None,
        sequences: LookedUp = (),
    ) -> Float[Tensor, "batch output"]:
        """Compute the outputs from the looked-up embeddings."""
        x = self.inputs(pooled, sparse, dense, sequences)
        if self.interaction is not None:
            x = self.interaction(x)
        vectors = None if self.user is None else self.user(x, sequences)
        return self.beyond(x, vectors, sparse, slot, is_real)

    def beyond(
        self,
        x: Float[Tensor, "batch input"],
        vectors: Float[Tensor, "batch width"] | None,
        sparse: KeyedJaggedTensor,
        slot: Int[Tensor, " batch"] | None = None,
        is_real: Bool[Tensor, " batch"] | None = None,
    ) -> Float[Tensor, "batch output"]:
        """Compute the outputs from the users' vectors, if any; then only the item's side of the input is read."""
        read = x if self.user is None or vectors is None else self.user.join(vectors, x)
        outputs = self.head(read, is_real)
        if self.slot_bias is not None:
            outputs = self.slot_bias(outputs, slot, sparse)
        outputs = outputs if self.entire_space is None else self.entire_space(outputs)
        return outputs if self.user is None or vectors is None else self.user.read_out(outputs, vectors, x)

    def dense_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Yield all parameters but the tables', with their names within the ranker."""
        for part in ("inputs", "interaction", "head", "slot_bias", "user"):
            module = getattr(self, part)
            if module is not None:
                yield from module.named_parameters(prefix=part)


class StepOutput(NamedTuple):
    """Result of a step: the per-task losses on this rank's share, the outputs, and the batch itself."""

    losses: Float[Tensor, " task"]
    outputs: Float[Tensor, "batch output"]
    batch: RankingBatch


class RankerTrain(nn.Module):
    """A ranker with its union-space loss, for TorchRec's train pipelines.

    Args:
        ranker: The servable model.
        loss: Loss over the union of the tasks' sample spaces.
        balance: Method that balances the tasks' losses or gradients, beyond w_k(t); None: none, and no bit changes.
        bounds: Terms added to tie tasks to each other; no method balances them.
    """

    def __init__(
        self,
        ranker: Ranker,
        loss: UnionSpaceLoss,
        balance: UncertaintyWeights | GradientBalance | None = None,
        bounds: Sequence[KLBound] = (),
    ) -> None:
        super().__init__()
        self.ranker = ranker
        self.loss = loss
        self.balance = balance
        self.bounds = nn.ModuleList(bounds)

    def forward(self, batch: RankingBatch) -> tuple[Tensor, StepOutput]:
        """Compute the loss of a batch.

        Returns:
            The weighted loss with bounds and the network's penalty, a scalar, and the step's output. The scalar's
            gradient is the one to step with: under gradient balancing it is not the gradient of the value.
        """
        # A traced batch is a proxy: TorchRec traces a model to find its tables, and runs the model itself.
        if isinstance(self.balance, GradientBalance) and self.training and not isinstance(batch, torch.fx.Proxy):
            total, outputs, losses = self._balanced(self.balance, batch)
        else:
            total, outputs, losses = self._plain(batch)
        penalty = self.ranker.head.network.penalty()
        if penalty is not None:
            total = total + penalty
        return total, StepOutput(losses.detach(), outputs.detach(), batch)

    def _plain(self, batch: RankingBatch) -> tuple[Tensor, Tensor, Tensor]:
        outputs = self.ranker(batch.sparse, batch.dense, batch.slot, batch.in_space.any(1))
        total, losses = self._losses(outputs, batch)
        if isinstance(self.balance, UncertaintyWeights):
            total = self.balance(losses, batch.loss_weights, batch.denominators > 0)
        for bound in self._bounds(outputs, batch):
            total = total + bound
        return total, outputs, losses

    def _bounds(self, outputs: Float[Tensor, "batch output"], batch: RankingBatch) -> list[Tensor]:
        return [bound(outputs, batch.in_space, batch.weight, batch.denominators) for bound in self.bounds]

    def _losses(self, outputs: Float[Tensor, "batch output"], batch: RankingBatch) -> tuple[Tensor, Tensor]:
        return self.loss(outputs, batch.labels, batch.in_space, batch.weight, batch.denominators, batch.loss_weights)

    def _balanced(self, balance: GradientBalance, batch: RankingBatch) -> tuple[Tensor, Tensor, Tensor]:
        """Compute the balanced loss; the pass ends at the pooled embeddings."""
        assert self.ranker.embeddings is not None  # no gradients are balanced if sequences are unpooled
        pooled = self.ranker.embeddings(batch.sparse)
        leaf = KeyedTensor(pooled.keys(), pooled.length_per_key(), pooled.values().detach().requires_grad_())
        outputs = self.ranker.above(leaf, batch.sparse, batch.dense, batch.slot, batch.in_space.any(1))
        _, losses = self._losses(outputs, batch)
        dense = [parameter for _, parameter in self.ranker.dense_parameters()]
        total = balance(losses, batch.loss_weights, batch.denominators > 0, (pooled, leaf), dense)
        for bound in self._bounds(outputs, batch):
            total = total + carry_over(bound, (pooled, leaf))
        return total, outputs, losses
