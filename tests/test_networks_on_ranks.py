"""Every network of the union in the real step: trained on two ranks, loaded by three to the last bit, trained on."""

import re
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
import yaml
from train_steps import FIRST, NONE, SECOND, SGD, Run, assert_equal, largest_difference, make_config, whole

from models.network import NetworkConfig
from pipeline.config.project import Config

DOCS = Path(__file__).parent.parent / "docs" / "models.md"
RENAMED = {"ctr": "click", "vtr": "share", "vcr": "completion"}
KINDS = [get_args(member.model_fields["kind"].annotation)[0] for member in get_args(get_args(NetworkConfig)[0])]


def _smaller(node: Any) -> Any:
    """An example for the tasks of `make_config`, a sixteenth as wide, and without dice that the ranks throw apart."""
    if isinstance(node, dict):
        return {RENAMED.get(key, key): _smaller(value) for key, value in node.items() if key != "gate_dropout"}
    if isinstance(node, list):
        return [_smaller(value) for value in node]
    if isinstance(node, int) and node >= 64:
        return node // 16
    return RENAMED.get(node, node) if isinstance(node, str) else node


def config_of(network: str, changed: dict[str, Any] | None = None, **options: Any) -> Config:
    """The test's project with the network that docs/models.md shows of a kind: it has to show every one."""
    (block,) = re.findall(r"^```yaml\n(- \{kind.*?)^```$", DOCS.read_text(), re.MULTILINE | re.DOTALL)
    (example,) = [config for config in yaml.safe_load(block) if config["kind"] == network]
    data = make_config(**options).model_dump(mode="json", by_alias=True)
    data["model"]["network"] = _smaller(example) | (changed or {})
    return Config.model_validate(data)


def _network(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor for name, tensor in tensors.items() if ".network." in name}


def assert_no_rank_has_its_own(results: list[dict[str, Any]]) -> None:
    """Catches a dense parameter that differs between ranks: a checkpoint keeps it once."""
    ranks = [{n: blocks[0][1] for n, blocks in r["after"].items() if "embedding_bags" not in n} for r in results]
    for other in ranks[1:]:
        assert_equal(ranks[0], other)


@pytest.mark.parametrize("kind", KINDS)
def test_two_ranks_train_it_and_three_go_on(run_ranks: Any, tmp_path: Path, kind: str) -> None:
    """Catches a network with state that no checkpoint holds, or that a rank keeps for itself; one that the fused
    tables, the flat buffer of gradients or the checkpoint cannot take; and one that learns otherwise on other ranks.
    """
    config, folder = config_of(kind), str(tmp_path)
    first = run_ranks(Run(config, steps=FIRST, save=folder), 2)
    assert {chosen.sharding_type for chosen in first[0]["plan"].values()} == {"row_wise"}
    assert_no_rank_has_its_own(first)
    start, end = whole(first, "before"), whole(first, "after")
    weights = [name for name in _network(end) if name.startswith("model:")]
    assert weights
    assert all(bool(torch.isfinite(tensor).all()) for tensor in end.values())
    assert [name for name in weights if torch.equal(start[name], end[name])] == []
    gone = run_ranks(Run(config, steps=NONE, load=folder), 3)
    assert_equal(end, whole(gone, "before"))
    undisturbed = whole(run_ranks(Run(config), 2), "after")
    went_on = whole(run_ranks(Run(config, steps=SECOND, load=folder), 3), "after")
    assert largest_difference(undisturbed, went_on, "model:") < 5e-6


@pytest.mark.parametrize("kind", ["cross_stitch", "sluice"])
def test_alpha_has_a_rate_of_its_own(run_ranks: Any, kind: str) -> None:
    """Catches a factor that reaches no optimizer, or reaches other parameters, or is lost when a step sets its rate."""
    plain, fast = (run_ranks(Run(config_of(kind, of, **SGD), steps=range(1)), 1) for of in ({}, {"alpha_rate": 8.0}))
    start = whole(plain, "before")
    for name in (name for name in start if ".head." in name and name.startswith("model:")):
        moved, moved_fast = (whole(results, "after")[name] - start[name] for results in (plain, fast))
        factor = 8 if name.endswith("alpha") else 1
        torch.testing.assert_close(moved_fast, factor * moved, rtol=1e-4, atol=1e-6)
    assert any(name.endswith("alpha") for name in start)


def test_a_checkpoint_of_parameters_with_rates_of_their_own(run_ranks: Any, tmp_path: Path) -> None:
    """Catches state of the optimizer's further groups that is not saved, or is loaded into another parameter's."""
    config, folder = config_of("sluice", {"alpha_rate": 8.0}), str(tmp_path)
    first = run_ranks(Run(config, steps=FIRST, save=folder), 2)
    assert_equal(whole(first, "after"), whole(run_ranks(Run(config, steps=NONE, load=folder), 3), "before"))
    resumed = run_ranks(Run(config, steps=SECOND, load=folder), 2)
    assert_equal(whole(run_ranks(Run(config), 2), "after"), whole(resumed, "after"))
