"""DUPN in the real train step: sharded unpooled tables, whatever the workers, pipelines and checkpoints."""

import functools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from dupn_models import KINDS, make_dupn_config
from migrations import Migrate
from table_changes import GrownLoad, ResetRun
from train_steps import (
    FIRST,
    NONE,
    SECOND,
    SGD,
    LocalDenominators,
    Run,
    assert_equal,
    assert_tables_moved,
    largest_difference,
    make_config,
    relative_difference,
    whole,
)

from features.encoded_rows import EncodedRows
from models.tables import parameter_of, table_of
from pipeline.config.load import parse_config
from pipeline.config.project import Config


class Watched(Run):
    """With events of three lists, and a second number."""

    def make_rows(self, step: int) -> EncodedRows:
        rows = super().make_rows(step)
        user, video, watched = rows.ids
        single, _, lists = rows.offsets
        random = np.random.default_rng(1000 + step)
        kinds, tabs = ((watched * 7 + np.arange(len(watched))) % size for size in (5, 7))
        tab = random.integers(0, 7, len(user))
        price = random.normal(size=(len(user), 1))
        ids = [user, video, watched, kinds, watched[::-1], tab, tabs]
        return replace(
            rows,
            ids=[of.astype(np.int32) for of in ids],
            offsets=[single, single, lists, lists, lists, single, lists],
            dense=np.concatenate([rows.dense, price], axis=1).astype(np.float32),
        )


@pytest.fixture(scope="module")
def one_rank(run_ranks: Any) -> Callable[[str], list[dict[str, Any]]]:
    """Train one rank on the global batches."""
    return functools.cache(lambda spaces: run_ranks(Watched(make_dupn_config(**SGD), spaces=spaces, wide=True), 1))


@pytest.mark.parametrize("sharding", ["row_wise", "table_wise"])
@pytest.mark.parametrize("num_ranks", [2, 3])
def test_ranks_agree(run_ranks: Any, one_rank: Any, num_ranks: int, sharding: str) -> None:
    """Catches events that are another row's after the exchange, a gradient that is divided by another number of ranks
    than those of bags, and a term of the loss that depends on how rows are spread.
    """
    config = make_dupn_config(dict.fromkeys(KINDS, sharding), **SGD)
    results = run_ranks(Watched(config, spaces="extreme", wide=True), num_ranks)
    assert {chosen.sharding_type for chosen in results[0]["plan"].values()} == {sharding}
    assert set(results[0]["plan"]) == set(KINDS)
    assert_tables_moved(one_rank("extreme"))
    assert relative_difference(one_rank("extreme"), results) < 1e-6


def test_control_denominators_of_a_rank_differ(run_ranks: Any, one_rank: Any) -> None:
    """Shows that the test above can fail: each rank divides by the rows of its own."""
    run = Watched(make_dupn_config(**SGD), spaces="extreme", wide=True, batches_class=LocalDenominators)
    assert relative_difference(one_rank("extreme"), run_ranks(run, 3)) > 1e-3


def test_padding_changes_nothing(run_ranks: Any, one_rank: Any) -> None:
    """Catches padding rows that are counted or learned from."""
    results = run_ranks(Watched(make_dupn_config(**SGD), spaces="extreme", padding=32, wide=True), 1)
    assert relative_difference(one_rank("extreme"), results) < 1e-6


class Uneven(Watched):
    """Only the first rows of a global batch have events, so one rank has none at all."""

    def make_rows(self, step: int) -> EncodedRows:
        rows = super().make_rows(step)
        lengths = np.diff(rows.offsets[2])
        lengths[len(lengths) // 2 :] = 0
        lists = np.concatenate(([0], np.cumsum(lengths))).astype(np.int32)
        ids = [of[: lists[-1]] if index in (2, 3, 6) else of for index, of in enumerate(rows.ids)]
        offsets = [lists if index in (2, 3, 6) else of for index, of in enumerate(rows.offsets)]
        return replace(rows, ids=ids, offsets=offsets)


def test_a_rank_without_events_keeps_in_step(run_ranks: Any) -> None:
    """Catches a rank that leaves out the exchange of the gradients of what it has not looked up: the others would wait
    for it.
    """
    results = [run_ranks(Uneven(make_dupn_config(**SGD), spaces="extreme", wide=True), ranks) for ranks in (1, 2)]
    assert relative_difference(*results) < 1e-6


def test_train_pipelines_are_bit_equal(run_ranks: Any) -> None:
    """Catches what TorchRec cannot trace, and what it moves to another step."""
    base, sparse = (
        whole(run_ranks(Watched(make_dupn_config(pipeline=kind)), 2), "after") for kind in ("base", "sparse_dist")
    )
    assert set(base) == set(sparse)
    for name, tensor in base.items():
        assert torch.equal(tensor, sparse[name]), name


@pytest.mark.parametrize("changed", [{}, {"video": "data_parallel"}])
def test_two_ranks_train_it_and_three_go_on(run_ranks: Any, tmp_path: Path, changed: dict[str, str]) -> None:
    """Catches unpooled tables, or their optimizer's state, that no checkpoint holds or that do not reshard."""
    config, folder = make_dupn_config(), str(tmp_path)
    first = run_ranks(Watched(config, steps=FIRST, save=folder), 2)
    start, end = whole(first, "before"), whole(first, "after")
    assert {table_of(name.replace("/", ".")) for name in end if name.startswith("tables:")} == set(KINDS)
    assert [name for name in end if name.startswith("model:") and torch.equal(start[name], end[name])] == []
    loaded = make_dupn_config(KINDS | changed)
    gone = run_ranks(Watched(loaded, steps=NONE, load=folder), 3)
    assert_equal(end, whole(gone, "before"))
    undisturbed = whole(run_ranks(Watched(config), 2), "after")
    went_on = whole(run_ranks(Watched(config, steps=SECOND, load=folder), 3), "after")
    assert largest_difference(undisturbed, went_on, "model:") < 5e-6


TABLES = {table.name: table for table in make_dupn_config().log_schema.tables}


def _names(table: str) -> tuple[str, str]:
    """A table's weight and its accumulators."""
    name = parameter_of(make_dupn_config().log_schema, TABLES[table])
    return f"model:{name}", f"tables:{name}/{table}.momentum1"


def test_a_table_is_kept_where_its_sequence_is_no_longer_pooled(run_ranks: Any, tmp_path: Path) -> None:
    """Catches a table that is new, or is not found, since another collection of TorchRec holds it now."""
    old = whole(run_ranks(Run(make_config(), steps=FIRST, save=str(tmp_path)), 2), "after")
    results = run_ranks(Migrate(make_config(), make_dupn_config(), str(tmp_path)), 2)
    fresh, after = whole(results, "fresh"), whole(results, "after")
    weight, accumulators = _names("video")
    bags = "ranker.embeddings.embedding_bags.video.weight"
    assert not torch.equal(fresh[weight], after[weight])
    assert torch.equal(after[weight], old[f"model:{bags}"])
    assert torch.equal(after[accumulators], old[f"tables:{bags}/video.momentum1"])
    assert torch.equal(after[_names("kind")[0]], fresh[_names("kind")[0]])


def test_an_unpooled_table_grows(run_ranks: Any, tmp_path: Path) -> None:
    """Catches ids that lose their rows when such a table grows, or a table that cannot."""

    def grown(num_rows: int) -> Config:
        data = make_dupn_config().model_dump(mode="json", by_alias=True)
        vocabulary = {"kind": "vocabulary", "min_count": 1, "keep_days": 1, "tail_rows": 1}
        data["schema"]["tables"][1] |= {"num_rows": num_rows, "id_mapping": vocabulary}
        return parse_config(data, "test")

    then = whole(run_ranks(Watched(grown(50), steps=FIRST, save=str(tmp_path)), 2), "after")
    loaded = run_ranks(GrownLoad(grown(77), str(tmp_path)), 2)
    fresh, now = whole(loaded, "before"), whole(loaded, "after")
    for name in _names("video"):
        assert torch.equal(now[name][:50], then[name])
        assert torch.equal(now[name][50:], fresh[name][50:] if name.startswith("model:") else now[name][50:] * 0)
    assert len(now[_names("video")[0]]) == 77


class ResetWatched(Watched, ResetRun):
    """With events, and rows that are reset after the last step."""


def test_nothing_is_left_of_an_evicted_row(run_ranks: Any) -> None:
    """Catches an id that inherits the vector or the accumulator of the id that had its row before."""
    rows = np.array([3, 24, 25, 49])
    results = run_ranks(ResetWatched(make_dupn_config(), steps=FIRST, rows={"video": rows}), 2)
    start, trained, reset = (whole(results, when) for when in ("before", "after", "reset"))
    others = np.setdiff1d(np.arange(50), rows)
    weight, accumulators = _names("video")
    assert (trained[weight][rows] != start[weight][rows]).any(1).all()
    assert torch.equal(reset[weight][rows], start[weight][rows])
    assert not reset[accumulators][rows].any()
    for name in (weight, accumulators):
        assert torch.equal(reset[name][others], trained[name][others])
    assert torch.equal(reset[_names("kind")[0]], trained[_names("kind")[0]])
