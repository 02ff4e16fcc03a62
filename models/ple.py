"""CGC and PLE: task-specific experts beside shared ones, and gates that weigh them.

Source: Tang et al., "Progressive Layered Extraction (PLE)", RecSys 2020; equations are cited by its numbers.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from itertools import accumulate, pairwise
from typing import Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from features.declaration import Declaration
from features.errors import ConfigError
from models.experts import Gates, grouped_layers, stack_parts
from models.network_base import FusionNetwork, in_slabs
from models.parameter_names import FusionParts, Labels, ParameterPart
from models.sizes import CountOrNone, Width


@dataclass(frozen=True, slots=True, kw_only=True)
class Level:
    """One level in plain values.

    Args:
        num_experts_per_task: m_k of every task k; they may differ, and be 0 if experts are shared.
        num_shared_experts: m_s.
        expert_layers: Widths of an expert's layers (the paper's experts have one). All experts of a level share them,
            because Eq. 2 adds task and shared experts; the last width is its h.
    """

    num_experts_per_task: tuple[int, ...]
    num_shared_experts: int
    expert_layers: tuple[int, ...]

    def __post_init__(self) -> None:
        """Check the numbers, above all that every gate has an expert to choose."""
        if min(self.num_shared_experts, *self.num_experts_per_task) < 0:
            raise ValueError(f"numbers of experts cannot be negative, got {self}")
        if self.num_shared_experts == 0 and 0 in self.num_experts_per_task:
            task = self.num_experts_per_task.index(0)
            raise ValueError(f"task {task} has no expert of its own and none is shared: give it one")
        if not self.expert_layers or min(self.expert_layers) < 1:
            raise ValueError(f"experts need one layer or more, of positive width, got {self.expert_layers}")

    @property
    def num_experts(self) -> int:
        """Number of experts of the level: those of task 0, of task 1, ..., and the shared ones last."""
        return sum(self.num_experts_per_task) + self.num_shared_experts

    def choices(self, *, is_last: bool) -> list[list[int]]:
        """Return the experts that each gate may choose: a task's own, then the shared ones (Eq. 4).

        Below the last level follows the gate of the shared experts, which may choose all of them.
        """
        ends = list(accumulate(self.num_experts_per_task, initial=0))
        shared = list(range(ends[-1], self.num_experts))
        of_tasks = [list(range(start, end)) + shared for start, end in pairwise(ends)]
        return of_tasks if is_last else [*of_tasks, list(range(self.num_experts))]


class ExtractionLevel(nn.Module):
    """One level (Eq. 2-4 and 6): experts, and the gates that fuse them.

    Our reading of figures 1i and 5 and their text, which print no formula: task k's experts and gate read g_{k,j-1},
    the shared experts and their gate g_{s,j-1}; that gate chooses among all experts of its level.

    Args:
        in_features: Width of each input.
        level: The experts.
        is_first: True if every expert and gate reads the one input x.
        is_last: True if no level follows, so that the shared experts have no gate.
        gate_dropout: As in `Gates`.
    """

    def __init__(
        self, in_features: int, level: Level, *, is_first: bool, is_last: bool, gate_dropout: float = 0.0
    ) -> None:
        super().__init__()
        counts = [level.num_experts] if is_first else [*level.num_experts_per_task, level.num_shared_experts]
        self.level, self.is_last = level, is_last
        self.experts = grouped_layers(in_features, level.expert_layers, counts)
        choices = level.choices(is_last=is_last)
        self.gates = Gates(in_features, len(counts), choices, level.num_experts, gate_dropout)

    def forward(
        self, inputs: Float[Tensor, "batch input in_features"]
    ) -> tuple[Float[Tensor, "batch gate out_features"], Float[Tensor, "batch gate expert"]]:
        """Fuse the experts for each gate.

        Args:
            inputs: x at the first level; above it g_{k,j-1} of every task, then g_{s,j-1}.

        Returns:
            g_{k,j} of every task, then below the last level g_{s,j}; and the weights of the gates.
        """
        weights = self.gates(inputs)
        return torch.bmm(weights, self.experts(inputs)), weights

    def parts(
        self, inputs: Labels, tasks: Sequence[str], path: str, name: str
    ) -> tuple[list[ParameterPart], str, Labels]:
        """Name the parts; see `models.parameter_names`.

        Args:
            inputs: Labels of every input.
            tasks: Names of the tasks.
            path: The layers below.
            name: Name of the level.

        Returns:
            The parts, the path with this level's layers, and the labels of every output.
        """
        of_tasks = zip(tasks, self.level.num_experts_per_task, strict=True)
        experts = [f"expert {index} of task {task}, {name}" for task, count in of_tasks for index in range(count)]
        experts += [f"shared expert {index}, {name}" for index in range(self.level.num_shared_experts)]
        found, path, outputs = stack_parts(self.experts, experts, [inputs] * len(experts), path, name)
        gates = [f"gate of task {task}, {name}" for task in tasks] + [f"shared gate, {name}"] * (not self.is_last)
        choices = [[experts[index] for index in of_gate] for of_gate in self.level.choices(is_last=self.is_last)]
        return found + self.gates.parts(gates, choices, inputs), path, outputs[0]


class PLE(FusionNetwork):
    """Progressive Layered Extraction of any number of levels (Eq. 2-7 without the towers); of one level it is CGC.

    Gates above the first level select by the fusion below them, not by x (Eq. 6). Experts end in ReLU. In the forward
    pass, a level has one matrix product for all its gates, one for each layer of all its experts and one that mixes.
    The backward pass has two for each. The number of experts or tasks does not matter.

    With shared layers below, the first level's experts and gates read the output of these instead of x, as in MMoE
    (Zhao et al., RecSys 2019).

    Args:
        in_features: Width of the input.
        num_tasks: K.
        levels: Levels from the input upwards.
        shared_layers: Widths of layers below all experts and gates; none: the first level reads the input.
        gate_dropout: Probability that a gate loses an expert for a row, in training; see `models.experts.Gates`.
    """

    def __init__(
        self,
        in_features: int,
        num_tasks: int,
        levels: Sequence[Level],
        *,
        shared_layers: Sequence[int] = (),
        gate_dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if not levels:
            raise ValueError("PLE needs at least one level")
        for number, level in enumerate(levels, start=1):
            if len(level.num_experts_per_task) != num_tasks:
                got = len(level.num_experts_per_task)
                raise ValueError(f"level {number} numbers the experts of {got} tasks, the network has {num_tasks}")
        self.trunk = grouped_layers(in_features, shared_layers, [1]) if shared_layers else nn.Identity()
        widths = [[in_features, *shared_layers][-1], *(level.expert_layers[-1] for level in levels)]
        self.out_features = widths[-1]
        last = len(levels) - 1
        self.levels = nn.ModuleList(
            ExtractionLevel(width, level, is_first=index == 0, is_last=index == last, gate_dropout=gate_dropout)
            for index, (width, level) in enumerate(zip(widths[:-1], levels, strict=True))
        )

    def forward(self, x: Float[Tensor, "batch in_features"]) -> Float[Tensor, "batch task out_features"]:
        """Fuse x for each task: g_{k,N}(x), the input of task k's tower (Eq. 7)."""
        return in_slabs(self._fuse, x)

    def _fuse(self, x: Float[Tensor, "batch in_features"]) -> Float[Tensor, "batch task out_features"]:
        fused = self.trunk(x.unsqueeze(1))
        for level in self.levels:
            fused, _ = level(fused)
        return fused

    def parts(self, inputs: Labels, tasks: Sequence[str]) -> FusionParts:
        """Name the parts; see `FusionNetwork.parts`."""
        found, path, (inputs,) = stack_parts(self.trunk, ["shared layers"], [inputs], "input", "shared")
        for number, level in enumerate(self.levels, start=1):
            assert isinstance(level, ExtractionLevel)
            of_level, path, inputs = level.parts(inputs, tasks, path, f"level {number}")
            found += of_level
        return FusionParts(found, [inputs] * len(tasks), path)

    def gate_weights(self, x: Float[Tensor, "batch in_features"]) -> list[Float[Tensor, "batch gate expert"]]:
        """Compute the gates' weights as `forward` does; see `FusionNetwork.gate_weights`.

        Returns:
            One tensor per level. Gates: every task's, then below the last level the shared one. Experts: those of task
            0, of task 1, ..., then the shared ones; exactly 0 if the gate may not choose the expert.
        """
        fused = self.trunk(x.unsqueeze(1))
        weights = []
        for level in self.levels:
            fused, of_level = level(fused)
            weights.append(of_level)
        return weights


class LevelConfig(Declaration):
    """Experts of one level.

    Args:
        expert_layers: Widths of an expert's layers; the last one is the width of the level's output.
        num_experts_per_task: Number of task-specific experts: one for all tasks, or one for every task by its name.
        num_shared_experts: Number of experts that all tasks share.
    """

    expert_layers: list[Width] = Field(min_length=1)
    num_experts_per_task: CountOrNone | dict[str, CountOrNone]
    num_shared_experts: CountOrNone

    def for_tasks(self, task_names: Sequence[str]) -> Level:
        """Return the level in plain values, for tasks in this order.

        Raises:
            ConfigError: A numbered task does not exist, a task has no number, or has no expert to choose.
        """
        numbers = self.num_experts_per_task
        if isinstance(numbers, int):
            numbers = dict.fromkeys(task_names, numbers)
        for name in [name for name in numbers if name not in task_names]:
            near = get_close_matches(name, task_names, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"declared are {list(task_names)}"
            raise ConfigError(f"num_experts_per_task: there is no task {name!r}: {hint}")
        for name in task_names:
            if name not in numbers:
                raise ConfigError(f"num_experts_per_task: task {name!r} is missing: give it a number too, 0 for none")
            if numbers[name] + self.num_shared_experts == 0:
                raise ConfigError(f"num_experts_per_task: task {name!r} has none of its own and none is shared")
        return Level(
            num_experts_per_task=tuple(numbers[name] for name in task_names),
            num_shared_experts=self.num_shared_experts,
            expert_layers=tuple(self.expert_layers),
        )


class PLEConfig(Declaration):
    """PLE of any number of levels.

    Args:
        kind: `ple`.
        levels: Levels from the input upwards.
        shared_layers: Widths of hidden layers below all experts and gates; none: the first level reads the input.
        gate_dropout: Probability that a gate loses an expert for a row, in training.
    """

    kind: Literal["ple"]
    levels: list[LevelConfig] = Field(min_length=1)
    shared_layers: list[Width] = []
    gate_dropout: float = Field(default=0.0, ge=0, lt=1)

    def build(self, in_features: int, task_names: Sequence[str]) -> PLE:
        """Unpack into the network; see `models.network.build_network`."""
        levels = [level.for_tasks(task_names) for level in self.levels]
        return PLE(
            in_features, len(task_names), levels, shared_layers=self.shared_layers, gate_dropout=self.gate_dropout
        )


class CGCConfig(LevelConfig):
    """CGC: PLE of one level.

    Args:
        kind: `cgc`.
        expert_layers: As in a level of `ple`, like the other keys.
        num_experts_per_task: Number of task-specific experts.
        num_shared_experts: Number of experts that all tasks share.
        shared_layers: Widths of hidden layers below experts and gates; none: both read the input.
        gate_dropout: Probability that a gate loses an expert for a row, in training.
    """

    kind: Literal["cgc"]
    shared_layers: list[Width] = []
    gate_dropout: float = Field(default=0.0, ge=0, lt=1)

    def build(self, in_features: int, task_names: Sequence[str]) -> PLE:
        """Unpack into the network; see `models.network.build_network`."""
        return PLE(
            in_features,
            len(task_names),
            [self.for_tasks(task_names)],
            shared_layers=self.shared_layers,
            gate_dropout=self.gate_dropout,
        )
