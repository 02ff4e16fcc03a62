"""Hard, asymmetric and customized sharing: bottoms over one input, and a choice of bottoms for each task's tower.

Source: the single-level baselines of Tang et al., "Progressive Layered Extraction (PLE)", RecSys 2020, figure 1a-c.
"""

from collections.abc import Sequence
from difflib import get_close_matches
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from features.declaration import Declaration
from features.errors import ConfigError
from models.experts import grouped_layers, stack_parts
from models.network_base import FusionNetwork, in_slabs
from models.parameter_names import FusionParts, Labels, units_of
from models.sizes import Width

Fuse = Literal["concat", "sum", "mean"]


class SharedBottoms(FusionNetwork):
    """Bottoms b_i(x), MLPs of one shape, and for each task the fusion of those that it reads.

    All bottoms are one matrix product at their first layer and one batched product at every other.

    Our reading where no source says: bottoms end in ReLU. If tasks read different numbers of bottoms, the shorter
    concatenations are padded with zeros, since all towers have one width. The weights of a tower over such zeros never
    learn nor matter.

    Args:
        in_features: Width of the input.
        layers: Widths of a bottom's layers.
        reads: For each task the numbers of its bottoms, in the order of concatenation.
        fuse: Fusion of several bottoms to one vector.
        owners: For each bottom the number of its owner task; absent: all are shared.
    """

    places: Tensor
    num_read: Tensor

    def __init__(
        self,
        in_features: int,
        layers: Sequence[int],
        reads: Sequence[Sequence[int]],
        fuse: Fuse = "concat",
        owners: Sequence[int | None] = (),
    ) -> None:
        super().__init__()
        num_bottoms = 1 + max(bottom for read in reads for bottom in read)
        most = max(len(read) for read in reads)
        self._check(reads, num_bottoms)
        self.num_tasks, self.most, self.fuse = len(reads), most, fuse
        self.reads, self.owners = reads, list(owners) or [None] * num_bottoms
        self.is_one_for_all = num_bottoms == 1
        self.is_uneven = any(len(read) < most for read in reads)
        self.out_features = layers[-1] * (most if fuse == "concat" else 1)
        self.bottoms = grouped_layers(in_features, layers, [num_bottoms])
        # The last bottom, of zeros, pads the concatenations.
        places = [bottom for read in reads for bottom in [*read, *[num_bottoms] * (most - len(read))]]
        self.register_buffer("places", torch.tensor(places), persistent=False)
        counts = torch.tensor([float(len(read)) for read in reads])
        self.register_buffer("num_read", counts.unsqueeze(1), persistent=False)

    def parts(self, inputs: Labels, tasks: Sequence[str]) -> FusionParts:
        """Name the parts; see `FusionNetwork.parts`.

        Fused side by side, a task's representation is labelled by its bottoms. Else the fused units keep their labels
        for any set of bottoms, as an expert's units do.
        """
        bottoms = [
            f"shared bottom {index}" if owner is None else f"bottom of task {tasks[owner]}"
            for index, owner in enumerate(self.owners)
        ]
        found, path, units = stack_parts(self.bottoms, bottoms, [inputs] * len(bottoms), "input", "bottom")
        if self.fuse != "concat":
            return FusionParts(found, [units[0]] * self.num_tasks, path)
        width = len(units[0])
        of_bottoms = [units_of(f"{path}, {bottom}", width) for bottom in bottoms]
        zeros = tuple(("", str(place)) for place in range(self.most * width))
        outputs = [tuple(label for bottom in read for label in of_bottoms[bottom]) for read in self.reads]
        return FusionParts(found, [output + zeros[: len(zeros) - len(output)] for output in outputs], path)

    @staticmethod
    def _check(reads: Sequence[Sequence[int]], num_bottoms: int) -> None:
        for task, read in enumerate(reads):
            if not read or len(set(read)) < len(read):
                raise ValueError(f"task {task} reads bottoms {list(read)}: name at least one, and each once")
        unread = set(range(num_bottoms)) - {bottom for read in reads for bottom in read}
        if unread:
            raise ValueError(f"no task reads bottoms {sorted(unread)}: they would never learn")

    def forward(self, x: Float[Tensor, "batch in_features"]) -> Float[Tensor, "batch task out_features"]:
        """Fuse each task's bottoms; to width layers[-1], or that times the most bottoms that a task concatenates."""
        return in_slabs(self._fuse, x)

    def _fuse(self, x: Float[Tensor, "batch in_features"]) -> Float[Tensor, "batch task out_features"]:
        outputs = self.bottoms(x.unsqueeze(1))
        if self.is_one_for_all:
            return outputs.expand(-1, self.num_tasks, -1)
        if self.is_uneven:
            outputs = F.pad(outputs, (0, 0, 0, 1))
        chosen = outputs.index_select(1, self.places).unflatten(1, (self.num_tasks, self.most))
        if self.fuse == "concat":
            return chosen.flatten(2)
        fused = chosen.sum(2)
        return fused / self.num_read if self.fuse == "mean" else fused


class HardSharingConfig(Declaration):
    """Hard sharing: one bottom for all tasks, y_k = t_k(f(x)); with one task, the single-task model.

    Args:
        kind: `hard_sharing`.
        layers: Widths of the bottom's layers.
    """

    kind: Literal["hard_sharing"]
    layers: list[Width] = Field(min_length=1)

    def build(self, in_features: int, task_names: Sequence[str]) -> SharedBottoms:
        """Unpack into the network; see `models.network.build_network`."""
        return SharedBottoms(in_features, self.layers, [[0]] * len(task_names))


class AsymmetricSharingConfig(Declaration):
    """Asymmetric sharing: each task has a bottom, and some tasks read those of others, y_B = t_B(fuse(b_A, b_B)).

    Args:
        kind: `asymmetric_sharing`.
        layers: Widths of a bottom's layers.
        reads: Per task, the tasks whose bottoms it reads, itself included or not, in the order of concatenation. An
            unnamed task reads its own bottom alone. Every bottom must be read by some task.
        fuse: Fusion of several bottoms to one vector: side by side, by their sum, or by their mean.
    """

    kind: Literal["asymmetric_sharing"]
    layers: list[Width] = Field(min_length=1)
    reads: dict[str, list[str]]
    fuse: Fuse = "concat"

    def build(self, in_features: int, task_names: Sequence[str]) -> SharedBottoms:
        """Unpack into the network; see `models.network.build_network`.

        Raises:
            ConfigError: A named task does not exist, or a bottom is read twice or by no task.
        """
        for name in [name for reader, read in self.reads.items() for name in (reader, *read)]:
            if name not in task_names:
                near = get_close_matches(name, task_names, n=1)
                hint = f"did you mean {near[0]!r}?" if near else f"declared are {list(task_names)}"
                raise ConfigError(f"reads: there is no task {name!r}: {hint}")
        reads = [self.reads.get(name, [name]) for name in task_names]
        for name, read in zip(task_names, reads, strict=True):
            if not read or len(set(read)) < len(read):
                raise ConfigError(f"reads: task {name!r} reads {read}: name at least one bottom, and each once")
            if not any(name in of_some for of_some in reads):
                raise ConfigError(f"reads: no task reads the bottom of {name!r}: it would never learn")
        by_number = [[*map(task_names.index, read)] for read in reads]
        return SharedBottoms(in_features, self.layers, by_number, self.fuse, owners=range(len(task_names)))


class CustomizedSharingConfig(Declaration):
    """Customized sharing: a shared bottom beside one per task, y_k = t_k([b_s(x); b_k(x)]).

    Args:
        kind: `customized_sharing`.
        layers: Widths of a bottom's layers, for the shared one and the tasks'; the towers read twice the last.
    """

    kind: Literal["customized_sharing"]
    layers: list[Width] = Field(min_length=1)

    def build(self, in_features: int, task_names: Sequence[str]) -> SharedBottoms:
        """Unpack into the network; see `models.network.build_network`."""
        numbers = range(len(task_names))
        return SharedBottoms(in_features, self.layers, [[0, 1 + task] for task in numbers], owners=[None, *numbers])
