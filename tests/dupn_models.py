"""A small model with DUPN, batches for it, and the configuration of a train step with one."""

from typing import Any

import torch
from torch import Tensor
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor
from train_steps import make_config

from features.schema import Schema
from models.assembly import build_ranker
from models.optional_parts import AroundConfig
from models.ranker import Ranker
from models.sharing import HardSharingConfig
from models.tables import build_sequences, build_tables
from pipeline.config.load import parse_config
from pipeline.config.project import Config


def schema_of(**changed: Any) -> Schema:
    events = {"kind": "sequence", "max_length": 4, "pooling": "none"}
    return Schema.model_validate(
        {
            "tables": [
                {"name": "user", "num_rows": 6, "dim": 4},
                {"name": "video", "num_rows": 9, "dim": 4},
                {"name": "kind", "num_rows": 3, "dim": 8},
            ],
            "features": [
                {"kind": "dense", "name": "age", "standardise": False},
                events | {"name": "watched_kind", "table": "kind", "aligned_with": "watched"},
                {"kind": "id", "name": "user_id", "table": "user"},
                {"kind": "id", "name": "video_id", "table": "video"},
                events | {"name": "watched", "table": "video"},
                {"kind": "sequence", "name": "similar", "table": "video", "max_length": 3},
                {"kind": "dense", "name": "price", "standardise": False},
                {"kind": "id", "name": "asked", "table": "user"},
                {"kind": "dense", "name": "past", "standardise": False},
            ],
            "tasks": [
                {"name": "bought", "label": "b", "weight": "n"},
                {"name": "price_class", "kind": "multiclass", "num_classes": 3, "label": "p"},
                {"name": "click", "label": "c"},
                {"name": "dwell", "kind": "regression", "label": "d"},
            ],
        }
        | changed
    )


KEYS = ["watched_kind", "user_id", "video_id", "watched", "similar", "asked"]
NETWORK = HardSharingConfig(kind="hard_sharing", layers=[4])


def around_of(**changed: Any) -> AroundConfig:
    user = {
        "kind": "dupn",
        "events": {"item": "watched", "properties": ["watched_kind"]},
        "profile": ["age", "user_id"],
        "query": ["asked"],
        "hidden": 4,
        "attention": [5],
        "learning_to_rank": {"tasks": ["bought"], "features": ["past", "price"]},
        "alone": ["price_class"],
    }
    return AroundConfig.model_validate({"user": user | changed})


def ranker_of(schema: Schema, around: AroundConfig) -> Ranker:
    """On the CPU, in evaluation mode; with a user's side that is wide awake: where no ReLU turns, q has no effect."""
    torch.manual_seed(3)
    ranker = build_ranker(schema, NETWORK, [3], 0.0, None, around=around).ranker
    assert ranker.user is not None
    for parameter in ranker.user.dupn.parameters():
        parameter.data.normal_(0, 0.7)
    cpu = torch.device("cpu")
    ranker.embeddings, ranker.sequences = build_tables(schema, cpu), build_sequences(schema, cpu)
    return ranker.eval()


def random_batch(rows: int = 5, seed: int = 0) -> tuple[KeyedJaggedTensor, Tensor]:
    random = torch.Generator().manual_seed(seed)
    of_events = torch.randint(0, 4, (rows,), generator=random)
    one = torch.ones(rows, dtype=torch.long)
    lengths = [of_events, one, one, of_events, torch.randint(0, 3, (rows,), generator=random), one]
    sizes = [3, 6, 9, 9, 9, 6]
    pairs = zip(lengths, sizes, strict=True)
    values = [torch.randint(0, size, (int(of.sum()),), generator=random) for of, size in pairs]
    sparse = KeyedJaggedTensor(KEYS, torch.cat(values), lengths=torch.cat(lengths))
    return sparse, torch.randn(rows, 3, generator=random)


USER = {
    "kind": "dupn",
    "events": {"item": "watched", "properties": ["watched_kind", "watched_tab"]},
    "profile": ["user_id", "age"],
    "query": ["tab"],
    "hidden": 8,
    "attention": [8, 4],
    "learning_to_rank": {"tasks": ["share"], "features": ["price"]},
}
KINDS = {"user": "row_wise", "video": "row_wise", "kind": "row_wise", "tab": "row_wise"}


def make_dupn_config(sharding: dict[str, str] | None = None, **more: Any) -> Config:
    """The test's project with events: videos that share the candidate's table, and two properties of other widths."""
    data = make_config(**more).model_dump(mode="json", by_alias=True)
    schema = data["schema"]
    schema["tables"] += [{"name": "kind", "num_rows": 5, "dim": 4}, {"name": "tab", "num_rows": 7, "dim": 8}]
    unpooled = {"kind": "sequence", "max_length": 6, "pooling": "none"}
    aligned = unpooled | {"aligned_with": "watched"}
    user, video, _, age = schema["features"]
    schema["features"] = [
        user,
        video,
        unpooled | {"name": "watched", "table": "video"},
        aligned | {"name": "watched_kind", "table": "kind"},
        age,
        # The candidate's table is read by a pooled sequence, too.
        {"kind": "sequence", "name": "liked", "table": "video", "max_length": 6},
        {"kind": "id", "name": "tab", "table": "tab"},
        aligned | {"name": "watched_tab", "table": "tab"},
        {"kind": "dense", "name": "price", "standardise": False},
    ]
    data["model"]["user"] = USER
    data["sharding"]["tables"] = KINDS if sharding is None else sharding
    return parse_config(data, "test")
