"""From looked-up bags and dense values to the one vector per row that a network reads."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor, KeyedTensor

from models.layout import Labels, Part


class MissingValueLayer(nn.Module):
    """A learned value for each dense feature, used where the row has none.

    Source: Meituan's ranking blog (2018) names the layer without its formula; our reading is
    x'_i = (1 - m_i) x_i + m_i w_i, with m_i the missing flag and w_i trained from 0, the standardised mean.

    Args:
        num_features: Dense features D.
    """

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.values = nn.Parameter(torch.zeros(num_features))

    def parts(self, features: Sequence[str], columns: Labels) -> list[Part]:
        """Name the parts; see `models.layout`.

        Args:
            features: Names of the dense features.
            columns: Labels of their columns of the input.
        """
        owners = [f"value of feature {name} where it is missing" for name in features]
        return [
            Part(self.values, index, owner, "", (((owner, column[1]),),))
            for index, (owner, column) in enumerate(zip(owners, columns, strict=True))
        ]

    def forward(self, dense: Float[Tensor, "batch dense"]) -> Float[Tensor, "batch dense"]:
        """Replace NaN by the learned values; shape (B, D) in and out."""
        return torch.where(torch.isnan(dense), self.values, dense)


class InputArch(nn.Module):
    """Concatenates pooled embeddings, in schema order, and dense values.

    Args:
        keys: Names of the F sparse features, in schema order.
        means: Which of them are pooled by the mean; the others are sums.
        num_dense: Dense features D.
    """

    def __init__(self, keys: Sequence[str], means: Sequence[bool], num_dense: int) -> None:
        super().__init__()
        self.keys = list(keys)
        self.means = list(means)
        self.missing_values = MissingValueLayer(num_dense)

    def forward(
        self, pooled: KeyedTensor, sparse: KeyedJaggedTensor, dense: Float[Tensor, "batch dense"]
    ) -> Float[Tensor, "batch input"]:
        """Build the network's input.

        Args:
            pooled: `KeyedTensor` with the sums of the F features' bags.
            sparse: The ids that were looked up, for their lengths.
            dense: (B, D), NaN where missing.

        Returns:
            Tensor of shape (B, sum of dims + D).
        """
        by_key = pooled.to_dict()
        lengths = sparse.lengths().view(len(self.keys), -1)
        parts = []
        for index, (key, is_mean) in enumerate(zip(self.keys, self.means, strict=True)):
            part = by_key[key]
            parts.append(part / lengths[index].clamp(min=1).unsqueeze(1) if is_mean else part)
        return torch.cat([*parts, self.missing_values(dense).to(parts[0].dtype if parts else dense.dtype)], dim=1)
