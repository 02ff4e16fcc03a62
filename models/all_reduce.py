"""All-reduce as models/ knows it: the number of ranks, and a sum over all of them that the pipeline passes in."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor


def _alone(tensor: Tensor) -> Tensor:
    return tensor


@dataclass(frozen=True, slots=True)
class Ranks:
    """Access to the other ranks, for a module that needs more than its own rank's rows.

    Args:
        num: Number of ranks.
        total: Sum of a tensor over all ranks, bit-identical on each of them. A collective: all ranks call it at the
            same places in the same order, with tensors of one shape. Gradients flow back through it, to all ranks.
    """

    num: int = 1
    total: Callable[[Tensor], Tensor] = _alone
