"""Optional parts around a network in the real train step: workers, pipelines and padding do not change the model."""

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from train_steps import SGD, LocalDenominators, Run, assert_tables_moved, make_config, relative_difference, whole

from models.batch import RankingBatch
from models.kl_bound import KLBound
from pipeline.config.load import parse_config
from pipeline.config.project import Config

SLOT_BIAS = {"tasks": ["click", "completion"], "num_slots": 3, "feature": "user_id", "dropout": 0.0}
SECTIONS: dict[str, dict[str, Any]] = {
    # A share is a click and then a share; its tower has no loss of its own.
    "entire space": {
        "model": {
            "entire_space": {
                "towers": ["shared"],
                "probabilities": {"share": {"given": "click", "then": "shared"}},
            }
        }
    },
    "slot bias": {"schema": {"slot": "slot"}, "model": {"slot_bias": SLOT_BIAS}},
    "interaction": {"model": {"interaction": {"kind": "nfwfm"}}},
    "interaction, pcgrad": {"model": {"interaction": {"kind": "nfwfm"}}},
    # On rows that only some of the ranks have.
    "kl bound": {"kl_bounds": [{"order": "share", "click": "click", "convert": "buy", "weight": 2.0}]},
}
SECTIONS["kl bound, pcgrad"] = SECTIONS["kl bound"]
# What they are held against, with the section and without it; the plain configuration unless said.
_THREE = {"schema": {"tasks": [{"name": name, "label": name} for name in ("click", "share", "buy")]}}
BASES: dict[str, dict[str, Any]] = {
    "kl bound": _THREE,
    "interaction, pcgrad": {"loss_balancing": {"kind": "pcgrad"}},
    "kl bound, pcgrad": _THREE | {"loss_balancing": {"kind": "pcgrad"}},
}
# What draws from the process' generator: other workers draw other numbers.
DROPPED: dict[str, dict[str, Any]] = {
    "slot bias, dropped": {"schema": {"slot": "slot"}, "model": {"slot_bias": SLOT_BIAS | {"dropout": 0.5}}},
    "interaction, dropped": {"model": {"interaction": {"kind": "nfwfm", "dropout": 0.3}}},
}


def _config(section: str, *, with_it: bool = True, **more: Any) -> Config:
    data = make_config(**more).model_dump(mode="json", by_alias=True)
    changes = [*BASES.get(section, {}).items(), *((SECTIONS | DROPPED)[section].items() if with_it else ())]
    for key, value in changes:
        data[key] = data[key] | value if isinstance(value, dict) else value
    return parse_config(data, "test")


class Shown(Run):
    """With slots -1 to 4; in padding -1."""

    def make_batch(self, rank: int, num_ranks: int, step: int) -> RankingBatch:
        batch = super().make_batch(rank, num_ranks, step)
        if batch.cursor.spans:
            rows = batch.cursor.spans[0].rows
            batch.slot[: len(rows)] = torch.from_numpy((rank * len(rows) + rows) * 7 % 6 - 1).to(batch.slot)
        return batch


@pytest.fixture(scope="module")
def one_rank(run_ranks: Any) -> Callable[[str], list[dict[str, Any]]]:
    """Train one rank on the global batches."""
    return functools.cache(lambda section: run_ranks(Shown(_config(section, **SGD), spaces="extreme", wide=True), 1))


@pytest.mark.parametrize("section", SECTIONS)
@pytest.mark.parametrize("num_ranks", [2, 3])
def test_ranks_agree(run_ranks: Any, one_rank: Any, section: str, num_ranks: int) -> None:
    """Catches a term of the loss, or of the logits, that depends on how rows are spread over ranks."""
    results = run_ranks(Shown(_config(section, **SGD), spaces="extreme", wide=True), num_ranks)
    assert_tables_moved(one_rank(section))
    assert relative_difference(one_rank(section), results) < 1e-6


@pytest.mark.parametrize("section", SECTIONS)
def test_control_denominators_of_a_rank_differ(run_ranks: Any, one_rank: Any, section: str) -> None:
    """Shows that the test above can fail: each rank divides by the rows of its own."""
    run = Shown(_config(section, **SGD), spaces="extreme", wide=True, batches_class=LocalDenominators)
    assert relative_difference(one_rank(section), run_ranks(run, 3)) > 1e-3


def a_mean_of_its_own(bound: KLBound, outputs: Any, in_space: Any, weight: Any, denominators: Any) -> Any:
    """A bound that every rank divides by the rows of its own."""
    return _FORWARD(bound, outputs, in_space, weight, (in_space * weight).sum(0))


_FORWARD = KLBound.forward


@pytest.mark.parametrize("section", [section for section in SECTIONS if "kl bound" in section])
def test_control_a_bound_of_a_rank_s_own_rows_differs(run_ranks: Any, one_rank: Any, section: str) -> None:
    """Shows that the first test can fail: all is divided by what it should be, but for the bound."""
    patches = {"models.kl_bound.KLBound.forward": a_mean_of_its_own}
    run = Shown(_config(section, **SGD), spaces="extreme", wide=True, patches=patches)
    assert relative_difference(one_rank(section), run_ranks(run, 3)) > 1e-3


@pytest.mark.parametrize("section", SECTIONS)
def test_each_has_an_effect(run_ranks: Any, one_rank: Any, section: str) -> None:
    """Catches a section that is read and not built: the tests of what changes nothing would pass."""
    config = _config(section, with_it=False, **SGD)
    without = whole(run_ranks(Shown(config, spaces="extreme", wide=True), 1), "after")
    name = next(name for name in without if "embedding_bags.video" in name)
    assert not torch.allclose(whole(one_rank(section), "after")[name], without[name], atol=1e-3)


@pytest.mark.parametrize("section", SECTIONS)
def test_padding_changes_nothing(run_ranks: Any, one_rank: Any, section: str) -> None:
    """Catches padding rows that are counted or learned from."""
    results = run_ranks(Shown(_config(section, **SGD), spaces="extreme", padding=32, wide=True), 1)
    assert relative_difference(one_rank(section), results) < 1e-6


@pytest.mark.parametrize("section", [*SECTIONS, *DROPPED])
def test_train_pipelines_are_bit_equal(run_ranks: Any, section: str) -> None:
    """Catches what TorchRec cannot trace, and what it moves to another step; dropout is drawn from the step's seed."""
    base, sparse = (
        whole(run_ranks(Shown(_config(section, pipeline=kind)), 2), "after") for kind in ("base", "sparse_dist")
    )
    assert set(base) == set(sparse)
    for name, tensor in base.items():
        assert torch.equal(tensor, sparse[name]), name
