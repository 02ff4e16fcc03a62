"""Models by their declaration, and the same ones grown."""

from collections.abc import Callable, Mapping
from typing import Any
from unittest import mock

import torch
from pydantic import TypeAdapter
from torch import Tensor
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor, KeyedTensor

from features.schema import Schema
from models.assembly import build_ranker, declared_layout
from models.network import NetworkConfig
from models.optional_parts import AroundConfig
from models.parameter_names import Layout, LayoutChange, compare_layouts, copy_matches, match_layouts
from models.ranker import RankerTrain

Declared = dict[str, Any]

TABLES = {"user": 4, "video": 2, "author": 3}
NUM_ROWS = 6


def ids_feature(name: str, table: str | None = None) -> Declared:
    return {"kind": "id", "name": name, "table": table or name}


def number_feature(name: str, **more: Any) -> Declared:
    return {"kind": "dense", "name": name, "standardise": False} | more


# `one` is 1 in every row, so that a gate can be told never to choose an expert.
FEATURES = [ids_feature("user"), number_feature("one"), ids_feature("video"), number_feature("age")]
MORE_FEATURES = [
    number_feature("plays"),
    ids_feature("author"),
    *FEATURES[:3],
    ids_feature("other_video", "video"),
    FEATURES[3],
]
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


def sections_of(network: Declared, **changed: Any) -> Declared:
    return {"network": network, "features": FEATURES, "tasks": TASKS, "towers": [5]} | changed


CHANGES: dict[str, Callable[[str], Declared]] = {
    "nothing": lambda kind: sections_of(NETWORKS[kind]),
    "order": lambda kind: sections_of(NETWORKS[kind], features=FEATURES[::-1], tasks=TASKS[::-1]),
    "tasks": lambda kind: sections_of(NETWORKS[kind], tasks=MORE_TASKS),
    "features": lambda kind: sections_of(NETWORKS[kind], features=MORE_FEATURES),
    "network": lambda kind: sections_of(LARGER[kind]),
    "towers": lambda kind: sections_of(NETWORKS[kind], towers=[8]),
    "slot bias": lambda kind: sections_of(NETWORKS[kind], tasks=MORE_TASKS, around=SLOTS),
    "entire space": lambda kind: sections_of(NETWORKS[kind], **COMPOSED),
    "all": lambda kind: sections_of(
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


def values_of_features() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    names = [feature["name"] for feature in MORE_FEATURES]
    values = {name: torch.randn(NUM_ROWS, 4, generator=generator, dtype=torch.float64) for name in names}
    values["one"] = torch.ones(NUM_ROWS, 1, dtype=torch.float64)
    values["age"][::2] = torch.nan
    return values


def inherit(old: Built, new: Built) -> LayoutChange:
    """Copy what both have; returns what that is."""
    matches = match_layouts(old.layout, new.layout)
    copy_matches(matches, old.dense, new.dense)
    return compare_layouts(old.layout, new.layout, matches)


def grow(old: Built, new: Built) -> None:
    """Copy what both have, so that what is new has no effect on what is old: the rest of a row that is kept is 0, a
    gate never chooses a new expert; other new rows are anything.
    """
    anything = {name: tensor.clone() for name, tensor in new.dense.items()}
    for tensor in new.dense.values():
        tensor.fill_(torch.nan)
    inherit(old, new)
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
