"""Which tasks reach which parameters: by hand for small networks, and that nothing is dead by accident."""

import pytest
import torch

from models.mmoe import MMoE, SharedExperts
from models.network_base import FusionNetwork
from models.ple import PLE, Level
from models.sharing import SharedBottoms
from models.stitch import Sluice, StitchedColumns
from models.task_reach import ParameterBlock, parameter_blocks, reached_tasks


def _levels(*per_level: tuple[tuple[int, ...], int]) -> list[Level]:
    return [Level(num_experts_per_task=own, num_shared_experts=shared, expert_layers=(4,)) for own, shared in per_level]


def _experts(*counts: int) -> list[SharedExperts]:
    return [SharedExperts(num_experts=count, expert_layers=(4,)) for count in counts]


BOTH, NONE = (0, 1), ()
# By parameter: the tasks of each row, or of each run of them as (tasks, rows).
EXPECTED: dict[str, tuple[FusionNetwork, dict[str, list[tuple[tuple[int, ...], int]]]]] = {
    "hard": (SharedBottoms(5, [4], [[0], [0]]), {"bottoms.0.weight": [(BOTH, 1)]}),
    "asymmetric": (
        SharedBottoms(5, [4, 3], [[0], [1, 0], [2]]),
        {
            "bottoms.0.weight": [((0, 1), 1), ((1,), 1), ((2,), 1)],
            "bottoms.1.bias": [((0, 1), 1), ((1,), 1), ((2,), 1)],
        },
    ),
    "customized": (
        SharedBottoms(5, [4], [[0, 1], [0, 2]]),
        {"bottoms.0.weight": [(BOTH, 1), ((0,), 1), ((1,), 1)]},
    ),
    "cgc": (
        PLE(5, 2, _levels(((1, 2), 2))),
        {
            "levels.0.experts.0.weight": [((0,), 1), ((1,), 2), (BOTH, 2)],
            "levels.0.gates.logits.weight": [((0,), 3), ((1,), 4)],
        },
    ),
    # Below the last level a task's experts reach the other one through the shared gate; its own gate does not.
    "ple": (
        PLE(5, 2, _levels(((1, 2), 2), ((1, 1), 1))),
        {
            "levels.0.experts.0.weight": [(BOTH, 5)],
            "levels.0.gates.logits.weight": [((0,), 3), ((1,), 4), (BOTH, 5)],
            "levels.1.experts.0.weight": [((0,), 1), ((1,), 1), (BOTH, 1)],
            "levels.1.gates.logits.weight": [((0,), 2), ((1,), 2)],
        },
    ),
    # A gate with one expert to choose from weighs it with 1 whatever its weights are.
    "ple, a gate without a choice": (
        PLE(5, 2, _levels(((0, 1), 1))),
        {"levels.0.gates.logits.weight": [(NONE, 1), ((1,), 2)]},
    ),
    "mmoe": (
        MMoE(5, 2, _experts(3), shared_layers=[4]),
        {
            "trunk.0.weight": [(BOTH, 1)],
            "experts.0.0.weight": [(BOTH, 3)],
            "gates.logits.weight": [((0,), 3), ((1,), 3)],
        },
    ),
    "omoe": (MMoE(5, 2, _experts(3), has_one_gate=True), {"gates.logits.weight": [(BOTH, 3)]}),
    "ml-mmoe": (
        MMoE(5, 2, _experts(3, 2)),
        {"gates.logits.weight": [(BOTH, 6), ((0,), 2), ((1,), 2)], "experts.1.0.weight": [(BOTH, 2)]},
    ),
    "cross-stitch": (
        StitchedColumns(5, 2, [4, 4]),
        {
            "layers.1.weight": [(BOTH, 2)],
            "units.0.alpha": [(BOTH, 2)],
            "units.1.alpha": [((0,), 1), ((1,), 1)],
        },
    ),
    "sluice": (
        Sluice(5, 2, width=4, num_layers=2),
        {
            "beta": [((0,), 1), ((1,), 1)],
            "columns.units.0.alpha": [(BOTH, 4)],
            "columns.units.1.alpha": [((0,), 2), ((1,), 2)],
        },
    ),
}


def _runs(blocks: list[ParameterBlock], name: str) -> list[tuple[tuple[int, ...], int]]:
    return [(block.tasks, block.stop - block.start) for block in blocks if block.name == name]


@pytest.mark.parametrize("case", EXPECTED)
def test_the_tasks_of_each_range_of_rows(case: str) -> None:
    """Catches rows that are counted as shared and are not, and the other way round."""
    network, expected = EXPECTED[case]
    blocks = parameter_blocks(network, 5)
    assert {name: _runs(blocks, name) for name in expected} == expected


@pytest.mark.parametrize("case", EXPECTED)
def test_blocks_cover_every_row_once(case: str) -> None:
    """Catches parameters that are left out of a balancing, or balanced twice."""
    network, _ = EXPECTED[case]
    seen = {name: torch.zeros(len(parameter)) for name, parameter in network.named_parameters()}
    for block in parameter_blocks(network, 5):
        block.of(seen[block.name]).add_(1)
    assert all((rows == 1).all() for rows in seen.values())


@pytest.mark.parametrize("case", EXPECTED)
def test_no_gradient_beyond_what_is_reached(case: str) -> None:
    """Catches reach that the real network, with its signs and its ReLU, contradicts; and a network that is changed."""
    network, _ = EXPECTED[case]
    before = {name: value.clone() for name, value in network.state_dict().items()}
    reached = reached_tasks(network, 5)
    output = network(torch.randn(40, 5))
    for task in range(output.shape[1]):
        network.zero_grad()
        output[:, task].square().sum().backward(retain_graph=True)
        for name, parameter in network.named_parameters():
            gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            found = gradient.flatten(1).ne(0).any(1)
            assert not (found & ~reached[name][:, task]).any()
    network.zero_grad()
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


@pytest.mark.parametrize("case", [case for case in EXPECTED if case != "ple, a gate without a choice"])
def test_nothing_is_dead(case: str) -> None:
    """Catches parameters that no task ever trains, which a comparison of sizes would count."""
    assert all(block.tasks for block in parameter_blocks(EXPECTED[case][0], 5))


def test_wide_and_deep_networks_do_not_fade() -> None:
    """Catches gates that saturate, or gradients that underflow, in the probe: 400 inputs and 6 layers."""
    network = PLE(400, 3, _levels(*[((3, 3, 3), 3)] * 6))
    assert all(block.tasks for block in parameter_blocks(network, 400))
    assert _runs(parameter_blocks(network, 400), "levels.0.experts.0.weight") == [((0, 1, 2), 12)]
