"""MMoE and variants: experts that all tasks share, weighted by gates that all read the same input.

Sources: Ma et al., "Modeling Task Relationships in Multi-task Learning with Multi-gate Mixture-of-Experts", KDD 2018
(MMoE, OMoE); Tang et al., "Progressive Layered Extraction (PLE)", RecSys 2020, figure 1h (ML-MMoE); Zhao et al.,
"Recommending What Video to Watch Next", RecSys 2019 (shared hidden layer, dropout of gates).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from features.declaration import Declaration
from models.experts import Gates, grouped_layers, stack_parts
from models.network_base import FusionNetwork, in_slabs
from models.parameter_names import FusionParts, Labels
from models.sizes import Count, Width


@dataclass(frozen=True, slots=True, kw_only=True)
class SharedExperts:
    """Experts of one level in plain values.

    Args:
        num_experts: n.
        expert_layers: Widths of an expert's layers, the same for all experts of a level, since gates add them up.
    """

    num_experts: int
    expert_layers: tuple[int, ...]

    def __post_init__(self) -> None:
        """Check that the level has experts, and the experts layers."""
        if self.num_experts < 1 or not self.expert_layers or min(self.expert_layers) < 1:
            raise ValueError(f"a level needs an expert or more, of one layer or more, of positive width, got {self}")


class MMoE(FusionNetwork):
    """Mixture of experts with one gate per task, or one for all; one level or several.

    One level: f^k(x) = sum_i softmax(W_k x)_i f_i(x), without a bias in the gates. Above the first level, expert j
    reads a mixture of its own, z_j = sum_i softmax(W_sj x)_i E_i. Gates of every level read x, not the mixture below
    them (ML-MMoE; PLE differs). Experts end in ReLU (our reading).

    With shared layers below, experts and gates read the output of these instead of x (section 4.2 of Zhao et al.).

    All gates of all levels are one matrix product, each layer of a level's experts is one, each level's mixing is one.

    Args:
        in_features: Width of the input.
        num_tasks: K.
        levels: Levels from the input upwards.
        has_one_gate: True if all tasks read one mixture (OMoE).
        shared_layers: Widths of layers below experts and gates; none: both read the input.
        gate_dropout: Probability that a gate loses an expert for a row, in training; see `models.experts.Gates`.
    """

    def __init__(
        self,
        in_features: int,
        num_tasks: int,
        levels: Sequence[SharedExperts],
        *,
        has_one_gate: bool = False,
        shared_layers: Sequence[int] = (),
        gate_dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if not levels:
            raise ValueError("a mixture of experts needs at least one level")
        self.num_tasks, self.has_one_gate = num_tasks, has_one_gate
        self.num_experts = [level.num_experts for level in levels]
        self.num_gates = [*self.num_experts[1:], 1 if has_one_gate else num_tasks]
        self.out_features = levels[-1].expert_layers[-1]
        self.trunk = grouped_layers(in_features, shared_layers, [1]) if shared_layers else nn.Identity()
        widths = [[in_features, *shared_layers][-1], *(level.expert_layers[-1] for level in levels)]
        self.experts = nn.ModuleList(
            grouped_layers(width, level.expert_layers, [1] * level.num_experts if index else [level.num_experts])
            for index, (width, level) in enumerate(zip(widths[:-1], levels, strict=True))
        )
        self.gates = Gates(widths[0], 1, self._choices(), sum(self.num_experts), gate_dropout)

    def _choices(self) -> list[range]:
        """Return each gate's experts, level by level; experts are numbered through all levels."""
        of_levels = [range(*ends) for ends in pairwise(accumulate(self.num_experts, initial=0))]
        return [experts for experts, count in zip(of_levels, self.num_gates, strict=True) for _ in range(count)]

    def forward(self, x: Float[Tensor, "batch in_features"]) -> Float[Tensor, "batch task out_features"]:
        """Mix the experts for each task: f^k(x)."""
        return in_slabs(self._fuse, x)

    def _fuse(self, x: Float[Tensor, "batch in_features"]) -> Float[Tensor, "batch task out_features"]:
        inputs = self.trunk(x.unsqueeze(1))
        weights = self._by_level(self.gates(inputs))
        for experts, of_level in zip(self.experts, weights, strict=True):
            inputs = torch.bmm(of_level, experts(inputs))
        return inputs.expand(-1, self.num_tasks, -1)

    def parts(self, inputs: Labels, tasks: Sequence[str]) -> FusionParts:
        """Name the parts as PLE does where they are the same; see `FusionNetwork.parts`."""
        found, path, (selector,) = stack_parts(self.trunk, ["shared layers"], [inputs], "input", "shared")
        outputs, gates, choices = selector, [], []
        above = [*self.num_experts[1:], None]
        for number, (stack, count) in enumerate(zip(self.experts, self.num_experts, strict=True), start=1):
            name = f"level {number}"
            experts = [f"shared expert {index}, {name}" for index in range(count)]
            of_level, path, (outputs, *_) = stack_parts(stack, experts, [outputs] * count, path, name)
            found += of_level
            owners = self._gate_owners(name, f"level {number + 1}", above[number - 1], tasks)
            gates, choices = gates + owners, choices + [experts] * len(owners)
        return FusionParts(found + self.gates.parts(gates, choices, selector), [outputs] * len(tasks), path)

    def _gate_owners(self, name: str, next_name: str, num_above: int | None, tasks: Sequence[str]) -> list[str]:
        """Name the gates of a level: one per expert above, or, if num_above is None, of the tasks."""
        if num_above is not None:
            return [f"gate for shared expert {index}, {next_name}" for index in range(num_above)]
        return [f"gate of all tasks, {name}"] if self.has_one_gate else [f"gate of task {t}, {name}" for t in tasks]

    def _by_level(self, weights: Float[Tensor, "batch gate expert"]) -> list[Float[Tensor, "batch gate expert"]]:
        """Cut each level's gates and experts out of the table of all levels."""
        rows, found, expert = weights.split(self.num_gates, dim=1), [], 0
        for level, count in enumerate(self.num_experts):
            found.append(rows[level][:, :, expert : expert + count])
            expert += count
        return found

    def gate_weights(self, x: Float[Tensor, "batch in_features"]) -> list[Float[Tensor, "batch gate expert"]]:
        """Compute the gates' weights as `forward` does; see `FusionNetwork.gate_weights`.

        Returns:
            One tensor per level. Gates: below the last level one per expert of the next level; at the last, one per
            task, or one for all.
        """
        return self._by_level(self.gates(self.trunk(x.unsqueeze(1))))


class SharedExpertsConfig(Declaration):
    """Experts of one level.

    Args:
        num_experts: Number of experts, which all tasks share.
        expert_layers: Widths of an expert's layers; the last one is the width of the level's output.
    """

    num_experts: Count
    expert_layers: list[Width] = Field(min_length=1)

    def unpack(self) -> SharedExperts:
        """Return the experts in plain values."""
        return SharedExperts(num_experts=self.num_experts, expert_layers=tuple(self.expert_layers))


class MMoEConfig(SharedExpertsConfig):
    """MMoE: one level of shared experts, and a gate for each task.

    Args:
        kind: `mmoe`.
        num_experts: Number of experts, which all tasks share.
        expert_layers: Widths of an expert's layers.
        shared_layers: Widths of hidden layers below experts and gates; none: both read the input.
        gate_dropout: Probability that a gate loses an expert for a row, in training; 0.1 in Zhao et al.
    """

    kind: Literal["mmoe"]
    shared_layers: list[Width] = []
    gate_dropout: float = Field(default=0.0, ge=0, lt=1)

    def build(self, in_features: int, task_names: Sequence[str]) -> MMoE:
        """Unpack into the network; see `models.network.build_network`."""
        return MMoE(
            in_features,
            len(task_names),
            [self.unpack()],
            shared_layers=self.shared_layers,
            gate_dropout=self.gate_dropout,
        )


class OMoEConfig(SharedExpertsConfig):
    """OMoE: one level of shared experts, and one gate, so that all towers read the same mixture.

    Args:
        kind: `omoe`.
        num_experts: Number of experts, which all tasks share.
        expert_layers: Widths of an expert's layers.
        shared_layers: Widths of hidden layers below experts and gates; none: both read the input.
        gate_dropout: Probability that the gate loses an expert for a row, in training.
    """

    kind: Literal["omoe"]
    shared_layers: list[Width] = []
    gate_dropout: float = Field(default=0.0, ge=0, lt=1)

    def build(self, in_features: int, task_names: Sequence[str]) -> MMoE:
        """Unpack into the network; see `models.network.build_network`."""
        return MMoE(
            in_features,
            len(task_names),
            [self.unpack()],
            has_one_gate=True,
            shared_layers=self.shared_layers,
            gate_dropout=self.gate_dropout,
        )


class MLMMoEConfig(Declaration):
    """ML-MMoE: levels of shared experts; a gate for each task and each expert above the first level, all reading x.

    Args:
        kind: `ml_mmoe`.
        levels: Levels from the input upwards.
        shared_layers: Widths of hidden layers below experts and gates; none: all read the input.
        gate_dropout: Probability that a gate loses an expert for a row, in training.
    """

    kind: Literal["ml_mmoe"]
    levels: list[SharedExpertsConfig] = Field(min_length=1)
    shared_layers: list[Width] = []
    gate_dropout: float = Field(default=0.0, ge=0, lt=1)

    def build(self, in_features: int, task_names: Sequence[str]) -> MMoE:
        """Unpack into the network; see `models.network.build_network`."""
        return MMoE(
            in_features,
            len(task_names),
            [level.unpack() for level in self.levels],
            shared_layers=self.shared_layers,
            gate_dropout=self.gate_dropout,
        )
