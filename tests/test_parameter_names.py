"""Common parts of two models: a model that has grown gives every old task the same outputs, whatever the network."""

import copy
from typing import Any

import pytest
import torch
from grown_models import CHANGES, EXACT, FEATURES, MORE_FEATURES, NETWORKS, Built, grow, inherit, values_of_features

from models import assembly
from models.parameter_names import copy_matches, match_layouts


@pytest.mark.parametrize("kind", EXACT)
@pytest.mark.parametrize("change", CHANGES)
def test_a_model_that_has_grown_gives_the_old_tasks_what_it_gave(kind: str, change: str) -> None:
    """Catches a column, row, expert, gate, bottom, column of a task or tower that lands where another belongs, or is
    lost; of every network.
    """
    old, new = Built(CHANGES["nothing"](kind)), Built(CHANGES[change](kind), seed=1)
    values = values_of_features()
    before = old.outputs(values)
    grow(old, new)
    after = new.outputs(values)
    for task in before:
        torch.testing.assert_close(after[task], before[task], rtol=0, atol=1e-12)
    assert len(after) == len(new.schema.tasks)


@pytest.mark.parametrize("kind", NETWORKS)
@pytest.mark.parametrize("change", CHANGES)
def test_there_and_back_is_bit_identical(kind: str, change: str) -> None:
    """Catches what is not found again where it was put: a drop has to keep what an addition has kept."""
    home, abroad, back = (Built(CHANGES[name](kind), seed) for seed, name in enumerate(("nothing", change, "nothing")))
    before = copy.deepcopy(home.dense)
    there, again = inherit(home, abroad), inherit(abroad, back)
    for name, tensor in before.items():
        assert torch.equal(tensor, back.dense[name]), name
    assert (there.dropped, there.num_dropped, again.new, again.num_new) == ([], 0, [], 0)
    assert again.dropped == there.new
    if change in ("nothing", "order"):
        assert (there.new, there.num_new) == ([], 0)


@pytest.mark.parametrize("kind", EXACT)
def test_a_dropped_feature_is_a_feature_of_zeros(kind: str) -> None:
    """Catches a drop that takes a neighbour's columns."""
    old, new = Built(CHANGES["features"](kind)), Built(CHANGES["nothing"](kind), seed=1)
    values = values_of_features()
    gone = {f["name"] for f in MORE_FEATURES} - {f["name"] for f in FEATURES}
    zeros = {name: torch.zeros_like(value) if name in gone else value for name, value in values.items()}
    inherit(old, new)
    for task, expected in old.outputs(zeros).items():
        torch.testing.assert_close(new.outputs(values)[task], expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", NETWORKS)
@pytest.mark.parametrize("change", ["nothing", "entire space", "slot bias"])
def test_every_parameter_is_declared(kind: str, change: str) -> None:
    """Catches a parameter that a network has and does not name: it would be lost with the first new feature."""
    built = Built(CHANGES[change](kind))
    parts = [(name, part) for name, parts in built.layout.items() for part in parts]
    assert all(part.owner != name for name, part in parts)
    keys = [(part.owner, part.detail) for _, part in parts]
    assert len(keys) == len(set(keys))


@pytest.mark.parametrize("kind", EXACT)
def test_control_columns_that_are_one_off_are_seen(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Shows that the tests above can fail: the labels of the input columns are shifted by one in the new model."""
    old, new = Built(CHANGES["nothing"](kind)), Built(CHANGES["features"](kind), seed=1)
    values, old_layout = values_of_features(), old.layout
    before = old.outputs(values)
    right = assembly.column_labels

    def shifted(feature: Any, width: int) -> Any:
        labels = right(feature, width)
        return (*labels[1:], labels[0])

    monkeypatch.setattr(assembly, "column_labels", shifted)
    for tensor in new.dense.values():
        tensor.fill_(0)
    copy_matches(match_layouts(old_layout, new.layout), old.dense, new.dense)
    after = new.outputs(values)
    assert all(not torch.allclose(after[task], before[task], rtol=0, atol=1e-3) for task in before)
