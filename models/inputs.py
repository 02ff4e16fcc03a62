"""Concatenation of looked-up bags and dense values to the one vector per row that a network reads."""

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torchrec.sparse.jagged_tensor import JaggedTensor, KeyedJaggedTensor, KeyedTensor

from models.parameter_names import Labels, ParameterPart

LookedUp = Sequence[Mapping[str, JaggedTensor]]
"""Outputs of the EmbeddingCollections by feature: entries row by row."""


class MissingValueLayer(nn.Module):
    """Learned value for each dense feature, used where the row has none.

    Source: Meituan's ranking blog (2018), which gives no formula; our reading is
    x'_i = (1 - m_i) x_i + m_i w_i, with m_i the missing flag and w_i trained from 0, the standardised mean.

    Args:
        num_features: Number of dense features D.
    """

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.values = nn.Parameter(torch.zeros(num_features))

    def parts(self, features: Sequence[str], columns: Labels) -> list[ParameterPart]:
        """Name the parts; see `models.parameter_names`.

        Args:
            features: Names of the dense features.
            columns: Labels of the features' columns of the input.
        """
        owners = [f"value of feature {name} where it is missing" for name in features]
        return [
            ParameterPart(self.values, index, owner, "", (((owner, column[1]),),))
            for index, (owner, column) in enumerate(zip(owners, columns, strict=True))
        ]

    def forward(self, dense: Float[Tensor, "batch dense"]) -> Float[Tensor, "batch dense"]:
        """Replace NaN by the learned values; shape (B, D) in and out."""
        return torch.where(torch.isnan(dense), self.values, dense)


class InputArch(nn.Module):
    """Concatenation of pooled embeddings, in schema order, and dense values.

    Args:
        keys: Names of the F sparse features, in schema order.
        means: Flags of the features that are pooled by the mean; the others are sums.
        num_dense: Number of dense features D.
        unpooled: Sparse features without a pooled embedding, which are left out.
    """

    def __init__(
        self, keys: Sequence[str], means: Sequence[bool], num_dense: int, unpooled: Sequence[str] = ()
    ) -> None:
        super().__init__()
        self.keys = list(keys)
        self.means = list(means)
        self.unpooled = frozenset(unpooled)
        self.missing_values = MissingValueLayer(num_dense)

    def forward(
        self,
        pooled: KeyedTensor | None,
        sparse: KeyedJaggedTensor,
        dense: Float[Tensor, "batch dense"],
        sequences: LookedUp = (),
    ) -> Float[Tensor, "batch input"]:
        """Compute the network's input.

        Args:
            pooled: `KeyedTensor` with the sums of the bags; None if no table is looked up by bags alone.
            sparse: The looked-up ids, for their lengths.
            dense: (B, D), NaN where missing.
            sequences: Entries looked up one by one; entries of pooled features are summed here.

        Returns:
            Tensor of shape (B, sum of dims + D).
        """
        by_key = {} if pooled is None else pooled.to_dict()
        lengths = sparse.lengths().view(len(self.keys), -1)
        entries = {name: found.values() for looked_up in sequences for name, found in looked_up.items()}
        parts = []
        for index, (key, is_mean) in enumerate(zip(self.keys, self.means, strict=True)):
            if key in self.unpooled:
                continue
            part = sum_of_bags(entries[key], lengths[index]) if key in entries else by_key[key]
            parts.append(part / lengths[index].clamp(min=1).unsqueeze(1) if is_mean else part)
        return torch.cat([*parts, self.missing_values(dense).to(parts[0].dtype if parts else dense.dtype)], dim=1)


def sum_of_bags(entries: Float[Tensor, "entry dim"], lengths: Int[Tensor, " batch"]) -> Float[Tensor, "batch dim"]:
    """Sum each row's entries, which are stored row by row; zeros for a row without entries."""
    rows = torch.repeat_interleave(lengths, output_size=len(entries))  # without it a host would wait for its GPU
    return entries.new_zeros(len(lengths), entries.shape[1]).index_add(0, rows, entries)
