"""A ranker in two halves: what is computed once for a user, and what is computed for each item shown to them."""

import torch
from jaxtyping import Float
from torch import Tensor
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from models.ranker import Ranker
from models.user import UserArch


class SplitRanker:
    """The two halves of a ranker that has a user's side; they share its tables and parameters.

    Both halves read batches of all F sparse and D dense features. Those of the other half may hold anything: a caller
    leaves their bags empty and their numbers 0. Of the same B rows the halves together give the whole model's outputs
    to the bit. A vector that was computed among other rows is the same to rounding (about 1e-7 of its size), since a
    matrix product adds up in an order that depends on the number of rows.

    Args:
        ranker: In evaluation mode.

    Raises:
        ValueError: The model has no user's side.
    """

    def __init__(self, ranker: Ranker) -> None:
        if ranker.user is None:
            raise ValueError("the model has no section model.user: nothing of it is computed once for a user")
        self._ranker = ranker
        self._user: UserArch = ranker.user

    @property
    def width(self) -> int:
        """W, the width of a user's vector."""
        return self._user.width

    @torch.no_grad()
    def vectors(self, sparse: KeyedJaggedTensor, dense: Float[Tensor, "batch dense"]) -> Float[Tensor, "batch width"]:
        """Compute rep of B rows, from the user's side of them alone.

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
        """Score B pairs of a user and an item; raw outputs of all tasks side by side, as the whole model's.

        Args:
            vectors: One user's in every row, or several users'.
            sparse: `KeyedJaggedTensor` with F keys, with the item's side of the pairs.
            dense: (B, D), with the item's side.
        """
        pooled, sequences = self._ranker.look_up(sparse)
        return self._ranker.beyond(self._ranker.inputs(pooled, sparse, dense, sequences), vectors, sparse)
