"""Every network of the union in the real step: trained on two ranks, loaded by three to the last bit, trained on."""

import re
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
import yaml
from test_resharding import FIRST, NONE, SECOND, assert_equal
from test_train_step import Run, largest_difference, make_config, whole

from models.network import NetworkConfig
from pipeline.config import Config

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


def config_of(kind: str) -> Config:
    """The test's project with the network that docs/models.md shows of a kind: it has to show every one."""
    (block,) = re.findall(r"^```yaml\n(- \{kind.*?)^```$", DOCS.read_text(), re.MULTILINE | re.DOTALL)
    (example,) = [config for config in yaml.safe_load(block) if config["kind"] == kind]
    data = make_config().model_dump(mode="json", by_alias=True)
    data["model"]["network"] = _smaller(example)
    return Config.model_validate(data)


def _network(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor for name, tensor in tensors.items() if ".network." in name}


def assert_no_rank_has_its_own(results: list[dict[str, Any]]) -> None:
    """What is no table is the same on all ranks: a checkpoint keeps it once."""
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
    assert {chosen["sharding_type"] for chosen in first[0]["plan"].values()} == {"row_wise"}
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
