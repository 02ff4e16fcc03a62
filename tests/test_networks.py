"""Every network against a loop-written form of its equations, and what all networks have in common."""

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, get_args

import pytest
import torch
import torch.nn.functional as F
import yaml
from pydantic import Field, TypeAdapter, ValidationError
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from features.errors import ConfigError
from models.fusion import FusionNetwork, num_parameters
from models.mmoe import MMoE, SharedExperts
from models.network import NetworkConfig, build_network
from models.ple import PLE, Level
from models.reach import parameter_blocks
from models.sharing import SharedBottoms
from models.stitch import Sluice, StitchedColumns
from models.towers import Towers
from pipeline.config import parse_config

ROOT = Path(__file__).parent.parent
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


@pytest.mark.parametrize("num_rows", [7, 1031])
@pytest.mark.parametrize("case", CASES)
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


TASKS = ["ctr", "vtr", "vcr"]
PLAIN: dict[str, tuple[dict[str, Any], Callable[[], FusionNetwork]]] = {
    "hard_sharing": ({"layers": [4, 3]}, lambda: SharedBottoms(5, [4, 3], [[0], [0], [0]])),
    "asymmetric_sharing": (
        {"layers": [4], "reads": {"vcr": ["vtr", "vcr"], "vtr": ["ctr"]}, "fuse": "mean"},
        lambda: SharedBottoms(5, [4], [[0], [0], [1, 2]], "mean"),
    ),
    "customized_sharing": ({"layers": [4]}, lambda: SharedBottoms(5, [4], [[0, 1], [0, 2], [0, 3]])),
    "cross_stitch": ({"layers": [4, 3], "own_share": 0.8}, lambda: StitchedColumns(5, 3, [4, 3], own=0.8)),
    "sluice": (
        {"width": 6, "num_layers": 2, "num_subspaces": 3, "orthogonality": 0.5}
        | {"alpha_start": "balanced", "beta_start": "imbalanced"},
        lambda: Sluice(
            5,
            3,
            width=6,
            num_layers=2,
            num_subspaces=3,
            orthogonality=0.5,
            alpha_start="balanced",
            beta_start="imbalanced",
        ),
    ),
    "mmoe": (
        {"num_experts": 2, "expert_layers": [4, 3], "shared_layers": [6], "gate_dropout": 0.3},
        lambda: MMoE(5, 3, [_level(2, 4, 3)], shared_layers=[6], gate_dropout=0.3),
    ),
    "omoe": (
        {"num_experts": 2, "expert_layers": [4], "gate_dropout": 0.3},
        lambda: MMoE(5, 3, [_level(2, 4)], has_one_gate=True, gate_dropout=0.3),
    ),
    "ml_mmoe": (
        {"levels": [{"num_experts": 2, "expert_layers": [4]}, {"num_experts": 3, "expert_layers": [3]}]}
        | {"shared_layers": [6], "gate_dropout": 0.3},
        lambda: MMoE(5, 3, [_level(2, 4), _level(3, 3)], shared_layers=[6], gate_dropout=0.3),
    ),
    "ple": (
        {"gate_dropout": 0.3}
        | {"levels": [{"expert_layers": [4], "num_experts_per_task": 2, "num_shared_experts": 1}]},
        lambda: PLE(
            5,
            3,
            [Level(num_experts_per_task=(2, 2, 2), num_shared_experts=1, expert_layers=(4,))],
            gate_dropout=0.3,
        ),
    ),
    "cgc": (
        {"expert_layers": [4], "num_experts_per_task": 2, "num_shared_experts": 1, "gate_dropout": 0.3},
        lambda: PLE(
            5,
            3,
            [Level(num_experts_per_task=(2, 2, 2), num_shared_experts=1, expert_layers=(4,))],
            gate_dropout=0.3,
        ),
    ),
}


def _from_config(config: dict[str, Any], union: Any = NetworkConfig) -> FusionNetwork:
    return build_network(TypeAdapter(union).validate_python(config), IN_FEATURES, TASKS)


@pytest.mark.parametrize("kind", PLAIN)
def test_a_config_builds_what_plain_arguments_build(kind: str) -> None:
    """Catches a key that does not reach the network; in training mode, so that dropped gates are compared too."""
    outputs = []
    for build in (lambda: _from_config({"kind": kind} | PLAIN[kind][0]), PLAIN[kind][1]):
        torch.manual_seed(3)
        network = build()
        penalty = network.penalty()
        outputs.append((network(torch.randn(6, IN_FEATURES)), torch.zeros(()) if penalty is None else penalty))
    assert all(torch.equal(one, other) for one, other in zip(*outputs, strict=True))


def _kinds() -> set[str]:
    members = get_args(get_args(NetworkConfig)[0])
    return {get_args(member.model_fields["kind"].annotation)[0] for member in members}


def test_every_kind_of_the_union_is_compared() -> None:
    """Catches a network that is added to the union, and not to the test above."""
    assert set(PLAIN) == _kinds()


def _refusal(config: dict[str, Any]) -> str:
    with pytest.raises(ValidationError) as caught:
        TypeAdapter(NetworkConfig).validate_python(config)
    return str(caught.value.errors()[0]["msg"])


@pytest.mark.parametrize(
    ("kind", "wrong", "message"),
    [
        ("hard_sharing", {"layers": []}, "at least 1 item"),
        ("mmoe", {"num_experts": 0}, "greater than 0"),
        ("mmoe", {"gate_dropout": 1.0}, "less than 1"),
        ("ml_mmoe", {"levels": []}, "at least 1 item"),
        ("cross_stitch", {"own_share": 1.5}, "less than or equal to 1"),
        ("sluice", {"width": 7}, "width 7 cannot be cut into 3 subspaces"),
        ("sluice", {"orthogonality": -1}, "greater than or equal to 0"),
        ("asymmetric_sharing", {"fuse": "max"}, "'concat', 'sum' or 'mean'"),
    ],
)
def test_a_wrong_value_is_refused(kind: str, wrong: dict[str, Any], message: str) -> None:
    """Catches values without a meaning that would fail in the middle of a run, or silently do nothing."""
    assert message in _refusal({"kind": kind} | PLAIN[kind][0] | wrong)


@pytest.mark.parametrize(
    ("reads", "message"),
    [
        ({"vcr": ["vtx", "vcr"]}, "reads: there is no task 'vtx': did you mean 'vtr'?"),
        ({"vcx": ["vcr"]}, "reads: there is no task 'vcx': did you mean 'vcr'?"),
        ({"vcr": ["vtr"]}, "reads: no task reads the bottom of 'vcr'"),
        ({"vcr": ["vcr", "vcr"]}, "reads: task 'vcr' reads .* each once"),
        ({"vcr": []}, "reads: task 'vcr' reads .* at least one"),
    ],
)
def test_bottoms_that_do_not_fit_the_tasks(reads: dict[str, list[str]], message: str) -> None:
    """Catches a misspelt task, and a bottom that would never learn."""
    with pytest.raises(ConfigError, match=message):
        _from_config({"kind": "asymmetric_sharing", "layers": [4], "reads": reads})


def test_a_wrong_network_is_refused() -> None:
    """Catches plain arguments that mean nothing."""
    for reads, message in (([[0], [2]], r"no task reads bottoms \[1\]"), ([[0], [0, 0]], "task 1 reads bottoms")):
        with pytest.raises(ValueError, match=message):
            SharedBottoms(5, [4], reads)
    with pytest.raises(ValueError, match="at least one level"):
        MMoE(5, 2, [])
    with pytest.raises(ValueError, match="an expert or more"):
        _level(0, 4)
    with pytest.raises(ValueError, match="width 5 cannot be cut into 2 subspaces"):
        Sluice(5, 2, width=5, num_layers=1)


@pytest.mark.parametrize(
    ("kind", "key", "dotted", "near"),
    [
        ("hard_sharing", "layer", "model.network.layer", "layers"),
        ("asymmetric_sharing", "read", "model.network.read", "reads"),
        ("customized_sharing", "layrs", "model.network.layrs", "layers"),
        ("cross_stitch", "own_shares", "model.network.own_shares", "own_share"),
        ("sluice", "num_subspace", "model.network.num_subspace", "num_subspaces"),
        ("mmoe", "shared_layer", "model.network.shared_layer", "shared_layers"),
        ("omoe", "gate_drop", "model.network.gate_drop", "gate_dropout"),
        ("ml_mmoe", "levels.0.num_expert", "model.network.levels.0.num_expert", "num_experts"),
        ("ple", "gate_dropuot", "model.network.gate_dropuot", "gate_dropout"),
    ],
)
def test_a_misspelt_key_fails_with_its_dotted_path(kind: str, key: str, dotted: str, near: str) -> None:
    """Catches a key that is ignored, and a message that does not say where it stands or what is meant."""
    data = yaml.safe_load((ROOT / "jobs/configs/demo.yaml").read_text())
    network = {"kind": kind} | PLAIN[kind][0]
    if kind == "ml_mmoe":
        network["levels"] = [network["levels"][0] | {key.rpartition(".")[2]: 1}]
    else:
        network[key] = 1
    data["model"]["network"] = network
    with pytest.raises(ConfigError, match=re.escape(f"unknown key {dotted}: did you mean '{near}'?")):
        parse_config(data, "demo.yaml")


def _blocks(language: str) -> list[str]:
    """What docs/models.md shows of a language."""
    page = (ROOT / "docs" / "models.md").read_text()
    return re.findall(rf"^```{language}\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)


def test_the_docs_show_every_kind_as_it_can_be_written() -> None:
    """Catches a network without an example, and an example that a configuration would refuse; all end equally wide."""
    (block,) = _blocks("yaml")
    networks = [_from_config(config) for config in yaml.safe_load(block)]
    assert {config["kind"] for config in yaml.safe_load(block)} == _kinds()
    assert {network.out_features for network in networks} == {128, 2 * 128, 192}


def test_the_network_of_ten_lines_in_the_docs() -> None:
    """Catches an example that no longer runs: it must build from a config once its class is in the union, and learn."""
    (block,) = _blocks("python")
    network_alone = block[block.index("class Alone(") : block.index("class AloneConfig(")]
    assert len(network_alone.strip().splitlines()) <= 10
    defined: dict[str, Any] = {"__name__": "alone"}
    exec(compile(block, "docs/models.md", "exec"), defined)
    config = {"kind": "alone", "width": 4}
    with pytest.raises(ValidationError, match="'alone'"):
        _from_config(config)  # without its line in the union
    union = Annotated[NetworkConfig | defined["AloneConfig"], Field(discriminator="kind")]
    network = _from_config(config, union)
    assert network(torch.randn(2, IN_FEATURES)).shape == (2, len(TASKS), network.out_features)
    assert (network.penalty(), network.gate_weights(torch.randn(2, IN_FEATURES))) == (None, [])
    head = nn.Sequential(network, Towers(network.out_features, [4], [1, 1, 1]))
    head(torch.randn(9, IN_FEATURES)).sum().backward()
    assert all(parameter.grad is not None for parameter in head.parameters())
    tasks = {block.tasks for block in parameter_blocks(network, IN_FEATURES)}
    assert tasks == {(0,), (1,), (2,)}
    with pytest.raises(ValidationError, match="Extra inputs are not permitted"):
        _from_config(config | {"widht": 4}, union)
