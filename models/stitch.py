"""Cross-stitch and sluice networks: a column of layers for each task, and units that mix the columns.

Sources: Misra et al., "Cross-stitch Networks for Multi-task Learning", CVPR 2016; Ruder et al., "Latent Multi-task
Architecture Learning" (sluice networks), AAAI 2019, and its authors' code.
"""

from collections.abc import Sequence
from functools import reduce
from itertools import combinations, pairwise
from typing import Literal, Self

import torch
from jaxtyping import Float
from pydantic import Field, model_validator
from torch import Tensor, nn

from features.declaration import Declaration
from models.experts import GroupedLayer
from models.network_base import FusionNetwork, in_slabs
from models.parameter_names import FusionParts, Labels, ParameterPart, units_of
from models.sizes import Count, Width

StitchStart = Literal["imbalanced", "balanced"]

# Starting weight of a column's own values; the others share the rest equally: 0.9 of both papers' units.
_OWN_SHARE = 0.9


def starting_shares(size: int, own: float) -> Float[Tensor, "size size"]:
    """Return the starting mixing weights: `own` on the diagonal, the rest of a row's 1 in equal parts beside it.

    A single column keeps weight 1.
    """
    if size == 1:
        return torch.ones(1, 1)
    others = (1 - own) / (size - 1)
    return torch.full((size, size), others) + torch.eye(size) * (own - others)


class StitchUnit(nn.Module):
    """x~_(t,s) = sum over (u,r) of alpha_(t,s),(u,r) x_(u,r): one number for each pair of columns' subspaces.

    One subspace gives the cross-stitch unit x~_t = sum_u alpha_tu x_u. Alpha is not constrained (nor is it in the
    authors' code): rows sum to 1 at the start only.

    Args:
        num_tasks: T.
        num_subspaces: S, a divisor of the columns' width; subspace s is the s-th of S equal parts of a column.
        own: Weight of a subspace's own values at the start.

    Attributes:
        alpha: (T * S, T * S), tasks first, their subspaces within.
    """

    def __init__(self, num_tasks: int, num_subspaces: int, own: float) -> None:
        super().__init__()
        self.shape = (num_tasks, num_subspaces, num_tasks, num_subspaces)
        self.alpha = nn.Parameter(starting_shares(num_tasks * num_subspaces, own))

    def parts(self, columns: Sequence[str], name: str) -> list[ParameterPart]:
        """Name the parts; see `models.parameter_names`.

        Args:
            columns: Name of each task's column.
            name: Name of the unit.
        """
        number = self.shape[1]
        labels = tuple((column, f"{index} of {number}") for column in columns for index in range(number))
        return [ParameterPart(self.alpha, 0, name, "", (labels, labels))]

    def forward(self, columns: Float[Tensor, "batch task width"]) -> Float[Tensor, "batch task width"]:
        """Mix the columns, in one matrix product."""
        parts = columns.unflatten(2, (self.shape[1], -1))
        return torch.einsum("tsur,burd->btsd", self.alpha.view(self.shape), parts).flatten(2)


class StitchedColumns(FusionNetwork):
    """A column of layers relu(W x + b) for each task; a unit after every layer mixes the columns.

    A layer is one matrix product for all tasks, its unit one more.

    Args:
        in_features: Width of the input.
        num_tasks: T.
        layers: Widths of a column's layers.
        num_subspaces: S, a divisor of every width.
        own: Weight of a column's own values in the units at the start.
        alpha_rate: Factor of the learning rate of the units' alpha.
    """

    def __init__(
        self,
        in_features: int,
        num_tasks: int,
        layers: Sequence[int],
        num_subspaces: int = 1,
        own: float = _OWN_SHARE,
        alpha_rate: float = 1.0,
    ) -> None:
        super().__init__()
        self.alpha_rate = alpha_rate
        self.out_features, self.num_subspaces = layers[-1], num_subspaces
        readers = [[num_tasks], *[[1] * num_tasks] * (len(layers) - 1)]
        widths = pairwise([in_features, *layers])
        self.layers = nn.ModuleList(GroupedLayer(*of, counts) for of, counts in zip(widths, readers, strict=True))
        self.units = nn.ModuleList(StitchUnit(num_tasks, num_subspaces, own) for _ in layers)

    def mixed(self, x: Float[Tensor, "batch in_features"]) -> list[Float[Tensor, "batch task width"]]:
        """Compute every layer's mixed columns; each layer reads the mixed columns below it."""
        columns, found = x.unsqueeze(1), []
        for layer, unit in zip(self.layers, self.units, strict=True):
            columns = unit(layer(columns))
            found.append(columns)
        return found

    def rate_factors(self) -> dict[str, float]:
        """Return alpha's own rate; see `FusionNetwork.rate_factors`."""
        return {f"units.{index}.alpha": self.alpha_rate for index in range(len(self.units)) if self.alpha_rate != 1}

    def parts(self, inputs: Labels, tasks: Sequence[str]) -> FusionParts:
        """Name the parts; see `FusionNetwork.parts`."""
        columns = [f"column of task {task}" for task in tasks]
        found, path = [], "input"
        for number, (layer, unit) in enumerate(zip(self.layers, self.units, strict=True), start=1):
            assert isinstance(layer, GroupedLayer)
            assert isinstance(unit, StitchUnit)
            path = f"{path} > column layer {number}"
            units = self.subspaces_of(path, layer.out_features)
            found += layer.parts(columns, f"layer {number}", [inputs] * len(tasks), units)
            found += unit.parts(columns, f"stitch unit {number}")
            inputs = units
        return FusionParts(found, [inputs] * len(tasks), path)

    def subspaces_of(self, path: str, width: int) -> Labels:
        """Label a column's units, subspace by subspace; another number of subspaces gives other units."""
        if self.num_subspaces == 1:
            return units_of(path, width)
        names = [f"{path}, subspace {index} of {self.num_subspaces}" for index in range(self.num_subspaces)]
        return tuple(label for name in names for label in units_of(name, width // self.num_subspaces))

    def forward(self, x: Float[Tensor, "batch in_features"]) -> Float[Tensor, "batch task out_features"]:
        """Return the last layer's mixed columns."""
        return in_slabs(lambda slab: self.mixed(slab)[-1], x)


class Sluice(FusionNetwork):
    """Sluice network: columns mixed by subspaces, and for each task a mixture of all its layers.

    z_t = sum_l beta_tl h~_tl, with h~_tl task t's column after layer l and its unit. As in the authors' code, neither
    alpha nor beta is constrained. Layers are relu(W x + b); the authors' are recurrent (our reading).

    The penalty is c * sum over tasks, layers and pairs of subspaces of ||G_r^T G_s||_F^2. G_s has the weights of one
    unit in each of its columns, so each unit of a subspace is paired with each of another (our reading; the authors'
    code keeps W transposed and so pairs the i-th unit of one with the i-th of the other). One subspace has no penalty.

    Args:
        in_features: Width of the input.
        num_tasks: T.
        width: Width of every layer, since beta adds the layers up. A subspace has width / S.
        num_layers: L.
        num_subspaces: S.
        orthogonality: c.
        alpha_start: `imbalanced`: .9 of a task's own subspace, the rest in equal parts from all others (our reading
            for S > 1: the authors' code has a pattern for two tasks only, whose rows sum to 2); `balanced`: all equal.
        beta_start: `imbalanced`: .9 of the last layer, the rest in equal parts from those below; `balanced`: all equal.

    Attributes:
        beta: (task, layer).
    """

    def __init__(
        self,
        in_features: int,
        num_tasks: int,
        *,
        width: int,
        num_layers: int,
        num_subspaces: int = 2,
        orthogonality: float = 0.1,
        alpha_start: StitchStart = "imbalanced",
        beta_start: StitchStart = "balanced",
    ) -> None:
        super().__init__()
        if width % num_subspaces:
            raise ValueError(f"width {width} cannot be cut into {num_subspaces} subspaces of one width")
        self.out_features = width
        self.num_subspaces, self.orthogonality = num_subspaces, orthogonality
        own = _OWN_SHARE if alpha_start == "imbalanced" else 1 / (num_tasks * num_subspaces)
        self.columns = StitchedColumns(in_features, num_tasks, [width] * num_layers, num_subspaces, own)
        last = _OWN_SHARE if beta_start == "imbalanced" else 1 / num_layers
        self.beta = nn.Parameter(starting_shares(num_layers, last)[-1].repeat(num_tasks, 1))

    def forward(self, x: Float[Tensor, "batch in_features"]) -> Float[Tensor, "batch task out_features"]:
        """Mix each task's layers: z_t."""
        return in_slabs(self._fuse, x)

    def _fuse(self, x: Float[Tensor, "batch in_features"]) -> Float[Tensor, "batch task out_features"]:
        layers = enumerate(self.columns.mixed(x))
        return reduce(torch.add, (self.beta[:, index].unsqueeze(1) * columns for index, columns in layers))

    def rate_factors(self) -> dict[str, float]:
        """Return alpha's own rate; see `FusionNetwork.rate_factors`."""
        return {f"columns.{name}": factor for name, factor in self.columns.rate_factors().items()}

    def parts(self, inputs: Labels, tasks: Sequence[str]) -> FusionParts:
        """Name the parts; see `FusionNetwork.parts`. The mixture of layers is the same for any number of layers."""
        columns, path = self.columns.parts(inputs, tasks), "input > mixed column layers"
        layers = tuple((f"layer {number}", "") for number in range(1, len(self.columns.layers) + 1))
        mixtures = [
            ParameterPart(
                self.beta, index, f"mixture of task {task}'s layers", "", (((f"column of task {task}", ""),), layers)
            )
            for index, task in enumerate(tasks)
        ]
        outputs = self.columns.subspaces_of(path, self.out_features)
        return FusionParts(columns.parts + mixtures, [outputs] * len(tasks), path)

    def penalty(self) -> Float[Tensor, ""] | None:
        """Return c times the overlap of the subspaces' weights; see the class."""
        if self.orthogonality == 0 or self.num_subspaces == 1:
            return None
        overlaps = []
        for layer in self.columns.layers:
            assert isinstance(layer, GroupedLayer)
            parts = layer.weight.unflatten(1, (self.num_subspaces, -1))
            for one, other in combinations(range(self.num_subspaces), 2):
                overlaps.append(torch.bmm(parts[:, one], parts[:, other].transpose(1, 2)).square().sum())
        return self.orthogonality * torch.stack(overlaps).sum()


class CrossStitchConfig(Declaration):
    """Cross-stitch: after every layer the tasks' columns are mixed, x~_t = sum_u alpha_tu x_u.

    Args:
        kind: `cross_stitch`.
        layers: Widths of a column's layers, each followed by a unit.
        own_share: alpha_tt at the start; the other tasks share the rest of 1 equally.
        alpha_rate: Factor of alpha's learning rate; the source's is about 100.
    """

    kind: Literal["cross_stitch"]
    layers: list[Width] = Field(min_length=1)
    own_share: float = Field(default=_OWN_SHARE, ge=0, le=1)
    alpha_rate: float = Field(default=1.0, gt=0, allow_inf_nan=False)

    def build(self, in_features: int, task_names: Sequence[str]) -> StitchedColumns:
        """Unpack into the network; see `models.network.build_network`."""
        own, rate = self.own_share, self.alpha_rate
        return StitchedColumns(in_features, len(task_names), self.layers, own=own, alpha_rate=rate)


class SluiceConfig(Declaration):
    """Sluice: columns mixed by subspaces, each task's layers mixed too, subspaces kept apart by a penalty.

    Args:
        kind: `sluice`.
        width: Width of every layer of a column.
        num_layers: Number of layers of a column.
        num_subspaces: Number of separately mixed parts of a layer; it must divide the width.
        orthogonality: Weight of the penalty on overlapping subspaces, in the loss; 0 for none.
        alpha_rate: Factor of alpha's learning rate.
        alpha_start: Mixing of columns at the start: .9 of a task's own subspace, or all equal.
        beta_start: Mixing of a task's layers at the start: .9 of the last one, or all equal.
    """

    kind: Literal["sluice"]
    width: Width
    num_layers: Count
    num_subspaces: Count = 2
    orthogonality: float = Field(default=0.1, ge=0, allow_inf_nan=False)
    alpha_rate: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    alpha_start: StitchStart = "imbalanced"
    beta_start: StitchStart = "balanced"

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.width % self.num_subspaces:
            raise ValueError(f"width {self.width} cannot be cut into {self.num_subspaces} subspaces of one width")
        return self

    def build(self, in_features: int, task_names: Sequence[str]) -> Sluice:
        """Unpack into the network; see `models.network.build_network`."""
        network = Sluice(
            in_features,
            len(task_names),
            width=self.width,
            num_layers=self.num_layers,
            num_subspaces=self.num_subspaces,
            orthogonality=self.orthogonality,
            alpha_start=self.alpha_start,
            beta_start=self.beta_start,
        )
        network.columns.alpha_rate = self.alpha_rate
        return network
