"""Interaction layer between the input and the network: products of every two fields' embeddings.

Source: Meitu's Multi-task NFwFM (2019), "Field-wise Bi-Interaction": a field-weighted factorisation machine, S + MF
across fields + FM inside a field, below shared layers.
"""

from collections.abc import Sequence
from itertools import combinations
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from features.declaration import Declaration
from features.errors import ConfigError
from features.schema import Schema
from models.parameter_names import Labels, ParameterPart


class NFwFM(nn.Module):
    """[S ; h] with S = sum_f <w_f, e_f> and h = sum over f < g of r_fg (e_f * e_g), beside the input or in its place.

    e_f (D) is the pooled embedding of sparse feature f, a field. With R symmetric of diagonal 0 the sum over pairs is
    h = 1/2 sum_f e_f * (R e)_f, one matrix product.

    Our reading where the source is silent: as no table has first-order weights, those of an id are <w_f, e_f>, with w_f
    learned from 0. r_fg is learned from 1, as in a factorisation machine without field weights. Dense values are not
    fields, and stay in the input. A mean-pooled field is its mean. Inside a field, h_FM needs the sum of v_i^2 over its
    bag, but TorchRec gives the sum of v_i alone, so a second lookup of all lists would be needed. It is left out:
    fields of one id have no h_FM, and a list contributes across fields only. Dropout divides by the kept share in
    training, where the source multiplies at inference.

    Args:
        num_fields: Number of sparse features F, the first of the input.
        dim: D.
        dropout: Probability that a number of h is dropped, in training.
        keeps_inputs: True to keep the embeddings in the input.

    Attributes:
        pairs: r_fg, of shape (F (F - 1) / 2,), in the order of `itertools.combinations`.
        first_order: w_f, of shape (F, D).
    """

    places: Tensor

    def __init__(self, num_fields: int, dim: int, *, dropout: float = 0.0, keeps_inputs: bool = True) -> None:
        super().__init__()
        self.num_fields, self.dim, self.dropout, self.keeps_inputs = num_fields, dim, dropout, keeps_inputs
        pairs = list(combinations(range(num_fields), 2))
        number = {pair: index for index, pair in enumerate(pairs)}
        # The entry after the last pair is 0, for the diagonal.
        rows = [[number.get((min(f, g), max(f, g)), len(pairs)) for g in range(num_fields)] for f in range(num_fields)]
        self.register_buffer("places", torch.tensor(rows).flatten(), persistent=False)
        self.pairs = nn.Parameter(torch.ones(len(pairs)))
        self.first_order = nn.Parameter(torch.zeros(num_fields, dim))

    def forward(self, x: Float[Tensor, "batch input"]) -> Float[Tensor, "batch out_features"]:
        """Compute the network's input.

        Args:
            x: Embeddings of all fields, then dense values.

        Returns:
            [x ; S ; h], or [S ; h ; dense values].
        """
        width = self.num_fields * self.dim
        fields = x[:, :width].unflatten(1, (self.num_fields, self.dim)).to(self.pairs.dtype)
        weights = F.pad(self.pairs, (0, 1)).index_select(0, self.places).view(self.num_fields, self.num_fields)
        crossed = (fields * (weights @ fields)).sum(1) / 2
        linear = (fields * self.first_order).sum((1, 2)).unsqueeze(1)
        crossed = F.dropout(crossed, self.dropout, self.training)
        parts = [x, linear, crossed] if self.keeps_inputs else [linear, crossed, x[:, width:]]
        return torch.cat(parts, dim=1)

    def out_fields(self, num_dense: int) -> list[int]:
        """Return the widths of the output's fields, with [S ; h] as one."""
        own, dense = 1 + self.dim, [1] * num_dense
        return [*([self.dim] * self.num_fields), *dense, own] if self.keeps_inputs else [own, *dense]

    def outputs(self, bags: Labels, numbers: Labels) -> Labels:
        """Label the output; see `models.parameter_names`.

        Args:
            bags: Labels of the embeddings.
            numbers: Labels of the dense values.
        """
        own = tuple(("interaction", name) for name in ("first order", *map(str, range(self.dim))))
        return (*bags, *numbers, *own) if self.keeps_inputs else (*own, *numbers)

    def parts(self, features: Sequence[str], bags: Labels) -> list[ParameterPart]:
        """Name the parts; see `models.parameter_names`.

        Args:
            features: Names of the sparse features.
            bags: Labels of the features' embeddings.
        """
        fields = [bags[index * self.dim : (index + 1) * self.dim] for index in range(self.num_fields)]
        owner = "field weights of the interaction"
        of_pairs = tuple((owner, _name(*pair)) for pair in combinations(fields, 2))
        owners = [f"first-order weights of feature {name}" for name in features]
        first_order = [
            ParameterPart(self.first_order, index, name, "", (((name, ""),), of))
            for index, (name, of) in enumerate(zip(owners, fields, strict=True))
        ]
        return [ParameterPart(self.pairs, 0, owner, "", (of_pairs,)), *first_order]


def _name(first: Labels, second: Labels) -> str:
    """Return the name of a pair of fields, independent of their order."""
    return " with ".join(sorted(f"{name}, {what}" for name, what in (first[0], second[0])))


class NFwFMConfig(Declaration):
    """Products of every two sparse features' embeddings, weighted by pair, added to the network's input.

    Args:
        kind: `nfwfm`.
        dropout: Probability that a number of the sum over pairs is dropped, in training.
        keep_inputs: True to let the network read the embeddings too; it always reads dense values.
    """

    kind: Literal["nfwfm"]
    dropout: float = Field(default=0.0, ge=0, lt=1)
    keep_inputs: bool = True

    def build(self, schema: Schema) -> NFwFM:
        """Build the layer for a schema.

        Raises:
            ConfigError: The schema has fewer than two sparse features, or their widths differ.
        """
        dims = {table.name: table.dim for table in schema.tables}
        fields = {feature.name: dims[feature.table] for feature in schema.sparse_features}
        if len(fields) < 2:
            raise ConfigError(f"interaction: sparse features are {list(fields)}, expected two or more: leave it out")
        usual = max(fields.values(), key=list(fields.values()).count)
        others = {name: dim for name, dim in fields.items() if dim != usual}
        if others:
            raise ConfigError(
                f"interaction: features {others} differ from the others' dim {usual}, expected one dim: give their "
                "tables that dim, or leave the interaction out"
            )
        return NFwFM(len(fields), usual, dropout=self.dropout, keeps_inputs=self.keep_inputs)
