"""Interface of a multi-task network: one vector per row in, one vector per row and task out."""

from collections.abc import Callable, Sequence

import torch
import torch.fx
from jaxtyping import Float
from torch import Tensor, nn

from models.parameter_names import FusionParts, Labels, units_of

# On a CPU, activations of more than 32 MiB cost a page fault per 4 KiB at every step: glibc returns so large a block
# to the kernel as soon as it is freed. For that reason the fused form with 12 experts of 256 and 4,096 rows was slower
# than a loop over nn.Linear. In slabs of 512 to 2,048 rows it was faster; 1,024 was best or even at all sizes tried.
_SLAB_ROWS = 1024


class FusionNetwork(nn.Module):
    """Interface of every multi-task network, between the input and the towers.

    A network knows no losses, labels or sample spaces.

    Attributes:
        out_features: Width of a task's representation, the towers' `in_features`.
        reads_real_rows: True if `forward` also takes the mask of non-padding rows, of shape (B,): for a network that
            measures the batch. All other networks treat a row by itself, and need x alone.
    """

    out_features: int
    reads_real_rows: bool = False

    def forward(self, x: Float[Tensor, "batch in_features"]) -> Float[Tensor, "batch task out_features"]:
        """Compute each task's representation."""
        raise NotImplementedError

    def gate_weights(self, x: Float[Tensor, "batch in_features"]) -> list[Float[Tensor, "batch gate expert"]]:
        """Compute the gates' weights as `forward` does, for reports on their use; evaluation mode drops nothing.

        Returns:
            One tensor per level from the input upwards, each gate's weights summing to 1; none without gates.
        """
        return []

    def penalty(self) -> Float[Tensor, ""] | None:
        """Compute the network's penalty on its own parameters, its weight included, which is added to the loss.

        The penalty depends on parameters alone, never on a batch. So it is the same on all ranks, and the mean of their
        gradients counts it once for any number of ranks.

        Returns:
            A scalar, or None without a penalty: then the loss is unchanged, bit by bit.
        """
        return None

    def rate_factors(self) -> dict[str, float]:
        """Return the parameters whose learning rate differs from the dense part's.

        Returns:
            Factor of the learning rate by the parameter's name within the network; 1 for others.
        """
        return {}

    def parts(self, inputs: Labels, tasks: Sequence[str]) -> FusionParts:
        """Name the parts of the network, for its migration to another declaration; see `models.parameter_names`.

        A network without this method is kept as long as its parameters keep their names and shapes.

        Args:
            inputs: Labels of the input.
            tasks: Names of the tasks, in order.
        """
        path = type(self).__name__
        return FusionParts([], [units_of(path, self.out_features)] * len(tasks), path)


def num_parameters(module: nn.Module) -> int:
    """Count the parameters of a module: of a network, or of a `models.ranker.Head` with the towers."""
    return sum(parameter.numel() for parameter in module.parameters())


def in_slabs(
    fuse: Callable[[Tensor], Tensor], x: Float[Tensor, "batch in_features"]
) -> Float[Tensor, "batch task out_features"]:
    """Apply a function that treats every row by itself; on a CPU, in slabs of at most 1,024 rows.

    With slabs, the number of kernels grows with the batch, but not with experts or tasks.

    Args:
        fuse: Map from (rows, in_features) to (rows, task, out_features), row by row.
        x: The whole batch.
    """
    # A traced batch has no size. TorchRec traces a model to find its tables, and runs the model itself.
    if isinstance(x, torch.fx.Proxy) or x.device.type != "cpu" or x.shape[0] <= _SLAB_ROWS:
        return fuse(x)
    num_slabs = -(-x.shape[0] // _SLAB_ROWS)
    return torch.cat([fuse(slab) for slab in x.chunk(num_slabs)])
