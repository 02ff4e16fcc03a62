"""Towers: from each task's representation to its outputs, all tasks at once."""

from collections.abc import Sequence
from itertools import pairwise

from jaxtyping import Float
from torch import Tensor, nn

from models.experts import BlockLinear, GroupedLayer, stack_parts
from models.parameter_names import FusionParts, Labels, ParameterPart


class Towers(nn.Module):
    """One tower per task, an MLP with ReLU and a linear output (t_k of PLE's Eq. 5 and 7; Tang et al., RecSys 2020).

    Each layer is one matrix product for all tasks.

    Args:
        in_features: Width of a task's representation.
        layers: Widths of the hidden layers, the same for every task; may be none.
        num_outputs: Outputs of each task's tower: 1, or the number of classes.
        dropout: Dropout probability after each hidden layer, in training.
    """

    def __init__(
        self, in_features: int, layers: Sequence[int], num_outputs: Sequence[int], dropout: float = 0.0
    ) -> None:
        super().__init__()
        hidden: list[nn.Module] = []
        for widths in pairwise([in_features, *layers]):
            hidden += [GroupedLayer(*widths, [1] * len(num_outputs)), nn.Dropout(dropout)]
        self.hidden = nn.Sequential(*hidden)
        self.outputs = BlockLinear([in_features, *layers][-1], num_outputs, bias=True)

    def parts(self, tasks: Sequence[str], fused: FusionParts, outputs: Sequence[Labels]) -> list[ParameterPart]:
        """Name the parts; see `models.parameter_names`.

        Args:
            tasks: Names of the tasks.
            fused: Parts and output labels of the network.
            outputs: For each task the labels of its outputs.
        """
        towers = [f"tower of task {task}" for task in tasks]
        found, _, hidden = stack_parts(self.hidden, towers, fused.outputs, fused.path, "tower")
        return found + self.outputs.parts(towers, "output", outputs, hidden)

    def forward(self, fused: Float[Tensor, "batch task in_features"]) -> Float[Tensor, "batch output"]:
        """Compute the outputs of all tasks, side by side in the tasks' order."""
        return self.outputs(self.hidden(fused))
