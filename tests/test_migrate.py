"""Migration: what two models have in common is kept to the last bit, optimizer state too, on gloo ranks."""

from pathlib import Path
from typing import Any

import pytest
import torch
from migrations import PLACES, SOME, Migrate, Tensors, changed, old_config, trained
from train_steps import whole

from features.errors import DataError
from pipeline.checkpoint.read import stored_tensors
from pipeline.migration.inheritance import Declared, check_stored, compare
from pipeline.storage.files import Storage
from pipeline.trainer.train_state import TrainState

__all__ = ["trained"]  # fixtures


def _grow(data: dict[str, Any]) -> None:
    """A task second, a table second, an id and a number among the features, a shared expert on level 1."""
    schema = data["schema"]
    schema["tasks"].insert(1, {"name": "like", "label": "like"})
    schema["tables"].insert(1, {"name": "author", "num_rows": 20, "dim": 4})
    schema["features"].insert(1, {"kind": "id", "name": "author_id", "table": "author"})
    schema["features"].insert(4, {"kind": "dense", "name": "plays", "standardise": False})
    data["model"]["network"]["levels"][0]["num_shared_experts"] = 3
    if data["sharding"]["tables"].get("video") == "table_wise":
        data["sharding"]["tables"]["author"] = "table_wise"


def _expected(old: torch.Tensor, fresh: torch.Tensor, places: list[list[int] | None]) -> torch.Tensor:
    """A fresh tensor with the old one's numbers in the places counted by hand."""
    axes = [list(range(size)) if of_axis is None else of_axis for size, of_axis in zip(old.shape, places, strict=True)]
    expected = fresh.clone()
    expected[torch.meshgrid(*map(torch.tensor, axes), indexing="ij")] = old
    return expected


def _differing(old: Tensors, results: list[dict[str, Any]]) -> list[str]:
    """Names of tensors of the grown model that are not bit for bit what they have to be."""
    fresh, after = whole(results, "fresh"), whole(results, "after")
    wrong = []
    for name, places in PLACES.items():
        weight = f"model:ranker.{name}"
        expected = {weight: _expected(old[weight], fresh[weight], places)}
        for kind in ("exp_avg", "exp_avg_sq"):
            state = f"dense:ranker.{name}/{kind}"
            expected[state] = _expected(old[state], torch.zeros_like(fresh[weight]), places)
        expected[f"dense:ranker.{name}/step"] = old[f"dense:ranker.{name}/step"]
        wrong += [key for key, tensor in expected.items() if not torch.equal(tensor, after.pop(key))]
    bags = "ranker.embeddings.embedding_bags"
    for table in ("user", "video"):
        names = (f"model:{bags}.{table}.weight", f"tables:{bags}.{table}.weight/{table}.momentum1")
        wrong += [name for name in names if not torch.equal(old[name], after.pop(name))]
    author = after.pop(f"model:{bags}.author.weight"), after.pop(f"tables:{bags}.author.weight/author.momentum1")
    if not torch.equal(author[0], fresh[f"model:{bags}.author.weight"]) or author[1].any():
        wrong.append("author")
    assert not after, f"not looked at: {list(after)}"
    return wrong


@pytest.mark.parametrize(
    ("sharding", "num_ranks"),
    [("row_wise", 1), ("row_wise", 3), ("table_wise", 2), ({"user": "data_parallel", "video": "row_wise"}, 2)],
)
def test_what_is_common_is_kept_bit_for_bit(run_ranks: Any, trained: Any, sharding: Any, num_ranks: int) -> None:
    """Catches a weight, a moment or an accumulator that is lost, lands elsewhere, or is not as a fresh model has it."""
    folder, old = trained
    new = changed(old_config(sharding), _grow)
    assert _differing(old, run_ranks(Migrate(old_config(), new, folder), num_ranks)) == []


def _materialise_only(state: TrainState) -> None:
    state.optimizer.materialise()


def test_control_a_step_that_only_allocates_is_seen(run_ranks: Any, trained: Any) -> None:
    """Shows that the test above can fail: torch allocates Adam's state by a step, in which weight decay moves what is
    new and leaves moments behind.
    """
    folder, old = trained
    patches = {"pipeline.migration.inheritance.allocate_optimizers": _materialise_only}
    results = run_ranks(Migrate(old_config(), changed(old_config(), _grow), folder, patches=patches), 1)
    wrong = _differing(old, results)
    assert "model:ranker.head.network.levels.0.experts.0.weight" in wrong
    assert "dense:ranker.head.towers.hidden.0.weight/exp_avg" in wrong


def test_the_same_configuration_gives_the_same_bits(run_ranks: Any, trained: Any) -> None:
    """Catches anything that a migration changes although nothing was asked for."""
    folder, old = trained
    after = whole(run_ranks(Migrate(old_config(), old_config("table_wise"), folder), 3), "after")
    assert set(after) == set(old)
    assert [name for name, tensor in old.items() if not torch.equal(tensor, after[name])] == []


def test_there_and_back(run_ranks: Any, trained: Any, tmp_path: Path) -> None:
    """Catches a checkpoint of a migration that cannot be migrated itself, and a drop that takes too much."""
    folder, old = trained
    grown, written = changed(old_config(), _grow), str(tmp_path)
    run_ranks(Migrate(old_config(), grown, folder, save=written), 2)
    after = whole(run_ranks(Migrate(grown, old_config(), written), 1), "after")
    assert [name for name, tensor in old.items() if not torch.equal(tensor, after[name])] == []


def test_a_parameter_that_is_new_has_not_stepped(run_ranks: Any, trained: Any) -> None:
    """Catches an Adam that takes a new layer's first steps for its thousandth, or a kept one's for its first."""
    folder, old = trained
    results = run_ranks(
        Migrate(old_config(), changed(old_config(), lambda d: d["model"].update(towers=[8, 4])), folder), 1
    )
    after = whole(results, "after")
    steps = {name.removeprefix("dense:ranker.head.towers."): t.item() for name, t in after.items() if "/step" in name}
    assert old["dense:ranker.head.towers.outputs.bias/step"] == len(SOME)
    assert steps["hidden.0.weight/step"] == steps["outputs.bias/step"] == len(SOME)
    assert steps["hidden.2.weight/step"] == steps["hidden.2.bias/step"] == steps["outputs.weight/step"] == 0


def _other_tables(data: dict[str, Any]) -> None:
    """The user's table is gone, the videos' has other rows."""
    schema = data["schema"]
    schema["tables"] = [{"name": "video", "num_rows": 51, "dim": 8}]
    schema["features"] = [feature for feature in schema["features"] if feature.get("table") != "user"]
    data["sharding"]["tables"] = {}


def test_a_hashed_table_of_other_rows_is_new(run_ranks: Any, trained: Any) -> None:
    """Catches rows that are kept for other ids, and a report that does not say why a table is new."""
    folder, old = trained
    new = changed(old_config(), _other_tables)
    results = run_ranks(Migrate(old_config(), new, folder), 2)
    fresh, after = whole(results, "fresh"), whole(results, "after")
    name = "ranker.embeddings.embedding_bags.video.weight"
    assert torch.equal(after[f"model:{name}"], fresh[f"model:{name}"])
    assert not after[f"tables:{name}/video.momentum1"].any()
    weight = "model:ranker.head.network.levels.0.experts.0.weight"
    assert torch.equal(after[weight], old[weight][:, :, 8:])  # the columns of what is left, its table new or not
    found = compare(*(Declared(config.log_schema, config.model) for config in (old_config(), new)))
    assert found.new == ["table video (it had 50 rows and has 51: ids are hashed over all of them)"]
    assert found.dropped == ["table user", "table video", "input columns of feature user_id"]


def test_a_checkpoint_of_other_shapes_is_refused(trained: Any) -> None:
    """Catches tensors that are cut to what they are not."""
    folder, _ = trained
    stored = stored_tensors(Storage(folder), "checkpoint")
    for change, name in ((_grow, "missing_values.values"), (_other_tables, "levels.0.experts.0.weight")):
        new = changed(old_config(), change)
        with pytest.raises(DataError, match=rf"has model\.ranker\..*{name} of shape .* declares"):
            check_stored("checkpoint", Declared(new.log_schema, new.model), stored)
    rows = changed(old_config(), lambda data: data["schema"]["tables"][1].update(num_rows=51))
    with pytest.raises(DataError, match=r"embedding_bags.video.weight of shape \(50, 8\), .* declares \(51, 8\)"):
        check_stored("checkpoint", Declared(rows.log_schema, rows.model), stored)
