"""Loss balancing in the real step: on any number of ranks the same, through every pipeline, and after every restart."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from train_steps import FIRST, NONE, SECOND, SGD, Run, assert_equal, make_config, relative_difference, whole

from models.all_reduce import Ranks
from pipeline.config.project import Config

KINDS: dict[str, dict[str, Any]] = {
    "uncertainty": {"kind": "uncertainty"},
    "metabalance": {"kind": "metabalance", "targets": ["click"]},
    "gradnorm": {"kind": "gradnorm", "learning_rate": 0.1},
    "pcgrad": {"kind": "pcgrad"},
}
GRADIENTS = [kind for kind in KINDS if kind != "uncertainty"]


def config_of(method: str, **options: Any) -> Config:
    data = make_config(**options).model_dump(mode="json", by_alias=True)
    return Config.model_validate(data | {"loss_balancing": KINDS[method]})


def state_of(results: list[dict[str, Any]], when: str = "after") -> dict[str, torch.Tensor]:
    """Return the state of the method."""
    return {name: tensor for name, tensor in whole(results, when).items() if name.startswith("model:balance.")}


def exact(method: str) -> Config:
    """Under SGD, to which no scale is lost; slower where weights are exponents of what is learned."""
    return config_of(method, **SGD | ({"learning_rate": 0.1} if method == "uncertainty" else {}))


@pytest.fixture(scope="module")
def one_rank(run_ranks: Any) -> Callable[..., list[dict[str, Any]]]:
    return functools.cache(lambda kind, spaces: run_ranks(Run(exact(kind), spaces=spaces, wide=True), 1))


def assert_tables_moved(results: list[dict[str, Any]]) -> None:
    start, end = whole(results, "before"), whole(results, "after")
    for name in (name for name in start if "embedding_bags" in name):
        assert (end[name] - start[name]).abs().max() > 0.05, f"{name} has not moved: the test would see nothing"


@pytest.mark.parametrize("spaces", ["skewed", "extreme"])
@pytest.mark.parametrize("num_ranks", [2, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_ranks_agree(run_ranks: Any, one_rank: Any, kind: str, num_ranks: int, spaces: str) -> None:
    """Catches norms, dot products or losses of a rank's own rows, wherever they are used, what a method remembers
    included; also where a task has no row on most ranks, or on none.
    """
    results = run_ranks(Run(exact(kind), spaces=spaces, wide=True), num_ranks)
    assert_tables_moved(one_rank(kind, spaces))
    assert relative_difference(one_rank(kind, spaces), results) < 1e-6
    mine, theirs = state_of(one_rank(kind, spaces)), state_of(results)
    assert mine
    for name, tensor in mine.items():
        torch.testing.assert_close(theirs[name], tensor, rtol=1e-4, atol=1e-6)


def no_other_ranks(*_: Any) -> Ranks:
    """Return ranks that hide the others from a module."""
    return Ranks()


@pytest.mark.parametrize("kind", GRADIENTS)
def test_control_a_rank_s_own_norms_differ(run_ranks: Any, one_rank: Any, kind: str) -> None:
    """The negative control of the test above: each rank balances by the gradients of its own rows."""
    run = Run(exact(kind), spaces="skewed", wide=True, patches={"pipeline.trainer.worker_setup.Ranks": no_other_ranks})
    assert relative_difference(one_rank(kind, "skewed"), run_ranks(run, 3)) > 1e-4


@pytest.mark.parametrize("kind", KINDS)
def test_train_pipelines_are_bit_equal(run_ranks: Any, kind: str) -> None:
    """Catches a gradient that is balanced in one of TorchRec's pipelines only, and a lookup before the last update."""
    base = whole(run_ranks(Run(config_of(kind, pipeline="base")), 2), "after")
    assert_equal(base, whole(run_ranks(Run(config_of(kind, pipeline="sparse_dist")), 2), "after"))
    plain = whole(run_ranks(Run(make_config()), 2), "after")
    moved = [name for name, tensor in plain.items() if not torch.equal(tensor, base[name])]
    assert [name for name in moved if "embedding_bags" in name], "no table sees that anything is balanced"


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_remembered_is_in_the_checkpoint(run_ranks: Any, tmp_path: Path, kind: str) -> None:
    """Catches moving averages, weights or dice that begin anew with every start, or that three ranks cannot load."""
    config, folder = config_of(kind), str(tmp_path)
    first = run_ranks(Run(config, steps=FIRST, save=folder), 2)
    start, end = state_of(first, "before"), state_of(first)
    assert [name for name, tensor in end.items() if torch.equal(tensor, start[name])] == []
    resumed = run_ranks(Run(config, steps=SECOND, load=folder), 2)
    assert_equal(whole(run_ranks(Run(config), 2), "after"), whole(resumed, "after"))
    assert_equal(whole(first, "after"), whole(run_ranks(Run(config, steps=NONE, load=folder), 3), "before"))
