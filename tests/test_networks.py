"""Every network against a loop-written form of its equations, and what all networks have in common."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from models.mmoe import MMoE, SharedExperts
from models.network_base import FusionNetwork, num_parameters
from models.sharing import SharedBottoms
from models.stitch import Sluice, StitchedColumns

IN_FEATURES = 5
Reference = Callable[[Any, Tensor], Tensor]


def _mlp(layers: nn.Module, index: int, inputs: Tensor) -> Tensor:
    """One of the MLPs that grouped layers hold."""
    for layer in layers.children():
        inputs = F.linear(inputs, layer.get_parameter("weight")[index], layer.get_parameter("bias")[index]).relu()
    return inputs


def _bottoms(reads: Sequence[Sequence[int]], fuse: str) -> Reference:
    """Each task's bottoms one by one; a concatenation is filled up with zeros to the widest."""

    def fused(parts: list[Tensor]) -> Tensor:
        if fuse != "concat":
            return sum(parts, start=torch.zeros_like(parts[0])) / (len(parts) if fuse == "mean" else 1)
        missing = max(len(read) for read in reads) - len(parts)
        return torch.cat([*parts, *[torch.zeros_like(parts[0])] * missing], dim=1)

    return lambda net, x: torch.stack([fused([_mlp(net.bottoms, i, x) for i in read]) for read in reads], dim=1)


def _mixture(num_tasks: int, gates_read_the_mixture: bool = False, skips_trunk: bool = False) -> Reference:
    """Gate by gate and expert by expert; the options are mistakes that controls make."""

    def mix(logits: Tensor, outputs: list[Tensor]) -> Tensor:
        shares = [F.softmax(logits, dim=1)[:, i : i + 1] for i in range(len(outputs))]
        return sum((share * output for share, output in zip(shares, outputs, strict=True)), torch.zeros(()))

    def forward(net: MMoE, x: Tensor) -> Tensor:
        hidden = x if isinstance(net.trunk, nn.Identity) else _mlp(net.trunk, 0, x)
        selector = x if skips_trunk else hidden
        inputs = [hidden] * net.num_experts[0]
        rows = net.gates.logits.weight
        for experts, count, num_gates in zip(net.experts, net.num_experts, net.num_gates, strict=True):
            outputs = [_mlp(experts, i, inputs[i]) for i in range(count)]
            own, rows = rows[: count * num_gates].split(count), rows[count * num_gates :]
            is_above = experts is not net.experts[0]
            reads = inputs if gates_read_the_mixture and is_above else [selector] * max(num_gates, len(inputs))
            inputs = [mix(reads[g] @ own[g].t(), outputs) for g in range(num_gates)]
        assert not len(rows)
        return torch.stack((inputs * num_tasks)[:num_tasks], dim=1)

    return forward


def _columns(net: StitchedColumns, x: Tensor, num_subspaces: int, transposed: bool = False) -> list[list[Tensor]]:
    """Every layer's mixed columns, one alpha at a time; transposed is the mistake that a control makes."""
    num_tasks = net.layers[0].num_layers
    columns, found = [x] * num_tasks, []
    for layer, unit in zip(net.layers, net.units, strict=True):
        outputs = [_mlp(nn.Sequential(layer), t, columns[t]) for t in range(num_tasks)]
        parts = [part for output in outputs for part in output.chunk(num_subspaces, dim=1)]
        alpha = unit.alpha.t() if transposed else unit.alpha
        mixed = [sum((alpha[i, j] * part for j, part in enumerate(parts)), torch.zeros(())) for i in range(len(parts))]
        columns = [torch.cat(mixed[t * num_subspaces : (t + 1) * num_subspaces], dim=1) for t in range(num_tasks)]
        found.append(columns)
    return found


def _cross_stitch(transposed: bool = False) -> Reference:
    return lambda net, x: torch.stack(_columns(net, x, 1, transposed)[-1], dim=1)


def _sluice(num_subspaces: int, last_only: bool = False) -> Reference:
    def forward(net: Sluice, x: Tensor) -> Tensor:
        layers = _columns(net.columns, x, num_subspaces)
        if last_only:
            return torch.stack(layers[-1], dim=1)
        tasks = range(len(layers[0]))
        return torch.stack([sum(net.beta[t, k] * layer[t] for k, layer in enumerate(layers)) for t in tasks], dim=1)

    return forward


def _level(num_experts: int, *layers: int) -> SharedExperts:
    return SharedExperts(num_experts=num_experts, expert_layers=layers)


UNEVEN = [[0], [1, 0], [2], [0, 3, 1]]
CASES: dict[str, tuple[Callable[[], FusionNetwork], Reference]] = {
    "hard sharing": (lambda: SharedBottoms(5, [4, 3], [[0]] * 3), _bottoms([[0]] * 3, "concat")),
    "one task": (lambda: SharedBottoms(5, [4, 3], [[0]]), _bottoms([[0]], "concat")),
    "asymmetric, concat": (lambda: SharedBottoms(5, [4, 3], UNEVEN), _bottoms(UNEVEN, "concat")),
    "asymmetric, sum": (lambda: SharedBottoms(5, [4], UNEVEN, "sum"), _bottoms(UNEVEN, "sum")),
    "asymmetric, mean": (lambda: SharedBottoms(5, [4], UNEVEN, "mean"), _bottoms(UNEVEN, "mean")),
    "customized sharing": (lambda: SharedBottoms(5, [4, 3], [[0, 1], [0, 2]]), _bottoms([[0, 1], [0, 2]], "concat")),
    "cross-stitch": (lambda: StitchedColumns(5, 3, [4, 3]), _cross_stitch()),
    "cross-stitch, one task": (lambda: StitchedColumns(5, 1, [4]), _cross_stitch()),
    "sluice": (lambda: Sluice(5, 2, width=4, num_layers=3), _sluice(2)),
    "sluice, one subspace": (lambda: Sluice(5, 4, width=3, num_layers=2, num_subspaces=1), _sluice(1)),
    "sluice, three subspaces": (lambda: Sluice(5, 3, width=6, num_layers=2, num_subspaces=3), _sluice(3)),
    "mmoe": (lambda: MMoE(5, 3, [_level(4, 4, 3)]), _mixture(3)),
    "mmoe, one task, one expert": (lambda: MMoE(5, 1, [_level(1, 4)]), _mixture(1)),
    "mmoe on shared layers": (lambda: MMoE(5, 2, [_level(3, 4)], shared_layers=[6, 5]), _mixture(2)),
    "omoe": (lambda: MMoE(5, 3, [_level(4, 3)], has_one_gate=True), _mixture(3)),
    "ml-mmoe": (lambda: MMoE(5, 2, [_level(3, 5), _level(4, 5)]), _mixture(2)),
    "ml-mmoe, three levels": (
        lambda: MMoE(5, 4, [_level(2, 4), _level(3, 6, 5), _level(2, 3)], shared_layers=[4]),
        _mixture(4),
    ),
}
# The same networks, and the mistake that each could make: none may pass for the right one.
MISTAKES: dict[str, tuple[str, Reference]] = {
    "a bottom of another task": ("asymmetric, concat", _bottoms([[0], [1, 2], [2], [0, 3, 1]], "concat")),
    "bottoms in another order": ("customized sharing", _bottoms([[1, 0], [2, 0]], "concat")),
    "a mean that is a sum": ("asymmetric, mean", _bottoms(UNEVEN, "sum")),
    "alpha transposed": ("cross-stitch", _cross_stitch(transposed=True)),
    "beta left out": ("sluice", _sluice(2, last_only=True)),
    "other subspaces": ("sluice, three subspaces", _sluice(1)),
    "gates that read the mixture": ("ml-mmoe", _mixture(2, gates_read_the_mixture=True)),
    "gates that read the input": ("mmoe on shared layers", _mixture(2, skips_trunk=True)),
}


def _network(case: str) -> FusionNetwork:
    """The network of a case in float64, its mixing weights drawn too: at their start they are symmetric."""
    torch.manual_seed(1)
    network = CASES[case][0]().double()
    for name, parameter in network.named_parameters():
        if name.split(".")[-1] in ("alpha", "beta"):
            nn.init.uniform_(parameter, 0.1, 1)
    return network


def _loss(output: Tensor) -> Tensor:
    """Weighs every output differently."""
    return (output * torch.arange(output.numel(), dtype=output.dtype).view_as(output).cos()).sum()


def _grads(forward: Callable[[Tensor], Tensor], network: nn.Module, x: Tensor) -> list[Tensor]:
    """The output, and the gradients at the input and at every parameter."""
    x = x.clone().requires_grad_()
    output = forward(x)
    grads = torch.autograd.grad(_loss(output), [x, *network.parameters()], materialize_grads=True)
    return [output.detach(), *grads]


SLABBED = ["hard sharing", "asymmetric, concat", "cross-stitch", "sluice", "omoe"]


@pytest.mark.parametrize(("case", "num_rows"), [*[(case, 7) for case in CASES], *[(case, 1031) for case in SLABBED]])
def test_equals_the_loop_in_values_and_all_gradients(case: str, num_rows: int) -> None:
    """Catches what is read, mixed or counted wrongly; 1,031 rows are two slabs of unequal size."""
    network, reference = _network(case), CASES[case][1]
    x = torch.randn(num_rows, IN_FEATURES, dtype=torch.float64)
    mine = _grads(network, network, x)
    assert mine[0].shape[2] == network.out_features
    for got, expected in zip(mine, _grads(lambda x: reference(network, x), network, x), strict=True):
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("mistake", MISTAKES)
def test_control_a_mistake_is_seen(mistake: str) -> None:
    """Shows that the test above can fail: the same parameters, wired as in a likely mistake, give another answer."""
    case, reference = MISTAKES[mistake]
    network = _network(case)
    x = torch.randn(7, IN_FEATURES, dtype=torch.float64)
    output, wrong = network(x), reference(network, x)
    assert output.shape == wrong.shape
    assert not torch.allclose(output, wrong, rtol=0, atol=1e-3)


@pytest.mark.parametrize("case", CASES)
def test_a_row_is_treated_by_itself(case: str) -> None:
    """Catches statistics over the batch: padding, and rows outside a task's space, must not leak into others."""
    network = _network(case)
    x = torch.randn(6, IN_FEATURES, dtype=torch.float64)
    padded = torch.cat([x, torch.zeros(3, IN_FEATURES, dtype=torch.float64)])
    alone = _grads(network, network, x)
    weights = (torch.arange(9) < 6).double().view(-1, 1, 1)
    beside = _grads(lambda rows: network(rows) * weights, network, padded)
    for index, (one, other) in enumerate(zip(alone, beside, strict=True)):
        torch.testing.assert_close(one, other[:6] if index < 2 else other, rtol=0, atol=1e-12)
    assert beside[1][6:].abs().sum() == 0


def test_control_statistics_over_the_batch_are_seen() -> None:
    """Shows that the test above can fail: a batch norm behind the network lets padding into every row."""
    network = nn.Sequential(_network("hard sharing"), nn.BatchNorm1d(3, dtype=torch.float64))
    x = torch.randn(6, IN_FEATURES, dtype=torch.float64)
    padded = torch.cat([x, torch.zeros(3, IN_FEATURES, dtype=torch.float64)])
    assert not torch.allclose(network(x), network(padded)[:6], atol=1e-3)


@pytest.mark.parametrize("case", CASES)
def test_symbolic_trace_and_bfloat16(case: str) -> None:
    """Catches what TorchRec's pipelines cannot trace, and operations whose types clash under autocast."""
    network = _network(case).float()
    traced = torch.fx.symbolic_trace(network)
    for num_rows in (3, 1031):
        x = torch.randn(num_rows, IN_FEATURES)
        torch.testing.assert_close(traced(x), network(x))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output, *_ = _grads(network, network, x)
    torch.testing.assert_close(output.float(), network(x).detach(), rtol=0.05, atol=0.05)


class _CountProducts(TorchDispatchMode):
    """Counts the matrix kernels that are dispatched."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func._schema.name.split("::")[1] in {"mm", "addmm", "bmm", "baddbmm"}
        return func(*args, **(kwargs or {}))


def _count_products(forward: Callable[[Tensor], Tensor]) -> int:
    x = torch.randn(8, IN_FEATURES, requires_grad=True)
    with _CountProducts() as products:
        forward(x).sum().backward()
    return products.count


# By number of tasks and of experts; products per pass, each of which is one forward and two backward.
SIZES: dict[str, tuple[Callable[[int, int], FusionNetwork], int]] = {
    "hard sharing": (lambda tasks, _: SharedBottoms(5, [4, 3], [[0]] * tasks), 2),
    "customized": (lambda tasks, _: SharedBottoms(5, [4, 3], [[0, 1 + task] for task in range(tasks)]), 2),
    "cross-stitch": (lambda tasks, _: StitchedColumns(5, tasks, [4, 3]), 4),
    "sluice": (lambda tasks, _: Sluice(5, tasks, width=4, num_layers=2), 4),
    "mmoe": (lambda tasks, experts: MMoE(5, tasks, [_level(experts, 4)]), 3),
    "ml-mmoe": (lambda tasks, experts: MMoE(5, tasks, [_level(experts, 4), _level(experts, 4)]), 5),
}


@pytest.mark.parametrize("kind", SIZES)
def test_the_number_of_matrix_kernels_does_not_grow_with_tasks_or_experts(kind: str) -> None:
    """Catches a loop over tasks, experts or gates."""
    build, products = SIZES[kind]
    assert [_count_products(build(2, 2)), _count_products(build(7, 5))] == [3 * products] * 2


def test_control_a_loop_over_tasks_is_seen() -> None:
    """Shows that the count above would see one."""
    network = StitchedColumns(5, 3, [4, 3])
    assert _count_products(lambda x: _cross_stitch()(network, x)) > 12


@pytest.mark.parametrize("case", CASES)
def test_only_parameters_are_in_the_state(case: str) -> None:
    """Catches index tables in a checkpoint, which would tie it to the fused layout's bookkeeping."""
    network = _network(case)
    assert set(network.state_dict()) == {name for name, _ in network.named_parameters()}


def test_the_number_of_parameters_by_hand() -> None:
    """Catches a comparison whose parameters are counted wrongly, or whose zeros are: 5 inputs, 4 wide, 3 tasks."""
    counts = {
        "hard": (SharedBottoms(5, [4], [[0]] * 3), 4 * 5 + 4),
        "customized": (SharedBottoms(5, [4], [[0, 1], [0, 2], [0, 3]]), 4 * (4 * 5 + 4)),
        "cross-stitch": (StitchedColumns(5, 3, [4, 4]), 3 * (4 * 5 + 4) + 9 + 3 * (4 * 4 + 4) + 9),
        "sluice": (Sluice(5, 3, width=4, num_layers=2), 3 * (4 * 5 + 4) + 36 + 3 * (4 * 4 + 4) + 36 + 6),
        "mmoe": (MMoE(5, 3, [_level(2, 4)]), 2 * (4 * 5 + 4) + 3 * 2 * 5),
        "omoe": (MMoE(5, 3, [_level(2, 4)], has_one_gate=True), 2 * (4 * 5 + 4) + 2 * 5),
        "ml-mmoe": (MMoE(5, 3, [_level(2, 4), _level(2, 4)]), 2 * 24 + 2 * 20 + (2 * 2 + 3 * 2) * 5),
    }
    for name, (network, expected) in counts.items():
        assert num_parameters(network) == expected, name
