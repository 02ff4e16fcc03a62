"""MRAN: attention among tasks, among fields, and of every task on the fields.

Source: Zhao et al., "Multiple Relational Attention Network for Multi-task Learning", KDD 2019. Only the abstract and a
reader's note without its formulas were at hand, so this file is our reading as a whole.
"""

import math
from collections.abc import Sequence
from typing import Literal, Self

import torch
from jaxtyping import Bool, Float
from pydantic import Field, model_validator
from torch import Tensor, nn

from features.declaration import Declaration
from models.all_reduce import Ranks
from models.experts import init_as_linear
from models.network_base import FusionNetwork
from models.norm import RealRowsNorm
from models.parameter_names import FusionParts, Labels, ParameterPart, units_of
from models.sizes import Count, Width


class SelfAttention(nn.Module):
    """U + [head_1 .. head_H] Wo with head_i = softmax((U Wq_i)(U Wk_i)^T / sqrt(D / H)) U Wv_i.

    Args:
        width: D.
        num_heads: H, a divisor of D.

    Attributes:
        projections: Wq, Wk, Wv and Wo, transposed, of shape (4, D, D); a head has D / H successive rows of the first 3.
    """

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.projections = nn.Parameter(torch.empty(4, width, width))
        for projection in self.projections.detach():
            init_as_linear(projection)

    def parts(self, owner: str, inputs: Labels, heads: Labels) -> list[ParameterPart]:
        """Name the parts; see `models.parameter_names`.

        Args:
            owner: Name of the attention.
            inputs: Labels of a token's numbers.
            heads: Labels of the numbers of all heads.
        """
        axes = [(heads, inputs)] * 3 + [(inputs, heads)]
        return [
            ParameterPart(self.projections, index, f"{owner} {name}", "", (((owner, name),), *of))
            for index, (name, of) in enumerate(zip(("query", "key", "value", "output"), axes, strict=True))
        ]

    def forward(self, tokens: Float[Tensor, "batch token width"]) -> Float[Tensor, "batch token width"]:
        """Compute attention of every token to all tokens of its row."""
        mixed = tokens @ self.projections[:3].flatten(0, 1).t()
        query, key, value = (part.unflatten(2, (self.num_heads, -1)).transpose(1, 2) for part in mixed.chunk(3, dim=2))
        shares = (query @ key.transpose(2, 3) / math.sqrt(query.shape[3])).softmax(-1)
        return tokens + (shares @ value).transpose(1, 2).flatten(2) @ self.projections[3].t()


class MRAN(FusionNetwork):
    """z_k = BN(sum_m alpha_km F'_m + mean_m F'_m), with alpha_k = softmax_m(T'_k Wa F'_m).

    T' = T + MHA(T) and F' = BN(F + MHA(F)). F (B, M, D) has a token per field, which is a feature: a linear map of its
    columns of x, with a bias. T (K, D) is learned. Tokens of tasks are the same in every row: a batch has no variance
    to normalise, and normalisation over K tasks would remove their differences. So there is no BN on T'. The BN of z is
    over rows and tasks. The towers are the per-task predictors, and there are no penalties.

    Args:
        fields: Widths of the fields, which make up the input.
        num_tasks: K.
        width: D.
        num_heads: Number of heads of both attentions, a divisor of D.
        ranks: All ranks, for sums over them.
    """

    reads_real_rows = True
    places: Tensor

    def __init__(
        self, fields: Sequence[int], num_tasks: int, *, width: int, num_heads: int = 1, ranks: Ranks | None = None
    ) -> None:
        super().__init__()
        if width % num_heads:
            raise ValueError(f"width {width} cannot be cut into {num_heads} heads of one width")
        self.out_features, self.fields, self.num_heads = width, list(fields), num_heads
        places = [index for index, size in enumerate(fields) for _ in range(size)]
        self.register_buffer("places", torch.tensor(places), persistent=False)
        self.columns = nn.Parameter(torch.empty(sum(fields), width))
        self.offsets = nn.Parameter(torch.zeros(len(self.fields), width))
        self.tasks = nn.Parameter(torch.empty(num_tasks, width))
        self.alignment = nn.Parameter(torch.empty(width, width))
        self.among_tasks, self.among_fields = (SelfAttention(width, num_heads) for _ in range(2))
        self.norm_of_fields, self.norm_of_outputs = (RealRowsNorm(width, ranks or Ranks()) for _ in range(2))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the projection of each field by its own fan-in."""
        for rows in self.columns.detach().split(self.fields):
            init_as_linear(rows.t())
        init_as_linear(self.alignment.detach())
        nn.init.normal_(self.tasks, 0, 1 / math.sqrt(self.out_features))

    def forward(
        self, x: Float[Tensor, "batch in_features"], is_real: Bool[Tensor, " batch"] | None = None
    ) -> Float[Tensor, "batch task width"]:
        """Compute each task's representation.

        Args:
            x: The input.
            is_real: Mask of the non-padding rows, in training; None: all.
        """
        fields = self.norm_of_fields(self.among_fields(self._tokens(x)), is_real)
        tasks = self.among_tasks(self.tasks.unsqueeze(0)).squeeze(0)
        shares = (tasks @ self.alignment @ fields.to(tasks.dtype).transpose(1, 2)).softmax(-1)
        return self.norm_of_outputs(shares @ fields.to(shares.dtype) + fields.mean(1, keepdim=True), is_real)

    def _tokens(self, x: Tensor) -> Float[Tensor, "batch field width"]:
        """Project all fields in one product; each field's rows fill its own block of columns."""
        own = self.places.unsqueeze(1) == torch.arange(len(self.fields), device=self.places.device)
        blocks = own.unsqueeze(2) * self.columns.unsqueeze(1)
        return (x @ blocks.flatten(1)).unflatten(1, (len(self.fields), -1)) + self.offsets

    def parts(self, inputs: Labels, tasks: Sequence[str]) -> FusionParts:
        """Name the parts; see `FusionNetwork.parts`. A field is labelled by its columns.

        The running averages of the norms are not parameters: a migrated model starts them anew.
        """
        path = f"input > attention of {self.num_heads} heads"
        units, heads = units_of("tokens", self.out_features), units_of(f"{path}, heads", self.out_features)
        firsts = [sum(self.fields[:index]) for index in range(len(self.fields))]
        of_fields = tuple((f"offset of {inputs[first][0]}", inputs[first][1]) for first in firsts)
        named = [(f"token of task {task}", self.tasks, index) for index, task in enumerate(tasks)]
        found = [
            ParameterPart(parameter, index, owner, "", (((owner, ""),), units)) for owner, parameter, index in named
        ]
        found.append(ParameterPart(self.columns, 0, "projection of fields", "weight", (inputs, units)))
        found.append(ParameterPart(self.offsets, 0, "projection of fields", "bias", (of_fields, units)))
        found.append(ParameterPart(self.alignment, 0, "alignment of tasks and fields", "", (units, units)))
        found += self.among_tasks.parts("attention among tasks", units, heads)
        found += self.among_fields.parts("attention among fields", units, heads)
        for owner, norm in (("norm of fields", self.norm_of_fields), ("norm of outputs", self.norm_of_outputs)):
            found += [
                ParameterPart(norm.weight, 0, owner, "weight", (units,)),
                ParameterPart(norm.bias, 0, owner, "bias", (units,)),
            ]
        return FusionParts(found, [units_of(path, self.out_features)] * len(tasks), path)


class MRANConfig(Declaration):
    """MRAN: attention among tasks, among fields, and of tasks on fields.

    Args:
        kind: `mran`.
        width: Width of a token, and of a task's representation.
        num_heads: Number of heads of the attention among tasks and of that among fields; it must divide the width.
    """

    kind: Literal["mran"]
    width: Width
    num_heads: Count = Field(default=1)

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.width % self.num_heads:
            raise ValueError(f"width {self.width} cannot be cut into {self.num_heads} heads of one width")
        return self

    def build(
        self,
        in_features: int,
        task_names: Sequence[str],
        fields: Sequence[int] | None = None,
        ranks: Ranks | None = None,
    ) -> MRAN:
        """Unpack into the network; see `models.network.build_network`."""
        of = fields or [in_features]
        return MRAN(of, len(task_names), width=self.width, num_heads=self.num_heads, ranks=ranks)
