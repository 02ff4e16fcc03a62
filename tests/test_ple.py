"""PLE against a plain, loop-written form of its equations, and against numbers worked out by hand."""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import pytest
import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.head_gemm import LoopPLE as BenchmarkLoop
from models.experts import GroupedLayer
from models.network import NetworkConfig, build_network
from models.ple import PLE, Level


def _level(per_task: Sequence[int], shared: int, *layers: int) -> Level:
    return Level(num_experts_per_task=tuple(per_task), num_shared_experts=shared, expert_layers=layers)


CASES = {
    "cgc": (5, [_level([2, 2, 2], 2, 4)]),
    "one task": (5, [_level([3], 0, 4), _level([1], 1, 3)]),
    "paper": (6, [_level([1, 1], 1, 5), _level([1, 1], 1, 4)]),
    "even": (6, [_level([2, 2, 2], 2, 5), _level([3, 3, 3], 3, 4)]),
    "uneven": (6, [_level([1, 3, 2], 2, 5), _level([2, 1, 4], 3, 4)]),
    "common divisor": (6, [_level([2, 4], 2, 5), _level([2, 4], 6, 4)]),
    "none of its own": (6, [_level([0, 2, 0], 1, 5), _level([0, 0, 3], 3, 4)]),
    "nothing shared": (6, [_level([1, 2], 0, 5), _level([2, 2], 0, 4)]),
    "three levels": (6, [_level([1, 2, 1, 1], 1, 7), _level([2, 2, 2, 2], 2, 5), _level([1, 1, 3, 1], 2, 3)]),
    "square": (5, [_level([1, 2], 1, 5), _level([2, 1], 2, 5)]),
    "deep experts": (6, [_level([1, 2], 1, 8, 3, 5), _level([2, 1], 2, 4, 6)]),
}


class LoopPLE(nn.Module):
    """Eq. 2-7 as they are printed, one nn.Linear per expert layer and per gate.

    `selects_by_input` is the mistake that a control makes: every gate reads x.
    """

    def __init__(self, in_features: int, levels: Sequence[Level], selects_by_input: bool = False) -> None:
        super().__init__()
        self.levels, self.selects_by_input = levels, selects_by_input
        self.experts, self.gates = nn.ModuleList(), nn.ModuleList()
        width = in_features
        for j, level in enumerate(levels):
            sizes = [width, *level.expert_layers]
            own = [_experts(sizes, number) for number in level.num_experts_per_task]
            self.experts.append(nn.ModuleList([*own, _experts(sizes, level.num_shared_experts)]))
            choices = [number + level.num_shared_experts for number in level.num_experts_per_task]
            if j < len(levels) - 1:
                choices.append(sum(level.num_experts_per_task) + level.num_shared_experts)
            self.gates.append(nn.ModuleList(nn.Linear(width, number, bias=False) for number in choices))
            width = sizes[-1]

    def forward(self, x: Tensor) -> Tensor:
        num_tasks = len(self.levels[0].num_experts_per_task)
        fused = [x] * (num_tasks + 1)
        for experts, gates in zip(self.experts, self.gates, strict=True):
            outputs = [[expert(fused[k]) for expert in group] for k, group in enumerate(experts)]
            shared = outputs[num_tasks]
            seen = [outputs[k] + shared for k in range(num_tasks)]
            seen.append([output for group in outputs for output in group])
            selectors = [x] * (num_tasks + 1) if self.selects_by_input else fused
            fused = [_mix(gate(selectors[k]), seen[k]) for k, gate in enumerate(gates)]
        return torch.stack(fused[:num_tasks], dim=1)


def _experts(sizes: Sequence[int], number: int) -> nn.ModuleList:
    def expert() -> nn.Sequential:
        return nn.Sequential(*[layer for pair in pairwise(sizes) for layer in (nn.Linear(*pair), nn.ReLU())])

    return nn.ModuleList(expert() for _ in range(number))


def _mix(logits: Tensor, outputs: list[Tensor]) -> Tensor:
    return torch.einsum("be,beh->bh", logits.softmax(1), torch.stack(outputs, dim=1))


def _parameters(loop: LoopPLE, read: Callable[[nn.Parameter], Tensor]) -> list[Tensor]:
    """Return the loop's parameters that `read` takes, in the order and shape of the PLE's."""
    found = []
    for groups, gates in zip(loop.experts, loop.gates, strict=True):
        experts = [expert for group in groups for expert in group]
        for layer in range(0, len(experts[0]), 2):
            found.append(torch.stack([read(expert[layer].weight) for expert in experts]))
            found.append(torch.stack([read(expert[layer].bias) for expert in experts]))
        found.append(torch.cat([read(gate.weight) for gate in gates]))
    return found


def _pair(case: str, dtype: torch.dtype, selects_by_input: bool = False) -> tuple[PLE, LoopPLE, int]:
    """A PLE and a loop with the same parameters, and their input's width."""
    torch.manual_seed(1)
    in_features, levels = CASES[case]
    ple = PLE(in_features, len(levels[0].num_experts_per_task), levels).to(dtype)
    loop = LoopPLE(in_features, levels, selects_by_input).to(dtype)
    for mine, theirs in zip(ple.parameters(), _parameters(loop, lambda p: p.data), strict=True):
        mine.data.copy_(theirs)
    return ple, loop, in_features


def _backward(network: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """The output, and the gradient at the input, of a loss that weighs every output differently."""
    x = x.clone().requires_grad_()
    output = network(x)
    (output * torch.arange(output.numel(), dtype=x.dtype).view_as(output).cos()).sum().backward()
    assert x.grad is not None
    return output.detach(), x.grad


def _grad(parameter: nn.Parameter) -> Tensor:
    # A loop leaves the shared gate without a gradient where no deeper expert reads what it makes.
    return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad


@pytest.mark.parametrize(("dtype", "atol"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
@pytest.mark.parametrize("case", CASES)
def test_equals_the_loop_in_values_and_all_gradients(case: str, dtype: torch.dtype, atol: float) -> None:
    """Catches an expert fed by, counted for, or mixed into the wrong task, in any shape of network."""
    ple, loop, in_features = _pair(case, dtype)
    x = torch.randn(9, in_features, dtype=dtype)
    output, input_grad = _backward(ple, x)
    expected, expected_grad = _backward(loop, x)
    assert output.shape == (9, expected.shape[1], ple.out_features)
    torch.testing.assert_close(output, expected, rtol=0, atol=atol)
    torch.testing.assert_close(input_grad, expected_grad, rtol=0, atol=atol)
    for mine, theirs in zip(ple.parameters(), _parameters(loop, _grad), strict=True):
        torch.testing.assert_close(mine.grad, theirs, rtol=0, atol=atol)


def test_deeper_gates_select_by_the_fusion_below_and_not_by_the_input() -> None:
    """Catches gates that read x at every level (ML-MMoE's, not Eq. 6): such a loop must give another answer."""
    for selects_by_input, equal in ((False, True), (True, False)):
        ple, loop, in_features = _pair("square", torch.float64, selects_by_input)
        x = torch.randn(9, in_features, dtype=torch.float64)
        assert torch.allclose(ple(x), loop(x), rtol=0, atol=1e-12) is equal


def test_three_tasks_and_two_experts_by_hand() -> None:
    """Catches any deviation from the equations that the loop shares; 1 expert of task 0, 1 shared, 2 levels."""
    ple = PLE(2, 3, [_level([1, 0, 0], 1, 2), _level([1, 0, 0], 1, 1)])
    values = [
        [[[1, 0], [0, 1]], [[1, 1], [-1, 0]]],  # level 1: W of the expert of task 0, W of the shared one
        [[0, -1], [0, 0]],  # their biases
        [[1, -1], [0, 0], [5, 5], [5, 5], [1, -1], [0, 0]],  # gates: task 0 (own, shared), 1, 2, shared (both)
        [[[2, 4]], [[1, 2]]],  # level 2
        [[0], [1]],
        [[0, 0], [0, 0], [7, 7], [7, 7]],  # gates: task 0, 1, 2; no shared one
    ]
    for parameter, value in zip(ple.parameters(), values, strict=True):
        parameter.data = torch.tensor(value, dtype=torch.float32).view_as(parameter)
    # x = (2, 2): experts (2, 1) and (4, 0). All logits 0, so g_0 = g_s = (3, .5), and g_1 = g_2 = (4, 0).
    # Level 2: the expert of task 0 reads g_0: 2*3 + 4*.5 = 8; the shared one g_s: 3 + 2*.5 + 1 = 5.
    # Task 0 halves: 6.5; tasks 1 and 2 see the shared expert alone: 5.
    # x = (1, 2): experts (1, 1) and (3, 0). Logits -1 and 0, so p = e^-1 / (1 + e^-1) goes to the first expert and
    # g_0 = g_s = (3 - 2p, p): 2(3 - 2p) + 4p = 6 and (3 - 2p) + 2p + 1 = 4, whatever p. Task 0: 5, the others 4.
    expected = torch.tensor([[[6.5], [5], [5]], [[5], [4], [4]]])
    torch.testing.assert_close(ple(torch.tensor([[2.0, 2], [1, 2]])), expected)
    p = math.exp(-1) / (1 + math.exp(-1))
    first = ple.gate_weights(torch.tensor([[1.0, 2]]))[0]
    torch.testing.assert_close(first[0], torch.tensor([[p, 1 - p], [0, 1], [0, 1], [p, 1 - p]]))


@pytest.mark.parametrize("case", ["cgc", "uneven"])
def test_gates_and_experts_read_the_shared_layers(case: str) -> None:
    """Catches gates that still read x, experts that do, and gate weights reported of another selector."""
    _, levels = CASES[case]
    torch.manual_seed(3)
    network = PLE(8, len(levels[0].num_experts_per_task), levels, shared_layers=[7, CASES[case][0]]).double()
    plain, loop, width = _pair(case, torch.float64)
    trunk = nn.Sequential(nn.Linear(8, 7), nn.ReLU(), nn.Linear(7, width), nn.ReLU()).double()
    for mine, theirs in zip(network.parameters(), [*trunk.parameters(), *plain.parameters()], strict=True):
        mine.data.copy_(theirs.data.view_as(mine))
    x = torch.randn(9, 8, dtype=torch.float64)
    (output, grad), (expected, expected_grad) = _backward(network, x), _backward(nn.Sequential(trunk, loop), x)
    torch.testing.assert_close(output, expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(grad, expected_grad, rtol=0, atol=1e-12)
    theirs = [*(parameter.grad for parameter in trunk.parameters()), *_parameters(loop, _grad)]
    for mine, other in zip(network.parameters(), theirs, strict=True):
        torch.testing.assert_close(mine.grad, other.view_as(mine), rtol=0, atol=1e-12)
    for mine, other in zip(network.gate_weights(x), plain.gate_weights(trunk(x)), strict=True):
        torch.testing.assert_close(mine, other, rtol=0, atol=1e-12)


def test_cgc_is_ple_of_one_level() -> None:
    """Catches a second implementation of CGC that drifts from the first."""
    level = {"expert_layers": [4], "num_experts_per_task": 2, "num_shared_experts": 1}
    adapter = TypeAdapter(NetworkConfig)
    networks = []
    for config in ({"kind": "cgc"} | level, {"kind": "ple", "levels": [level]}):
        torch.manual_seed(3)
        networks.append(build_network(adapter.validate_python(config), 5, ["ctr", "vtr"]))
    x = torch.randn(6, 5)
    assert torch.equal(networks[0](x), networks[1](x))


def test_shared_gates_see_all_experts_and_the_last_level_has_none() -> None:
    """Catches a shared gate that is blind to the tasks' experts, and dead parameters in the last level."""
    ple = PLE(6, 2, [_level([2, 1], 3, 5), _level([1, 1], 1, 4)])
    lower, last = ple.gate_weights(torch.randn(7, 6))
    seen = torch.tensor([[1, 1, 0, 1, 1, 1], [0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1]]).bool()
    assert torch.equal(lower > 0, seen.expand(7, 3, 6))
    assert torch.equal(last > 0, torch.tensor([[1, 0, 1], [0, 1, 1]]).bool().expand(7, 2, 3))
    torch.testing.assert_close(lower.sum(2), torch.ones(7, 3))
    num_gate_rows = [level.gates.logits.weight.shape[0] for level in ple.levels]
    assert num_gate_rows == [(2 + 3) + (1 + 3) + 6, 2 + 2]


def test_the_benchmark_times_the_same_network() -> None:
    """Catches a benchmark whose loop-written form computes something else, or less."""
    in_features, levels = CASES["uneven"]
    ple, loop = PLE(in_features, 3, levels).double(), BenchmarkLoop(in_features, levels).double()
    for layers, parts in (
        (loop.experts, ("experts.0.weight", "experts.0.bias")),
        (loop.gates, ("gates.logits.weight",)),
    ):
        for part in parts:
            rows = torch.cat([ple.get_parameter(f"levels.{level}.{part}").flatten() for level in (0, 1)])
            own = [layer.get_parameter(part.rsplit(".", 1)[1]) for layer in layers]
            for parameter, row in zip(own, rows.split([parameter.numel() for parameter in own]), strict=True):
                parameter.data = row.detach().view_as(parameter)
    x = torch.randn(9, in_features, dtype=torch.float64)
    torch.testing.assert_close(loop(x), ple(x), rtol=0, atol=1e-12)


@pytest.mark.parametrize(("num_levels", "reaches"), [(1, False), (2, True)])
def test_a_task_reaches_another_ones_experts_through_the_shared_gate_only(num_levels: int, reaches: bool) -> None:
    """Catches leaks between tasks: gradients of task 0 must be exactly 0 at task 1's expert of the last level."""
    ple = PLE(6, 2, [_level([1, 1], 1, 5)] * num_levels)
    ple(torch.randn(20, 6))[:, 0].sum().backward()
    grads = [level.experts[0].weight.grad[1].abs().sum().item() for level in ple.levels]
    assert grads[-1] == 0
    assert (grads[0] > 0) is reaches


def test_every_expert_starts_as_its_own_linear() -> None:
    """Catches initialisation by the fused fan: the same seed must give what a list of nn.Linear is given."""
    for counts in ([4], [1, 3], [2, 2]):
        torch.manual_seed(5)
        layer = GroupedLayer(6, 3, counts)
        torch.manual_seed(5)
        linears = [nn.Linear(6, 3) for _ in range(4)]
        assert torch.equal(layer.weight, torch.stack([linear.weight for linear in linears]))
        assert torch.equal(layer.bias, torch.stack([linear.bias for linear in linears]))
    for level in PLE(64, 2, [_level([3, 1], 2, 16), _level([3, 1], 2, 16)]).levels:
        weight = level.gates.logits.weight
        assert 0.9 < weight.abs().max() * math.sqrt(weight.shape[1]) <= 1


class _CountProducts(TorchDispatchMode):
    """Counts the matrix kernels that are dispatched."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func._schema.name.split("::")[1] in {"mm", "addmm", "bmm", "baddbmm"}
        return func(*args, **(kwargs or {}))


def _count_products(network: nn.Module, in_features: int) -> int:
    x = torch.randn(8, in_features, requires_grad=True)
    with _CountProducts() as products:
        network(x).sum().backward()
    return products.count


def test_the_number_of_matrix_kernels_does_not_grow_with_tasks_or_experts() -> None:
    """Catches a loop over experts, tasks or gates; the loop-written form shows that the count would see one."""
    small = [_level([1, 1], 1, 5), _level([1, 1], 1, 4)]
    uneven = [_level([1, 4, 2, 3, 1, 2, 5], 6, 5), _level([3, 1, 2, 1, 4, 1, 1], 2, 4)]
    counts = [_count_products(PLE(6, len(levels[0].num_experts_per_task), levels), 6) for levels in (small, uneven)]
    # Two levels, three products each (gates, experts, mixing), forward once and backward twice.
    assert counts == [18, 18]
    loops = [_count_products(LoopPLE(6, levels), 6) for levels in (small, uneven)]
    assert loops[1] > 2 * loops[0] > 36


def test_symbolic_trace() -> None:
    """Catches what TorchRec's pipelines cannot trace: branches on data or on the size of a batch."""
    ple, _, in_features = _pair("uneven", torch.float32)
    traced = torch.fx.symbolic_trace(ple)
    for num_rows in (3, 1500):
        x = torch.randn(num_rows, in_features)
        torch.testing.assert_close(traced(x), ple(x))


def test_a_batch_in_slabs_equals_the_loop() -> None:
    """Catches rows lost, doubled or out of order where a large batch is cut on a CPU; 2,051 rows do not divide."""
    ple, loop, in_features = _pair("uneven", torch.float64)
    x = torch.randn(2051, in_features, dtype=torch.float64)
    output, input_grad = _backward(ple, x)
    expected, expected_grad = _backward(loop, x)
    torch.testing.assert_close(output, expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(input_grad, expected_grad, rtol=0, atol=1e-12)
    for mine, theirs in zip(ple.parameters(), _parameters(loop, _grad), strict=True):
        torch.testing.assert_close(mine.grad, theirs, rtol=0, atol=1e-10)


def test_bfloat16_autocast() -> None:
    """Catches operations whose dtypes clash under autocast, which the workers' `precision` switches on."""
    ple, _, in_features = _pair("uneven", torch.float32)
    x = torch.randn(9, in_features)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output, _ = _backward(ple, x)
    torch.testing.assert_close(output.float(), ple(x).detach(), rtol=0.05, atol=0.02)


def test_only_parameters_are_in_the_state() -> None:
    """Catches index tables in a checkpoint, which would tie it to the fused layout's bookkeeping."""
    assert set(_pair("uneven", torch.float32)[0].state_dict()) == {
        f"levels.{level}.{name}"
        for level in (0, 1)
        for name in ("experts.0.weight", "experts.0.bias", "gates.logits.weight")
    }


def _config(**level: object) -> dict[str, object]:
    whole = {"expert_layers": [4], "num_experts_per_task": 1, "num_shared_experts": 1} | level
    return {"kind": "ple", "levels": [whole]}


def test_experts_per_task_by_name() -> None:
    """Catches numbers that are given by name and taken in the order of the file instead of the tasks'."""
    config = TypeAdapter(NetworkConfig).validate_python(_config(num_experts_per_task={"vtr": 3, "ctr": 1}))
    weights = build_network(config, 5, ["ctr", "vtr"]).gate_weights(torch.randn(2, 5))[0]
    assert torch.equal(weights[0] > 0, torch.tensor([[1, 0, 0, 0, 1], [0, 1, 1, 1, 1]]).bool())


@pytest.mark.parametrize(
    ("level", "message"),
    [
        ({"num_experts_per_task": {"ctr": 1, "vtx": 1}}, "there is no task 'vtx': did you mean 'vtr'?"),
        ({"num_experts_per_task": {"ctr": 1}}, "task 'vtr' is missing"),
        ({"num_experts_per_task": {"ctr": 1, "vtr": 0}, "num_shared_experts": 0}, "task 'vtr' has none of its own"),
    ],
)
def test_numbers_of_experts_that_do_not_fit_the_tasks(level: dict[str, object], message: str) -> None:
    """Catches a misspelt task that would silently get no experts, in one clear line."""
    config = TypeAdapter(NetworkConfig).validate_python(_config(**level))
    with pytest.raises(ValueError, match=message) as caught:
        build_network(config, 5, ["ctr", "vtr"])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("wrong", [{"expert_layers": []}, {"num_shared_experts": -1}, {"num_sharde_experts": 1}])
def test_a_wrong_config_is_refused(wrong: dict[str, object]) -> None:
    """Catches a level without layers, a negative number, and a misspelt key that would be ignored."""
    with pytest.raises(ValidationError):
        TypeAdapter(NetworkConfig).validate_python(_config(**wrong))


@pytest.mark.parametrize(
    ("levels", "message"),
    [
        ([], "at least one level"),
        ([_level([1, 1, 1], 1, 4)], "level 1 numbers the experts of 3 tasks, the network has 2"),
    ],
)
def test_a_wrong_network_is_refused(levels: list[Level], message: str) -> None:
    """Catches levels that are made for another number of tasks."""
    with pytest.raises(ValueError, match=message):
        PLE(5, 2, levels)
    with pytest.raises(ValueError, match="task 1 has no expert of its own and none is shared"):
        _level([1, 0], 0, 4)
