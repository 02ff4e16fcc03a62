"""What a multi-task network offers: one vector per row in, one per row and task out."""

from collections.abc import Callable, Sequence

import torch
import torch.fx
from jaxtyping import Float
from torch import Tensor, nn

from models.parameter_names import FusionParts, Labels, units_of

# On a CPU, activations of more than 32 MiB cost a page fault per 4 KiB at every step: glibc returns so large a block
# to the kernel as soon as it is freed. With 12 experts of 256 and 4,096 rows the fused form was slower than a loop over
# nn.Linear for that reason; in slabs of 512 to 2,048 rows it was faster, 1,024 being best or even at all sizes tried.
_SLAB_ROWS = 1024


class FusionNetwork(nn.Module):
    """What stands between the input and the towers: an interface, which every multi-task network implements.

    It knows no losses, labels or sample spaces.

    Attributes:
        out_features: Width of a task's representation, the towers' `in_features`.
        reads_real_rows: Whether `forward` is also given which rows are no padding, of shape (B,): for a network that
            measures the batch. All others treat a row by itself, and x is all that they need.
    """

    out_features: int
    reads_real_rows: bool = False

    def forward(self, x: Float[Tensor, "batch in_features"]) -> Float[Tensor, "batch task out_features"]:
        """Make each task's representation."""
        raise NotImplementedError

    def gate_weights(self, x: Float[Tensor, "batch in_features"]) -> list[Float[Tensor, "batch gate expert"]]:
        """Weigh the experts as `forward` does, for reports on their use; in evaluation mode nothing is dropped.

        Returns:
            One tensor per level from the input upwards, each gate's weights summing to 1; none without gates.
        """
        return []

    def penalty(self) -> Float[Tensor, ""] | None:
        """Compute what the network asks the loss to add for its own parameters, its weight included.

        It depends on parameters alone, never on a batch: so it is the same on all ranks, and the mean of their
        gradients counts it once, however many ranks there are.

        Returns:
            A scalar, or None where there is nothing to add: then the loss is left as it is, bit by bit.
        """
        return None

    def rate_factors(self) -> dict[str, float]:
        """Say which parameters learn at another rate than the dense part's.

        Returns:
            By the parameter's name within the network, what its learning rate is multiplied by; 1 for those not named.
        """
        return {}

    def parts(self, inputs: Labels, tasks: Sequence[str]) -> FusionParts:
        """Name the parts of the network, for its migration to another declaration; see `models.parameter_names`.

        A network that does not say is kept as long as its parameters keep their names and shapes.

        Args:
            inputs: Labels of the input.
            tasks: Names of the tasks, in order.
        """
        path = type(self).__name__
        return FusionParts([], [units_of(path, self.out_features)] * len(tasks), path)


def num_parameters(module: nn.Module) -> int:
    """Count what a module learns: of a network, or of a `models.ranker.Head` with the towers."""
    return sum(parameter.numel() for parameter in module.parameters())


def in_slabs(
    fuse: Callable[[Tensor], Tensor], x: Float[Tensor, "batch in_features"]
) -> Float[Tensor, "batch task out_features"]:
    """Apply what treats every row by itself; on a CPU, in slabs of at most 1,024 rows.

    There the number of kernels grows with the batch, as little with experts or tasks as anywhere.

    Args:
        fuse: Maps (rows, in_features) to (rows, task, out_features), row by row.
        x: The whole batch.
    """
    # A traced batch has no size. TorchRec traces a model to find its tables, and runs the model itself.
    if isinstance(x, torch.fx.Proxy) or x.device.type != "cpu" or x.shape[0] <= _SLAB_ROWS:
        return fuse(x)
    num_slabs = -(-x.shape[0] // _SLAB_ROWS)
    return torch.cat([fuse(slab) for slab in x.chunk(num_slabs)])
