"""Split of a ranker into two halves: one computed once per user, one per item shown to the user."""

import torch
from jaxtyping import Float
from torch import Tensor
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from models.ranker import Ranker
from models.user import UserArch


class SplitRanker:
    """Two halves of a ranker with a user tower; they share its tables and parameters.

    Both halves read batches of all F sparse and D dense features. A half ignores the features of the other: a caller
    leaves their bags empty and their numbers 0. For the same B rows the two halves give the whole model's outputs to
    the bit. A vector computed among other rows is the same to rounding (about 1e-7 of its size), since the number of
    rows changes the order of a matrix product's sums.

    Args:
        ranker: Ranker in evaluation mode.

    Raises:
        ValueError: The model has no user tower.
    """

    def __init__(self, ranker: Ranker) -> None:
        if ranker.user is None:
            raise ValueError("the model has no section model.user, so it has no user vector")
        self._ranker = ranker
        self._user: UserArch = ranker.user

    @property
    def width(self) -> int:
        """W, the width of a user's vector."""
        return self._user.width

    @torch.no_grad()
    def vectors(self, sparse: KeyedJaggedTensor, dense: Float[Tensor, "batch dense"]) -> Float[Tensor, "batch width"]:
        """Compute rep of B rows, from the user's side alone.

        Args:
            sparse: `KeyedJaggedTensor` with F keys.
            dense: (B, D).
        """
        pooled, sequences = self._ranker.look_up(sparse)
        return self._user(self._ranker.inputs(pooled, sparse, dense, sequences), sequences)

    @torch.no_grad()
    def score(
        self, vectors: Float[Tensor, "batch width"], sparse: KeyedJaggedTensor, dense: Float[Tensor, "batch dense"]
    ) -> Float[Tensor, "batch output"]:
        """Compute raw outputs of B pairs of a user and an item, all tasks side by side, as the whole model does.

        Args:
            vectors: One user's in every row, or several users'.
            sparse: `KeyedJaggedTensor` with F keys, with the item's side of the pairs.
            dense: (B, D), with the item's side.
        """
        pooled, sequences = self._ranker.look_up(sparse)
        return self._ranker.beyond(self._ranker.inputs(pooled, sparse, dense, sequences), vectors, sparse)
