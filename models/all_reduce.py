"""The other ranks as models/ knows them: how many there are, and a sum over all of them that the pipeline hands in."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor


def _alone(tensor: Tensor) -> Tensor:
    return tensor


@dataclass(frozen=True, slots=True)
class Ranks:
    """What a module that looks beyond its rank's own rows is given.

    Args:
        num: How many ranks there are.
        total: The sum of a tensor over all ranks, the same bits on each of them. All ranks have to call it at the same
            places in the same order, with tensors of one shape. Gradients flow back through it, to all ranks.
    """

    num: int = 1
    total: Callable[[Tensor], Tensor] = _alone
