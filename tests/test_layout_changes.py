"""Changes of a model: the words for them, and the parts without a declaration that are kept."""

import pytest
import torch
from grown_models import (
    CHANGES,
    CLASSES,
    FEATURES,
    NETWORKS,
    TASKS,
    Built,
    Declared,
    grow,
    ids_feature,
    inherit,
    number_feature,
    sections_of,
    values_of_features,
)

from models.assembly import declared_layout
from models.loss_combination import JointLoss
from models.network_base import FusionNetwork
from models.parameter_names import LayoutChange, copy_matches, layout_of, match_layouts
from models.uncertainty import UncertaintyConfig


def test_a_composed_task_s_own_tower_is_gone() -> None:
    """Catches the tower of a task that is kept as another one's, or for a task that has none any more."""
    tasks = [TASKS[0], {"name": "buy", "label": "e"}, TASKS[1]]
    rule = {"entire_space": {"towers": ["bought"], "probabilities": {"buy": {"given": "ctr", "then": "bought"}}}}
    found = _compared(sections_of(NETWORKS["cgc"], tasks=tasks), sections_of(NETWORKS["cgc"], tasks=tasks, around=rule))
    of_task = ["expert 0 of task {}, level 1", "gate of task {}, level 1", "tower of task {}", "output of task {}"]
    assert found.new == [text.format("bought") for text in of_task]
    assert found.dropped == [text.format("buy") for text in of_task]
    assert "tower of task ctr" in found.kept


def _compared(old: Declared, new: Declared) -> LayoutChange:
    return inherit(Built(old), Built(new, seed=1))


def test_what_is_said_of_a_change() -> None:
    """Catches a report that says less than what was done, or more; and its numbers, counted by hand."""
    old = sections_of(NETWORKS["cgc"])
    network = NETWORKS["cgc"] | {"num_shared_experts": 3}
    new = sections_of(network, features=[*FEATURES, ids_feature("author")], tasks=[TASKS[0], CLASSES])
    found = _compared(old, new)
    assert found.new == [
        "expert 0 of task place, level 1",
        "shared expert 2, level 1",
        "gate of task place, level 1",
        "tower of task place",
        "input columns of feature author",
        "output of task place",
    ]
    assert found.dropped == [
        "expert 0 of task vcr, level 1",
        "gate of task vcr, level 1",
        "tower of task vcr",
        "output of task vcr",
    ]
    assert found.kept == [
        "value of feature one where it is missing",
        "value of feature age where it is missing",
        "expert 0 of task ctr, level 1 (69 of 84)",  # the columns of the author are new
        "shared expert 0, level 1 (69 of 84)",
        "shared expert 1, level 1 (69 of 84)",
        "gate of task ctr, level 1 (24 of 44)",
        "tower of task ctr",
    ]
    expert, tower = 5 * 8 + 5 + 4 * 5 + 4, 5 * 4 + 5 + 5 + 1
    assert found.num_kept == 2 + 3 * expert + 3 * 8 + tower
    assert found.num_dropped == expert + 3 * 8 + tower
    # Of three new experts' columns each; the new tower has three outputs.
    wider = expert + 5 * 3
    gates = 4 * 11 - 3 * 8 + 4 * 11
    assert found.num_new == 2 * wider + 3 * 5 * 3 + gates + (5 * 4 + 5 + 3 * 5 + 3)


def test_a_bottom_more_is_read_beside_those_that_are() -> None:
    """Catches a tower's columns that stay in their place while the bottoms move: vcr's own is its third now."""
    asymmetric = NETWORKS["asymmetric_sharing"]
    reads = {"vcr": ["like", "ctr", "vcr"], "ctr": ["vcr", "ctr"], "like": ["like"]}
    like = {"name": "like", "label": "d"}
    old = Built(sections_of(asymmetric))
    new = Built(sections_of(asymmetric | {"reads": reads}, tasks=[TASKS[0], like, TASKS[1]]), seed=1)
    before = old.outputs(values_of_features())
    grow(old, new)
    after = new.outputs(values_of_features())
    assert set(after) == {"ctr", "like", "vcr"}
    for task in before:
        torch.testing.assert_close(after[task], before[task], rtol=0, atol=1e-12)


def test_a_layer_in_between_makes_new_what_is_above_it() -> None:
    """Catches weights that are kept over units that are other ones: units of a layer that was put between."""
    old, new = sections_of(NETWORKS["hard_sharing"]), sections_of(NETWORKS["hard_sharing"] | {"layers": [5, 4, 4]})
    found = _compared(old, new)
    assert found.kept[-3:] == [
        f"shared bottom 0 ({5 * 8 + 5 + 4 * 5 + 4} of {5 * 8 + 5 + 2 * (4 * 5 + 4) - 4})",
        "tower of task ctr (1 of 31)",  # the bias of its output
        "tower of task vcr (1 of 31)",
    ]
    path = "input > bottom layer 1 > bottom layer 2"
    assert found.dropped == [f"units of {path} > tower layer 1", f"units of {path}, shared bottom 0"]


@pytest.mark.parametrize(
    ("changed", "group"),
    [
        (number_feature("age", log1p=True), "input columns of feature age"),
        (number_feature("age", column="years"), "input columns of feature age"),
        (number_feature("age") | {"standardise": True}, "value of feature age where it is missing"),
    ],
)
def test_a_feature_of_another_meaning_is_another_feature(changed: Declared, group: str) -> None:
    """Catches weights that are kept for values of another scale, or of another column, under an old name."""
    found = _compared(sections_of(NETWORKS["cgc"]), sections_of(NETWORKS["cgc"], features=[*FEATURES[:3], changed]))
    assert group in found.new
    assert group in found.dropped


def test_a_task_of_another_kind_keeps_its_tower_but_not_its_output() -> None:
    """Catches an output that was a logit and is read as a value."""
    changed = [{"name": "ctr", "kind": "regression", "label": "a"}, TASKS[1]]
    found = _compared(sections_of(NETWORKS["cgc"]), sections_of(NETWORKS["cgc"], tasks=changed))
    assert found.new == ["output of task ctr"]
    assert found.dropped == ["output of task ctr"]
    assert found.num_new == 6


def test_experts_of_mmoe_are_the_shared_ones_of_cgc() -> None:
    """Catches names that differ where the mathematics does not: of no experts of the tasks' own, CGC is MMoE."""
    cgc = {"kind": "cgc", "expert_layers": [4], "num_experts_per_task": 0, "num_shared_experts": 2}
    old, new = Built(sections_of(NETWORKS["mmoe"])), Built(sections_of(cgc), seed=1)
    found = inherit(old, new)
    assert (found.new, found.dropped) == ([], [])
    for task, expected in old.outputs(values_of_features()).items():
        assert torch.equal(new.outputs(values_of_features())[task], expected)


class _Silent(FusionNetwork):
    """A network that does not name its parts."""

    def __init__(self, in_features: int) -> None:
        super().__init__()
        self.out_features = 3
        self.weight = torch.nn.Parameter(torch.empty(2, 3, in_features))


@pytest.mark.parametrize("same", [True, False])
def test_what_is_not_declared_is_kept_if_its_shape_is(same: bool) -> None:
    """Catches a parameter without labels that is cut, or lost although nothing has changed."""
    old, new = _Silent(4), _Silent(4 if same else 5)
    layouts = [layout_of(dict(net.named_parameters()), net.parts((), ["a"]).parts) for net in (old, new)]
    matches = match_layouts(*layouts)
    assert sum(match.num_elements for match in matches) == (2 * 3 * 4 if same else 0)


def test_learned_weights_of_tasks_are_kept_by_their_names() -> None:
    """Catches an s_k that is lost, or goes to another task, when a task joins."""
    uncertainty = JointLoss(balancing=UncertaintyConfig(kind="uncertainty"))
    old, new = (Built(CHANGES[name]("cgc")) for name in ("nothing", "tasks"))
    layouts = [declared_layout(of.schema, of.network, of.towers, uncertainty) for of in (old, new)]
    name = "balance.log_variances"
    matches = [match for match in match_layouts(*layouts) if match.target == name]
    found = torch.zeros(4)
    copy_matches(matches, {name: torch.tensor([1.0, 2.0])}, {name: found})
    assert found.tolist() == [0.0, 1.0, 0.0, 2.0]
