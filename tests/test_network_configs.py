"""Every network from a config: what it builds, how it is refused, and what the docs show."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, get_args

import pytest
import torch
import yaml
from pydantic import Field, TypeAdapter, ValidationError
from torch import nn

from features.errors import ConfigError
from models.kl_bound import KLBoundConfig
from models.mmoe import MMoE, SharedExperts
from models.mran import MRAN
from models.network import NetworkConfig, build_network
from models.network_base import FusionNetwork
from models.optional_parts import AroundConfig
from models.ple import PLE, Level
from models.sharing import SharedBottoms
from models.stitch import Sluice, StitchedColumns
from models.task_reach import parameter_blocks
from models.towers import Towers
from pipeline.config.load import parse_config

ROOT = Path(__file__).parent.parent
IN_FEATURES = 5


def _level(num_experts: int, *layers: int) -> SharedExperts:
    return SharedExperts(num_experts=num_experts, expert_layers=layers)


TASKS = ["ctr", "vtr", "vcr"]
PLAIN: dict[str, tuple[dict[str, Any], Callable[[], FusionNetwork]]] = {
    "hard_sharing": ({"layers": [4, 3]}, lambda: SharedBottoms(5, [4, 3], [[0], [0], [0]])),
    "asymmetric_sharing": (
        {"layers": [4], "reads": {"vcr": ["vtr", "vcr"], "vtr": ["ctr"]}, "fuse": "mean"},
        lambda: SharedBottoms(5, [4], [[0], [0], [1, 2]], "mean"),
    ),
    "customized_sharing": ({"layers": [4]}, lambda: SharedBottoms(5, [4], [[0, 1], [0, 2], [0, 3]])),
    "cross_stitch": (
        {"layers": [4, 3], "own_share": 0.8, "alpha_rate": 3.0},
        lambda: StitchedColumns(5, 3, [4, 3], own=0.8, alpha_rate=3.0),
    ),
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
    "mran": ({"width": 6, "num_heads": 2}, lambda: MRAN([5], 3, width=6, num_heads=2)),
    "ple": (
        {"gate_dropout": 0.3, "shared_layers": [6]}
        | {"levels": [{"expert_layers": [4], "num_experts_per_task": 2, "num_shared_experts": 1}]},
        lambda: PLE(
            5,
            3,
            [Level(num_experts_per_task=(2, 2, 2), num_shared_experts=1, expert_layers=(4,))],
            shared_layers=[6],
            gate_dropout=0.3,
        ),
    ),
    "cgc": (
        {"expert_layers": [4], "num_experts_per_task": 2, "num_shared_experts": 1}
        | {"gate_dropout": 0.3, "shared_layers": [6]},
        lambda: PLE(
            5,
            3,
            [Level(num_experts_per_task=(2, 2, 2), num_shared_experts=1, expert_layers=(4,))],
            shared_layers=[6],
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
        rates = torch.tensor(list(network.rate_factors().values()))
        outputs.append((rates, network(torch.randn(6, IN_FEATURES)), torch.zeros(()) if penalty is None else penalty))
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
        ("mmoe", {"num_experts": 0}, "greater than or equal to 1"),
        ("mmoe", {"gate_dropout": 1.0}, "less than 1"),
        ("ml_mmoe", {"levels": []}, "at least 1 item"),
        ("cross_stitch", {"own_share": 1.5}, "less than or equal to 1"),
        ("sluice", {"width": 7}, "width 7 cannot be cut into 3 subspaces"),
        ("sluice", {"orthogonality": -1}, "greater than or equal to 0"),
        ("mran", {"num_heads": 4}, "width 6 cannot be cut into 4 heads"),
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
    """Collect the blocks of a language that the pages on networks, optional parts and losses show, in this order."""
    pages = [(ROOT / "docs" / f"{name}.md").read_text() for name in ("models", "optional-parts", "losses")]
    return re.findall(rf"^```{language}\n(.*?)^```$", "".join(pages), re.MULTILINE | re.DOTALL)


def test_the_docs_show_every_kind_as_it_can_be_written() -> None:
    """Catches a network without an example, and an example that a configuration would refuse; all end equally wide."""
    block, *around = _blocks("yaml")
    shown = [yaml.safe_load(part) for part in around]
    bounds = [bound for part in shown for bound in part.pop("kl_bounds", [])]  # of the whole project, not of the model
    assert bounds
    assert all(KLBoundConfig.model_validate(bound) for bound in bounds)
    assert all(AroundConfig.model_validate(part).model_fields_set for part in shown if part)
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
    union = Annotated[NetworkConfig | defined["AloneConfig"], Field(discriminator="kind")]  # noqa: F821
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
