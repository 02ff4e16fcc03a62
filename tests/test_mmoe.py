"""Mixtures of experts: numbers worked out by hand, what reports see of the gates, and dropped gates."""

import pytest
import torch
from torch import Tensor, nn

from models.experts import Gates
from models.mmoe import MMoE, SharedExperts
from models.ple import PLE, Level


def _level(num_experts: int, *layers: int) -> SharedExperts:
    return SharedExperts(num_experts=num_experts, expert_layers=layers)


def _set(network: nn.Module, values: list[object]) -> None:
    for parameter, value in zip(network.parameters(), values, strict=True):
        parameter.data = torch.tensor(value, dtype=torch.float32).view_as(parameter)


LN3 = float(torch.tensor(3.0).log())


def test_three_tasks_and_two_experts_by_hand() -> None:
    """Catches any deviation from the equations that a loop would share."""
    network = MMoE(2, 3, [_level(2, 2)])
    # Experts relu(x0, x1) and relu(x0 + x1 - 1, -x0); gates' logits for x0 = 1: (0, 0), (ln 3, 0), (0, ln 3).
    experts = [[[1, 0], [0, 1]], [[1, 1], [-1, 0]]]
    _set(network, [experts, [[0, 0], [-1, 0]], [[0, 0], [0, 0], [LN3, 0], [0, 0], [0, 0], [LN3, 0]]])
    # x = (1, 4): experts (1, 4) and (4, 0); shares 1/2 1/2, 3/4 1/4, 1/4 3/4.
    expected = torch.tensor([[[2.5, 2.0], [1.75, 3.0], [3.25, 1.0]]])
    torch.testing.assert_close(network(torch.tensor([[1.0, 4]])), expected)
    shares = torch.tensor([[[0.5, 0.5], [0.75, 0.25], [0.25, 0.75]]])
    torch.testing.assert_close(network.gate_weights(torch.tensor([[1.0, 4]])), [shares])


def test_two_levels_by_hand() -> None:
    """Catches gates of the second level that read the first one's mixture."""
    network = MMoE(1, 2, [_level(2, 1), _level(2, 1)])
    gates = [[LN3], [0], [0], [0], [0], [LN3], [0], [0]]
    _set(network, [[[[4]], [[8]]], [[0], [0]], [[[1]], [[2]]], [[0], [1]], gates])
    # x = 1: experts 4 and 8; z_0 = 3/4 4 + 1/4 8 = 5, z_1 = 6; above them 5 and 13; tasks 1/4 5 + 3/4 13 = 11, and 9.
    # x = 2: experts 8 and 16; ln 3 twice is 9 to 1: z_0 = 8.8, z_1 = 12; 8.8 and 25; .88 + 22.5 = 23.38, and 16.9.
    expected = torch.tensor([[[11.0], [9]], [[23.38], [16.9]]])
    torch.testing.assert_close(network(torch.tensor([[1.0], [2]])), expected)
    lower, upper = network.gate_weights(torch.tensor([[1.0]]))
    torch.testing.assert_close(lower, torch.tensor([[[0.75, 0.25], [0.5, 0.5]]]))
    torch.testing.assert_close(upper, torch.tensor([[[0.25, 0.75], [0.5, 0.5]]]))


def test_one_gate_gives_all_tasks_the_same() -> None:
    """Catches OMoE with a gate per task, and MMoE with one."""
    for has_one_gate in (True, False):
        network = MMoE(5, 3, [_level(4, 3)], has_one_gate=has_one_gate)
        output = network(torch.randn(6, 5))
        assert torch.equal(output[:, 0], output[:, 1]) is has_one_gate
        assert network.gate_weights(torch.randn(6, 5))[0].shape == (6, 1 if has_one_gate else 3, 4)


def test_ml_mmoe_of_one_level_is_mmoe() -> None:
    """Catches gates numbered otherwise where there are more levels: the first level's gates are not the tasks'."""
    weights = MMoE(5, 3, [_level(2, 3), _level(4, 3)]).gate_weights(torch.randn(6, 5))
    assert [of_level.shape for of_level in weights] == [(6, 4, 2), (6, 3, 4)]
    for of_level in weights:
        torch.testing.assert_close(of_level.sum(2), torch.ones(of_level.shape[:2]))


def _dropped(gates: Gates, selectors: Tensor) -> tuple[Tensor, Tensor]:
    """The weights without and with dropout."""
    torch.manual_seed(5)
    return gates.eval()(selectors), gates.train()(selectors)


@pytest.mark.parametrize("choices", [[range(4), range(4)], [[0, 1, 2], [1, 3]]])
def test_dropped_gates_are_renormalised(choices: list[list[int]]) -> None:
    """Catches weights that no longer sum to 1, other proportions among those that stay, and another rate than 10 %."""
    gates = Gates(5, 1, choices, 4, dropout=0.1)
    whole, dropped = _dropped(gates, torch.randn(5000, 1, 5))
    torch.testing.assert_close(dropped.sum(2), torch.ones(5000, 2))
    kept = dropped > 0
    torch.testing.assert_close(dropped, torch.where(kept, whole, 0) / (whole * kept).sum(2, keepdim=True))
    may_choose = whole > 0
    assert torch.equal(kept & ~may_choose, torch.zeros_like(kept))
    lost = 1 - kept.sum((0, 2)) / may_choose.sum((0, 2))
    assert ((lost > 0.08) & (lost < 0.12)).all()
    # By itself: both gates lose an expert that both may choose no more often than chance would have it.
    assert 0.005 < (~kept[:, :, 1]).all(1).float().mean() < 0.02


def test_a_gate_that_would_lose_every_expert_keeps_them() -> None:
    """Catches 0 / 0: with two experts and 90 % dropout most rows lose both."""
    gates = Gates(5, 1, [[0, 1], [2]], 3, dropout=0.9)
    selectors = torch.randn(200, 1, 5, requires_grad=True)
    whole, dropped = _dropped(gates, selectors)
    dropped.square().sum().backward()
    assert selectors.grad is not None
    assert torch.isfinite(dropped).all()
    assert torch.isfinite(selectors.grad).all()
    same = (dropped == whole).all(2)
    assert same[:, 1].all()
    assert 0.7 < same[:, 0].float().mean() < 0.95  # .81


def test_a_polarised_gate_survives_the_loss_of_its_favourite() -> None:
    """Catches weights renormalised after the softmax: those of the others have underflowed, and 0 / 0 is NaN."""
    gates = Gates(1, 1, [range(3)], 3, dropout=0.4)
    gates.logits.weight.data = torch.tensor([[1000.0], [0.0], [0.0]])
    whole, dropped = _dropped(gates, torch.ones(100, 1, 1))
    assert (whole[:, 0] == torch.tensor([1.0, 0, 0])).all()
    assert torch.isfinite(dropped).all()
    assert (dropped[:, 0, 0] == 0).any()


@pytest.mark.parametrize(
    "build",
    [
        lambda p: MMoE(5, 2, [_level(4, 3), _level(4, 3)], gate_dropout=p),
        lambda p: PLE(
            5,
            2,
            [Level(num_experts_per_task=(2, 2), num_shared_experts=2, expert_layers=(3,))] * 2,
            gate_dropout=p,
        ),
    ],
)
def test_gates_are_dropped_in_training_only(build) -> None:
    """Catches dropout that is left on when the model is measured, and that is never on."""
    network, x = build(0.5), torch.randn(20, 5)
    assert not torch.equal(network(x), network(x))
    network.eval()
    assert torch.equal(network(x), network(x))
    never = build(0.0)
    assert torch.equal(never(x), never(x))
