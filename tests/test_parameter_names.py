"""What is what in two models: a model that has grown gives every old task the same outputs, whatever the network."""

import copy
from collections.abc import Callable, Mapping
from typing import Any
from unittest import mock

import pytest
import torch
from pydantic import TypeAdapter
from torch import Tensor
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor, KeyedTensor

from features.schema import Schema
from models import assembly
from models.assembly import build_ranker, declared_layout
from models.loss_combination import JointLoss
from models.network import NetworkConfig
from models.network_base import FusionNetwork
from models.optional_parts import AroundConfig
from models.parameter_names import Layout, LayoutChange, compare_layouts, copy_matches, layout_of, match_layouts
from models.ranker import RankerTrain
from models.uncertainty import UncertaintyConfig

Declared = dict[str, Any]

TABLES = {"user": 4, "video": 2, "author": 3}
NUM_ROWS = 6


def _ids(name: str, table: str | None = None) -> Declared:
    return {"kind": "id", "name": name, "table": table or name}


def _number(name: str, **more: Any) -> Declared:
    return {"kind": "dense", "name": name, "standardise": False} | more


# `one` is 1 in every row, so that a gate can be told never to choose an expert.
FEATURES = [_ids("user"), _number("one"), _ids("video"), _number("age")]
MORE_FEATURES = [_number("plays"), _ids("author"), *FEATURES[:3], _ids("other_video", "video"), FEATURES[3]]
TASKS: list[Declared] = [{"name": "ctr", "label": "a"}, {"name": "vcr", "kind": "regression", "label": "b"}]
CLASSES: Declared = {"name": "place", "kind": "multiclass", "num_classes": 3, "label": "c"}
MORE_TASKS = [CLASSES, TASKS[0], {"name": "like", "label": "d"}, TASKS[1]]
# The new tasks composed of the old one's tower and of towers of no task.
COMPOSED: Declared = {"tasks": [MORE_TASKS[2], *TASKS, {"name": "buy", "label": "e"}]} | {
    "around": {
        "entire_space": {
            "towers": ["liked", "bought"],
            "probabilities": {
                "buy": {"given": "like", "then": "bought"},
                "like": {"given": "ctr", "then": "liked", "otherwise": "bought"},
            },
        }
    }
}
SLOTS: Declared = {"slot_bias": {"tasks": ["ctr"], "num_slots": 3, "feature": "user"}}
LEVELS = [
    {"expert_layers": [5, 4], "num_experts_per_task": 1, "num_shared_experts": 2},
    {"expert_layers": [3], "num_experts_per_task": 2, "num_shared_experts": 1},
]

NETWORKS: dict[str, Declared] = {
    "ple": {"kind": "ple", "levels": LEVELS},
    "cgc": {"kind": "cgc"} | LEVELS[0],
    "ple, shared layers": {"kind": "ple", "levels": LEVELS, "shared_layers": [6]},
    "mmoe": {"kind": "mmoe", "num_experts": 2, "expert_layers": [4]},
    "mmoe, shared layers": {"kind": "mmoe", "num_experts": 2, "expert_layers": [4], "shared_layers": [5, 6]},
    "omoe": {"kind": "omoe", "num_experts": 2, "expert_layers": [4, 3]},
    "ml_mmoe": {"kind": "ml_mmoe", "levels": [{"num_experts": n, "expert_layers": [4]} for n in (2, 3)]},
    "hard_sharing": {"kind": "hard_sharing", "layers": [5, 4]},
    "asymmetric_sharing": {"kind": "asymmetric_sharing", "layers": [4], "reads": {"vcr": ["ctr", "vcr"]}},
    "asymmetric_sharing, sum": {
        "kind": "asymmetric_sharing",
        "layers": [4],
        "reads": {"vcr": ["ctr"]} | {"ctr": ["vcr", "ctr"]},
    }
    | {"fuse": "sum"},
    "customized_sharing": {"kind": "customized_sharing", "layers": [5, 4]},
    "cross_stitch": {"kind": "cross_stitch", "layers": [5, 4]},
    "sluice": {"kind": "sluice", "width": 4, "num_layers": 3, "num_subspaces": 2},
    "mran": {"kind": "mran", "width": 4, "num_heads": 2},
}
# Where a token that is new changes what the others attend to, weights can be kept, but not outputs.
EXACT = [kind for kind in NETWORKS if kind != "mran"]
# The same with experts more, layers wider, or a bottom more that is read.
LARGER: dict[str, Declared] = {
    "ple": {"kind": "ple"}
    | {
        "levels": [LEVELS[0] | {"num_experts_per_task": 2, "num_shared_experts": 4, "expert_layers": [7, 6]}, LEVELS[1]]
    },
    "cgc": NETWORKS["cgc"] | {"num_experts_per_task": {"ctr": 3, "vcr": 1}, "num_shared_experts": 3},
    "ple, shared layers": {"kind": "ple", "levels": LEVELS, "shared_layers": [8]},
    "mmoe": NETWORKS["mmoe"] | {"num_experts": 5, "expert_layers": [6]},
    "mmoe, shared layers": NETWORKS["mmoe, shared layers"] | {"shared_layers": [7, 8]},
    "omoe": NETWORKS["omoe"] | {"num_experts": 3},
    "ml_mmoe": {"kind": "ml_mmoe", "levels": [{"num_experts": n, "expert_layers": [4]} for n in (4, 5)]},
    "hard_sharing": NETWORKS["hard_sharing"] | {"layers": [6, 7]},
    "asymmetric_sharing": NETWORKS["asymmetric_sharing"] | {"layers": [6]},
    "asymmetric_sharing, sum": NETWORKS["asymmetric_sharing, sum"] | {"layers": [5]},
    "customized_sharing": NETWORKS["customized_sharing"] | {"layers": [6, 7]},
    "cross_stitch": NETWORKS["cross_stitch"] | {"layers": [6, 7]},
    "sluice": NETWORKS["sluice"] | {"width": 8, "num_layers": 4},
    "mran": NETWORKS["mran"] | {"width": 6},
}


def _sections(network: Declared, **changed: Any) -> Declared:
    return {"network": network, "features": FEATURES, "tasks": TASKS, "towers": [5]} | changed


CHANGES: dict[str, Callable[[str], Declared]] = {
    "nothing": lambda kind: _sections(NETWORKS[kind]),
    "order": lambda kind: _sections(NETWORKS[kind], features=FEATURES[::-1], tasks=TASKS[::-1]),
    "tasks": lambda kind: _sections(NETWORKS[kind], tasks=MORE_TASKS),
    "features": lambda kind: _sections(NETWORKS[kind], features=MORE_FEATURES),
    "network": lambda kind: _sections(LARGER[kind]),
    "towers": lambda kind: _sections(NETWORKS[kind], towers=[8]),
    "slot bias": lambda kind: _sections(NETWORKS[kind], tasks=MORE_TASKS, around=SLOTS),
    "entire space": lambda kind: _sections(NETWORKS[kind], **COMPOSED),
    "all": lambda kind: _sections(
        NETWORKS[kind] if kind in ("cgc", "asymmetric_sharing") else LARGER[kind],  # which number tasks by name
        features=MORE_FEATURES,
        tasks=MORE_TASKS[::-1],
        towers=[6],
    ),
}


class Built:
    """A model in float64, its layout, and its dense parameters."""

    def __init__(self, declared: Declared, seed: int = 0) -> None:
        used = {feature["table"] for feature in declared["features"] if "table" in feature}
        tables = [{"name": name, "num_rows": 9, "dim": dim} for name, dim in TABLES.items() if name in used]
        parts = {key: declared[key] for key in ("features", "tasks")}
        self.schema = Schema.model_validate({"tables": tables, "slot": "slot"} | parts)
        self.network = TypeAdapter(NetworkConfig).validate_python(declared["network"])
        self.towers = declared["towers"]
        self.around = AroundConfig.model_validate(declared.get("around", {}))
        torch.manual_seed(seed)
        self.model: RankerTrain = build_ranker(self.schema, self.network, self.towers, 0.0, None, around=self.around)
        self.model.double().eval()
        for parameter in self.dense.values():  # those that start as constants too
            parameter.data.add_(torch.rand_like(parameter.data), alpha=0.1)

    @property
    def dense(self) -> dict[str, Tensor]:
        named = self.model.named_parameters()
        return {name: parameter.data for name, parameter in named if ".embedding_bags." not in name}

    @property
    def layout(self) -> Layout:
        return declared_layout(self.schema, self.network, self.towers, around=self.around)

    def outputs(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Each task's outputs, given the features' values by name."""
        dims = {table.name: table.dim for table in self.schema.tables}
        sparse, ranker = self.schema.sparse_features, self.model.ranker
        bags = [values[feature.name][:, : dims[feature.table]] for feature in sparse]
        keys, ones = [feature.name for feature in sparse], torch.ones(len(sparse) * NUM_ROWS, dtype=torch.long)
        pooled = KeyedTensor(keys, [bag.shape[1] for bag in bags], torch.cat(bags, dim=1))
        dense = torch.cat([values[feature.name][:, :1] for feature in self.schema.dense_features], dim=1)
        with mock.patch.object(ranker.embeddings, "forward", return_value=pooled):
            outputs = ranker(KeyedJaggedTensor(keys, values=ones, lengths=ones), dense)
        parts = outputs.split([task.num_classes or 1 for task in self.schema.tasks], dim=1)
        return dict(zip(self.schema.task_names, parts, strict=True))


def _values() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    names = [feature["name"] for feature in MORE_FEATURES]
    values = {name: torch.randn(NUM_ROWS, 4, generator=generator, dtype=torch.float64) for name in names}
    values["one"] = torch.ones(NUM_ROWS, 1, dtype=torch.float64)
    values["age"][::2] = torch.nan
    return values


def _inherit(old: Built, new: Built) -> LayoutChange:
    """Copy what both have; returns what that is."""
    matches = match_layouts(old.layout, new.layout)
    copy_matches(matches, old.dense, new.dense)
    return compare_layouts(old.layout, new.layout, matches)


def _grow(old: Built, new: Built) -> None:
    """Copy what both have, so that what is new has no effect on what is old: the rest of a row that is kept is 0, a
    gate never chooses a new expert; other new rows are anything.
    """
    anything = {name: tensor.clone() for name, tensor in new.dense.items()}
    for tensor in new.dense.values():
        tensor.fill_(torch.nan)
    _inherit(old, new)
    one = sum(dict(zip(TABLES, TABLES.values(), strict=True))[f.table] for f in new.schema.sparse_features)
    one += [feature.name for feature in new.schema.dense_features].index("one")
    for name, tensor in new.dense.items():
        is_new = tensor.isnan()
        is_new_row = is_new.all(-1, keepdim=True).expand_as(tensor)
        tensor[is_new] = 0
        if ".gates." in name:
            # A gate above a layer reads what relus give: no column of it is always 1, but some are above 0.
            tensor[is_new_row.all(-1), slice(one, one + 1) if tensor.shape[-1] > one else slice(None)] = -1e4
        elif ".slot_bias." not in name and ".first_order" not in name:  # which start from 0
            tensor[is_new_row] = anything[name][is_new_row]


@pytest.mark.parametrize("kind", EXACT)
@pytest.mark.parametrize("change", CHANGES)
def test_a_model_that_has_grown_gives_the_old_tasks_what_it_gave(kind: str, change: str) -> None:
    """Catches a column, row, expert, gate, bottom, column of a task or tower that lands where another belongs, or is
    lost; of every network.
    """
    old, new = Built(CHANGES["nothing"](kind)), Built(CHANGES[change](kind), seed=1)
    values = _values()
    before = old.outputs(values)
    _grow(old, new)
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
    there, again = _inherit(home, abroad), _inherit(abroad, back)
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
    values = _values()
    gone = {f["name"] for f in MORE_FEATURES} - {f["name"] for f in FEATURES}
    zeros = {name: torch.zeros_like(value) if name in gone else value for name, value in values.items()}
    _inherit(old, new)
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
    values, old_layout = _values(), old.layout
    before = old.outputs(values)
    right = assembly._columns

    def shifted(feature: Any, width: int) -> Any:
        labels = right(feature, width)
        return (*labels[1:], labels[0])

    monkeypatch.setattr(assembly, "_columns", shifted)
    for tensor in new.dense.values():
        tensor.fill_(0)
    copy_matches(match_layouts(old_layout, new.layout), old.dense, new.dense)
    after = new.outputs(values)
    assert all(not torch.allclose(after[task], before[task], rtol=0, atol=1e-3) for task in before)


# --- What is in words ---


def test_a_composed_task_s_own_tower_is_gone() -> None:
    """Catches the tower of a task that is kept as another one's, or for a task that has none any more."""
    tasks = [TASKS[0], {"name": "buy", "label": "e"}, TASKS[1]]
    rule = {"entire_space": {"towers": ["bought"], "probabilities": {"buy": {"given": "ctr", "then": "bought"}}}}
    found = _compared(_sections(NETWORKS["cgc"], tasks=tasks), _sections(NETWORKS["cgc"], tasks=tasks, around=rule))
    of_task = ["expert 0 of task {}, level 1", "gate of task {}, level 1", "tower of task {}", "output of task {}"]
    assert found.new == [text.format("bought") for text in of_task]
    assert found.dropped == [text.format("buy") for text in of_task]
    assert "tower of task ctr" in found.kept


def _compared(old: Declared, new: Declared) -> LayoutChange:
    return _inherit(Built(old), Built(new, seed=1))


def test_what_is_said_of_a_change() -> None:
    """Catches a report that says less than what was done, or more; and its numbers, counted by hand."""
    old = _sections(NETWORKS["cgc"])
    network = NETWORKS["cgc"] | {"num_shared_experts": 3}
    new = _sections(network, features=[*FEATURES, _ids("author")], tasks=[TASKS[0], CLASSES])
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
    old = Built(_sections(asymmetric))
    new = Built(_sections(asymmetric | {"reads": reads}, tasks=[TASKS[0], like, TASKS[1]]), seed=1)
    before = old.outputs(_values())
    _grow(old, new)
    after = new.outputs(_values())
    assert set(after) == {"ctr", "like", "vcr"}
    for task in before:
        torch.testing.assert_close(after[task], before[task], rtol=0, atol=1e-12)


def test_a_layer_in_between_makes_new_what_is_above_it() -> None:
    """Catches weights that are kept over units that are other ones: units of a layer that was put between."""
    old, new = _sections(NETWORKS["hard_sharing"]), _sections(NETWORKS["hard_sharing"] | {"layers": [5, 4, 4]})
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
        (_number("age", log1p=True), "input columns of feature age"),
        (_number("age", column="years"), "input columns of feature age"),
        (_number("age") | {"standardise": True}, "value of feature age where it is missing"),
    ],
)
def test_a_feature_of_another_meaning_is_another_feature(changed: Declared, group: str) -> None:
    """Catches weights that are kept for values of another scale, or of another column, under an old name."""
    found = _compared(_sections(NETWORKS["cgc"]), _sections(NETWORKS["cgc"], features=[*FEATURES[:3], changed]))
    assert group in found.new
    assert group in found.dropped


def test_a_task_of_another_kind_keeps_its_tower_but_not_its_output() -> None:
    """Catches an output that was a logit and is read as a value."""
    changed = [{"name": "ctr", "kind": "regression", "label": "a"}, TASKS[1]]
    found = _compared(_sections(NETWORKS["cgc"]), _sections(NETWORKS["cgc"], tasks=changed))
    assert found.new == ["output of task ctr"]
    assert found.dropped == ["output of task ctr"]
    assert found.num_new == 6


def test_experts_of_mmoe_are_the_shared_ones_of_cgc() -> None:
    """Catches names that differ where the mathematics does not: of no experts of the tasks' own, CGC is MMoE."""
    cgc = {"kind": "cgc", "expert_layers": [4], "num_experts_per_task": 0, "num_shared_experts": 2}
    old, new = Built(_sections(NETWORKS["mmoe"])), Built(_sections(cgc), seed=1)
    found = _inherit(old, new)
    assert (found.new, found.dropped) == ([], [])
    for task, expected in old.outputs(_values()).items():
        assert torch.equal(new.outputs(_values())[task], expected)


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
