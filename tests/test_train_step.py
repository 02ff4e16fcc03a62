"""The real train step on 1, 2 and 3 gloo ranks: the number of workers is a matter of speed alone."""

from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch

from features.encoding import EncodedRows
from models.batch import RankingBatch
from pipeline.batcher import collate
from pipeline.config import Config, parse_config
from pipeline.counts import CountedBatches
from pipeline.cursor import BatchCursor
from pipeline.sharding import local_blocks, table_shardings
from pipeline.worker import Groups, build_state, build_train_pipeline

NUM_STEPS, ROWS_PER_STEP = 20, 96


def make_config(sharding: str = "row_wise", pipeline: str = "base", tables: str = "rowwise_adagrad") -> Config:
    """Three tasks, two tables of which one is shared, every kind of feature."""
    return parse_config(
        {
            "name": "step",
            "root": "unused",
            "seed": 3,
            "logs": {"path": "unused"},
            "schema": {
                "tables": [
                    {"name": "user", "num_rows": 31, "dim": 8, "init": {"kind": "normal", "scale": 0.1}},
                    {"name": "video", "num_rows": 50, "dim": 8},
                ],
                "features": [
                    {"kind": "id", "name": "user_id", "table": "user"},
                    {"kind": "id", "name": "video_id", "table": "video"},
                    {"kind": "sequence", "name": "watched", "table": "video", "max_length": 6},
                    {"kind": "dense", "name": "age", "standardise": False},
                ],
                "tasks": [
                    {"name": "click", "label": "click"},
                    {"name": "share", "label": "share", "space": "click"},
                    {"name": "completion", "kind": "regression", "label": "ratio", "space": "click"},
                ],
            },
            "model": {
                "network": {
                    "kind": "ple",
                    "levels": [
                        {"expert_layers": [16], "num_experts_per_task": 1, "num_shared_experts": 2},
                        {"expert_layers": [8], "num_experts_per_task": 1, "num_shared_experts": 1},
                    ],
                },
                "towers": [8],
            },
            "optimizer": {
                "tables": {"kind": tables, "learning_rate": 0.05},
                "dense": {"kind": "adam", "learning_rate": 0.05, "eps": 1e-4},
            },
            "sharding": {"tables": {"user": sharding, "video": sharding}, "train_pipeline": pipeline},
        },
        "test",
    )


def make_rows(seed: int, num_rows: int, spaces: tuple[float, ...] = (1.0, 0.3, 0.3)) -> EncodedRows:
    """Encoded rows; the spaces of the tasks hold a share of the rows each, the last rows of a step fewer."""
    random = np.random.default_rng(seed)
    lengths = random.integers(0, 6, num_rows)
    offsets = np.concatenate(([0], np.cumsum(lengths))).astype(np.int32)
    single = np.arange(num_rows + 1, dtype=np.int32)
    labels = random.integers(0, 2, (num_rows, 3)).astype(np.float32)
    labels[:, 2] = random.random(num_rows)
    for task, share in enumerate(spaces):
        # Skewed on purpose: late rows, and so the last rank, are seldom in the space of tasks 2 and 3.
        inside = random.random(num_rows) < share * (1.0 if task == 0 else 2 * np.linspace(1, 0, num_rows))
        labels[~inside, task] = np.nan
    dense = np.where(random.random((num_rows, 1)) < 0.2, np.nan, random.normal(size=(num_rows, 1)))
    return EncodedRows(
        ids=[
            random.integers(0, 31, num_rows).astype(np.int32),
            random.integers(0, 50, num_rows).astype(np.int32),
            random.integers(0, 50, offsets[-1]).astype(np.int32),
        ],
        offsets=[single, single, offsets],
        dense=dense.astype(np.float32),
        labels=labels,
        weights=None,
        slots=np.zeros(num_rows, np.int32),
        rows=np.arange(num_rows, dtype=np.int32),
        truth=None,
    )


@dataclass(frozen=True)
class Steps:
    """The share that one of W ranks has of fixed global batches, with `padding` rows more in every batch."""

    config: Config
    rank: int
    num_ranks: int
    padding: int = 0

    def __call__(self, step: int) -> RankingBatch:
        share = ROWS_PER_STEP // self.num_ranks
        slices = []
        if step < NUM_STEPS:
            slices = [(make_rows(step, ROWS_PER_STEP), self.rank * share, (self.rank + 1) * share)]
        batch = collate(self.config.log_schema, slices, share + self.padding)
        spans: Any = ()
        batch.cursor = BatchCursor(step, spans, batch.in_space.sum(0).numpy())
        object.__setattr__(batch.cursor, "spans", (_Span(share),) if slices else ())
        return batch


@dataclass(frozen=True)
class _Span:
    num_rows: int

    @property
    def rows(self) -> range:
        return range(self.num_rows)


class LocalDenominators(CountedBatches):
    """The negative control: every rank's loss is a mean over its own rows, as masked means and DDP make it."""

    def __next__(self) -> RankingBatch:
        batch = super().__next__()
        batch.denominators = (batch.in_space * batch.weight).sum(0)
        return batch


def train(
    rank: int, num_ranks: int, config: Config, batches_class: type[CountedBatches] = CountedBatches, padding: int = 0
) -> dict[str, Any]:
    """Train NUM_STEPS steps on one rank; returns this rank's blocks of every tensor, before and after."""
    torch.set_num_threads(1)
    groups = Groups.create(60)
    state = build_state(config, groups.training, torch.device("cpu"))
    pipeline = build_train_pipeline(config, state, torch.device("cpu"))
    tasks = len(config.log_schema.tasks)
    steps = Steps(config, rank, num_ranks, padding)
    batches = batches_class(steps, 0, lambda step: torch.ones(tasks), lambda: torch.zeros(tasks), groups.counts)
    before = blocks_of(state.tensors())
    count = 0
    while True:
        try:
            pipeline.progress(batches)
        except StopIteration:
            break
        count += 1
    assert count == NUM_STEPS
    return {"before": before, "after": blocks_of(state.tensors()), "plan": table_shardings(state.model)}


def blocks_of(parts: dict[str, Any]) -> dict[str, list[tuple[tuple[int, int], torch.Tensor]]]:
    """Copies of the blocks that this rank holds, by part and name."""
    found = {}
    for part, tensors in parts.items():
        flat = (
            tensors.items() if part == "model" else [(f"{n}/{k}", t) for n, s in tensors.items() for k, t in s.items()]
        )
        for name, tensor in flat:
            found[f"{part}:{name}"] = [
                (offset, block.clone()) for block, offset in local_blocks(tensor) if isinstance(block, torch.Tensor)
            ]
    return found


def whole(results: list[dict[str, Any]], when: str) -> dict[str, torch.Tensor]:
    """Put the ranks' blocks together."""
    tensors: dict[str, torch.Tensor] = {}
    for name in results[0][when]:
        blocks = [block for result in results for block in result[when].get(name, [])]
        if blocks[0][1].ndim < 2 or "embedding_bags" not in name:
            tensors[name] = blocks[0][1]
            continue
        unique = {offset: block for offset, block in blocks}
        rows = sorted({offset[0] for offset in unique})
        columns = sorted({offset[1] for offset in unique})
        tensors[name] = torch.cat([torch.cat([unique[(row, column)] for column in columns], 1) for row in rows])
    return tensors


def largest_difference(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor], part: str) -> float:
    names = [name for name in first if name.startswith(part)]
    return max((first[name].double() - second[name].double()).abs().max().item() for name in names)


@pytest.fixture(scope="module")
def one_rank(run_ranks: Any) -> list[dict[str, Any]]:
    return run_ranks(partial(train, config=make_config()), 1)


@pytest.mark.parametrize("num_ranks", [2, 3])
@pytest.mark.parametrize("sharding", ["row_wise", "table_wise"])
def test_ranks_agree(run_ranks: Any, one_rank: list[dict[str, Any]], num_ranks: int, sharding: str) -> None:
    """Catches a loss, a gradient division or an optimizer that depends on how rows are spread over ranks."""
    results = run_ranks(partial(train, config=make_config(sharding)), num_ranks)
    assert {chosen["sharding_type"] for chosen in results[0]["plan"].values()} == {sharding}
    expected, found = whole(one_rank, "after"), whole(results, "after")
    start = whole(one_rank, "before")
    for name in (name for name in expected if "embedding_bags" in name and name.startswith("model")):
        assert (expected[name] - start[name]).abs().max() > 0.1, f"{name} has not moved: the test would see nothing"
    assert largest_difference(expected, found, "model") < 1e-6


def test_per_rank_denominators_differ(run_ranks: Any, one_rank: list[dict[str, Any]]) -> None:
    """The negative control of `test_ranks_agree`: a mean per rank, averaged over ranks, is another loss."""
    results = run_ranks(partial(train, config=make_config(), batches_class=LocalDenominators), 3)
    assert largest_difference(whole(one_rank, "after"), whole(results, "after"), "model") > 1e-3


def test_padding_changes_nothing(run_ranks: Any, one_rank: list[dict[str, Any]]) -> None:
    """Catches padding rows that are counted, pooled or regularised: mean-pooled sequences and dense values included."""
    results = run_ranks(partial(train, config=make_config(), padding=32), 1)
    assert largest_difference(whole(one_rank, "after"), whole(results, "after"), "model") < 1e-6


def test_start_does_not_depend_on_the_ranks(run_ranks: Any, one_rank: list[dict[str, Any]]) -> None:
    """Catches tables that are initialised per shard."""
    results = run_ranks(partial(train, config=make_config("table_wise")), 2)
    first, second = whole(one_rank, "before"), whole(results, "before")
    assert all(torch.equal(first[name], second[name]) for name in first if name.startswith("model"))


def test_train_pipelines_are_bit_equal(run_ranks: Any) -> None:
    """Catches a pipeline that looks rows up before the last step's update, or steps batches in another order."""
    base = whole(run_ranks(partial(train, config=make_config(pipeline="base")), 2), "after")
    sparse = whole(run_ranks(partial(train, config=make_config(pipeline="sparse_dist")), 2), "after")
    assert set(base) == set(sparse)
    for name, tensor in base.items():
        assert torch.equal(tensor, sparse[name]), name


@pytest.mark.parametrize(("sharding", "tables"), [("column_wise", "adagrad"), ("data_parallel", "rowwise_adagrad")])
def test_other_shardings_agree_with_honest_optimizers(run_ranks: Any, sharding: str, tables: str) -> None:
    """Catches a column-wise or data-parallel table that trains with another optimizer than the declared one."""
    expected = whole(run_ranks(partial(train, config=make_config("row_wise", tables=tables)), 1), "after")
    results = run_ranks(partial(train, config=make_config(sharding, tables=tables)), 2)
    assert {chosen["sharding_type"] for chosen in results[0]["plan"].values()} == {sharding}
    assert largest_difference(expected, whole(results, "after"), "model") < 1e-5
