"""Grouped layers: the experts of a level, or its gates, as one matrix product."""

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from models.parameter_names import Labels, ParameterPart, units_of


def init_as_linear(weight: Tensor, bias: Tensor | None = None) -> None:
    """Draw one small layer in place as nn.Linear does: by its own fan-in, not by that of the fused layer.

    Args:
        weight: A view of shape (out_features, in_features).
        bias: A view of shape (out_features,).
    """
    nn.init.kaiming_uniform_(weight, a=math.sqrt(5))
    if bias is not None:
        bound = 1 / math.sqrt(weight.shape[1])
        nn.init.uniform_(bias, -bound, bound)


class GroupedLayer(nn.Module):
    """Layers relu(W x + b) of one shape over one or several inputs: `counts[g]` of them read input g.

    All layers over a single input are one matrix product. Over several inputs they are one batched product of chunks.
    The greatest common divisor of the counts is the number of layers per chunk: unequal counts cost a copy of the
    inputs but no padding.

    Args:
        in_features: Width of each input.
        out_features: Width of each layer's output.
        counts: Number of layers that read each input; 0 for some of them, but not for all.

    Attributes:
        weight: (layer, out_features, in_features), layers in the order of their inputs.
        bias: (layer, out_features).
    """

    reads: Tensor

    def __init__(self, in_features: int, out_features: int, counts: Sequence[int]) -> None:
        super().__init__()
        self.num_inputs, self.num_layers = len(counts), sum(counts)
        self.out_features = out_features
        self.chunk = math.gcd(*counts)
        reads = [index for index, count in enumerate(counts) for _ in range(count // self.chunk)]
        self.num_chunks = len(reads)
        self.reads_each_once = reads == list(range(self.num_inputs))
        self.register_buffer("reads", torch.tensor(reads), persistent=False)
        self.weight = nn.Parameter(torch.empty(self.num_layers, out_features, in_features))
        self.bias = nn.Parameter(torch.empty(self.num_layers, out_features))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw every layer as nn.Linear would, in order."""
        for weight, bias in zip(self.weight.detach(), self.bias.detach(), strict=True):
            init_as_linear(weight, bias)

    def parts(self, owners: Sequence[str], detail: str, inputs: Sequence[Labels], units: Labels) -> list[ParameterPart]:
        """Name the parts; see `models.parameter_names`.

        Args:
            owners: Owner of each layer.
            detail: Name of the layer within its owner.
            inputs: For each layer the labels of its input.
            units: Labels of the outputs.
        """
        found = []
        for index, (owner, read) in enumerate(zip(owners, inputs, strict=True)):
            itself = ((owner, ""),)
            found.append(ParameterPart(self.weight, index, owner, f"{detail} weight", (itself, units, read)))
            found.append(ParameterPart(self.bias, index, owner, f"{detail} bias", (itself, units)))
        return found

    def forward(self, inputs: Float[Tensor, "batch input in_features"]) -> Float[Tensor, "batch layer out_features"]:
        """Apply every layer to its input."""
        if self.num_inputs > 1:
            return self._batched(inputs if self.reads_each_once else inputs.index_select(1, self.reads))
        # relu_ before view: in place on a view, autograd would copy the activation once more.
        outputs = F.linear(inputs.squeeze(1), self.weight.flatten(0, 1), self.bias.flatten()).relu_()
        return outputs.view(-1, self.num_layers, self.out_features)

    def _batched(self, inputs: Float[Tensor, "batch chunk in_features"]) -> Float[Tensor, "batch layer out_features"]:
        width = self.chunk * self.out_features
        weight = self.weight.view(self.num_chunks, width, -1).transpose(1, 2)
        outputs = torch.baddbmm(self.bias.view(self.num_chunks, 1, width), inputs.transpose(0, 1), weight).relu_()
        if self.chunk == 1:
            return outputs.transpose(0, 1)
        layers = outputs.view(self.num_chunks, -1, self.chunk, self.out_features).transpose(0, 1)
        return layers.reshape(-1, self.num_layers, self.out_features)


def grouped_layers(in_features: int, layers: Sequence[int], counts: Sequence[int]) -> nn.Sequential:
    """Stack grouped layers to MLPs of one shape, each ending in ReLU: `counts[g]` of them read input g.

    Args:
        in_features: Width of each input.
        layers: Widths of an MLP's layers; one or more.
        counts: As in `GroupedLayer`.

    Returns:
        A module from (B, input, in_features) to (B, MLP, layers[-1]).
    """
    deeper = [GroupedLayer(*widths, [1] * sum(counts)) for widths in pairwise(layers)]
    return nn.Sequential(GroupedLayer(in_features, layers[0], counts), *deeper)


def stack_parts(
    stack: nn.Module, owners: Sequence[str], inputs: Sequence[Labels], path: str, name: str
) -> tuple[list[ParameterPart], str, Sequence[Labels]]:
    """Name the parts of stacked grouped layers; see `models.parameter_names`.

    stack: Grouped layers, and other modules without parameters between them; or an identity.
        stack: Grouped layers, and other modules without parameters between them; or an identity.
        owners: Owner of each MLP.
        inputs: For each MLP the labels of its input.
        path: The layers below.
        name: Name of the stack's layers.

    Returns:
        The parts, the path with the stack's layers, and for each MLP the labels of its outputs.
    """
    found: list[ParameterPart] = []
    for number, layer in enumerate((layer for layer in stack.children() if isinstance(layer, GroupedLayer)), start=1):
        path = f"{path} > {name} layer {number}"
        units = units_of(path, layer.out_features)
        found += layer.parts(owners, f"layer {number}", inputs, units)
        inputs = [units] * len(owners)
    return found, path, inputs


class BlockLinear(nn.Module):
    """Thin linear maps over several inputs as one matrix product: `counts[i]` rows of the weight read input i.

    The inputs are concatenated. A row's weights fill the columns of its input, with zeros in all others. The zeros grow
    with the number of inputs, but so thin a product has time for them: for the gates of a level it took .3 to .8 of the
    time of a batched product with 2 to 5 tasks, and 1.5 of it with 10.

    Args:
        in_features: Width of each input.
        counts: Number of rows that read each input; may be 0.
        bias: True to add a bias.

    Attributes:
        weight: (row, in_features), rows in the order of their inputs.
        bias: (row,) or None.
    """

    places: Tensor

    def __init__(self, in_features: int, counts: Sequence[int], *, bias: bool) -> None:
        super().__init__()
        self.counts = list(counts)
        reads = [index for index, count in enumerate(counts) for _ in range(count)]
        places = [row * len(counts) + index for row, index in enumerate(reads)]
        self.register_buffer("places", torch.tensor(places), persistent=False)
        self.weight = nn.Parameter(torch.empty(len(reads), in_features))
        self.bias = nn.Parameter(torch.empty(len(reads))) if bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the rows of each input as nn.Linear would, input by input."""
        weights = self.weight.detach().split(self.counts)
        biases = [None] * len(weights) if self.bias is None else self.bias.detach().split(self.counts)
        for weight, bias in zip(weights, biases, strict=True):
            if len(weight):
                init_as_linear(weight, bias)

    def parts(
        self, owners: Sequence[str], detail: str, rows: Sequence[Labels], inputs: Sequence[Labels]
    ) -> list[ParameterPart]:
        """Name the parts; see `models.parameter_names`.

        Args:
            owners: Owners of successive rows.
            detail: Name of the part within its owner.
            rows: For each owner the labels of its rows.
            inputs: For each owner the labels of its rows' input.
        """
        found, start = [], 0
        for owner, own, read in zip(owners, rows, inputs, strict=True):
            found.append(ParameterPart(self.weight, start, owner, f"{detail} weight", (own, read)))
            if self.bias is not None:
                found.append(ParameterPart(self.bias, start, owner, f"{detail} bias", (own,)))
            start += len(own)
        return found

    def forward(self, inputs: Float[Tensor, "batch input in_features"]) -> Float[Tensor, "batch row"]:
        """Apply every row to its input."""
        return F.linear(inputs.flatten(1), self._blocks(), self.bias)

    def _blocks(self) -> Float[Tensor, "row all_inputs"]:
        if len(self.counts) == 1:
            return self.weight
        num_rows, in_features = self.weight.shape
        blocks = self.weight.new_zeros(num_rows * len(self.counts), in_features)
        return blocks.index_copy(0, self.places, self.weight).view(num_rows, -1)


class Gates(nn.Module):
    """All gates of a level: gate g weighs the experts that it may choose by softmax(W_g s_g), with selector s_g.

    Source: Eq. 3 of PLE (Tang et al., RecSys 2020), which has no bias. Dropout of gates: Zhao et al., "Recommending
    What Video to Watch Next", RecSys 2019: an expert's weight is set to 0 and the softmax renormalised, against gates
    that polarise. Our reading: it is drawn for every row, gate and expert independently, in training only; a gate that
    would lose all its experts keeps them all.

    Args:
        in_features: Width of a selector.
        num_selectors: 1 if all gates read the same selector; else gate g reads selector g, and others may follow.
        choices: For each gate, the experts that it may choose; at least one.
        num_experts: Number of experts of the level.
        dropout: Probability that a gate loses an expert for a row, in training; below 1.
    """

    choices: Tensor

    def __init__(
        self,
        in_features: int,
        num_selectors: int,
        choices: Sequence[Sequence[int]],
        num_experts: int,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.num_gates, self.num_experts, self.dropout = len(choices), num_experts, dropout
        chosen = [gate * num_experts + expert for gate, experts in enumerate(choices) for expert in experts]
        self.chooses_all = chosen == list(range(self.num_gates * num_experts))
        self.register_buffer("choices", torch.tensor(chosen), persistent=False)
        counts = [len(experts) for experts in choices] + [0] * (num_selectors - len(choices))
        self.logits = BlockLinear(in_features, counts if num_selectors > 1 else [len(chosen)], bias=False)

    def parts(self, owners: Sequence[str], choices: Sequence[Sequence[str]], selector: Labels) -> list[ParameterPart]:
        """Name the parts; see `models.parameter_names`.

        Args:
            owners: Names of the gates.
            choices: For each gate the names of the experts that it may choose.
            selector: Labels of every gate's selector.
        """
        rows = [tuple((expert, "") for expert in experts) for experts in choices]
        return self.logits.parts(owners, "", rows, [selector] * len(owners))

    def chosen_experts(self) -> list[list[int]]:
        """Return the experts that each gate may choose."""
        of_gates: list[list[int]] = [[] for _ in range(self.num_gates)]
        for place in self.choices.tolist():
            of_gates[place // self.num_experts].append(place % self.num_experts)
        return of_gates

    def forward(self, selectors: Float[Tensor, "batch selector in_features"]) -> Float[Tensor, "batch gate expert"]:
        """Compute the gates' weights: each gate's sum to 1, and are exactly 0 for experts that it may not choose."""
        logits = self.logits(selectors)
        if not self.chooses_all:
            table = logits.new_full((logits.shape[0], self.num_gates * self.num_experts), -math.inf)
            logits = table.index_copy(1, self.choices, logits)
        logits = logits.view(-1, self.num_gates, self.num_experts)
        return (self._dropped(logits) if self.training and self.dropout > 0 else logits).softmax(-1)

    def _dropped(self, logits: Float[Tensor, "batch gate expert"]) -> Float[Tensor, "batch gate expert"]:
        """Drop logits, not weights: a weight that has underflowed to 0 could not be renormalised."""
        lost = torch.rand_like(logits, dtype=torch.float32) < self.dropout
        kept = logits.masked_fill(lost, -math.inf)
        return torch.where(kept.amax(-1, keepdim=True) > -math.inf, kept, logits)
