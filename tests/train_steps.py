"""The real train step on gloo ranks: rows, configurations, a run of steps, and comparisons of what runs trained."""

import contextlib
import functools
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
import torch.distributed as dist
from records import manifest_of

from features.encoded_rows import EncodedRows
from models.batch import LogBatch, RankingBatch
from models.ranker import Head
from models.tables import table_of
from pipeline.checkpoint.write import write_checkpoint
from pipeline.config.load import parse_config
from pipeline.config.project import Config
from pipeline.ingest.batcher import collate
from pipeline.ingest.cursor import BatchCursor, Span
from pipeline.storage.files import Storage
from pipeline.trainer.sharding import local_blocks, table_shardings
from pipeline.trainer.step_sync import CountedBatches
from pipeline.trainer.train_state import TrainState
from pipeline.trainer.worker_setup import Groups, build_optimizer, build_state, build_train_pipeline

NUM_STEPS, ROWS_PER_STEP = 20, 96
HALF = NUM_STEPS // 2  # of a run that is cut off, and of the one that goes on
FIRST, SECOND, NONE = range(HALF), range(HALF, NUM_STEPS), range(HALF, HALF)
SGD: dict[str, Any] = {"tables": "sgd", "rate": 150.0, "kind": "sgd", "learning_rate": 0.5}


def make_config(
    sharding: str | dict[str, str] = "row_wise",
    pipeline: str = "base",
    tables: str = "rowwise_adagrad",
    rate: float = 0.05,
    **dense: Any,
) -> Config:
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
                "tables": {"kind": tables, "learning_rate": rate},
                "dense": {"kind": "adam", "learning_rate": 0.05, "eps": 1e-4} | dense,
            },
            "sharding": {
                "tables": sharding if isinstance(sharding, dict) else {"user": sharding, "video": sharding},
                "train_pipeline": pipeline,
            },
        },
        "test",
    )


def skewed(random: np.random.Generator, step: int, num_rows: int) -> np.ndarray:
    """Who is in which space: all rows, and 30 % of them; late rows, and so the last rank's, seldom."""
    inside = random.random((num_rows, 3)) < 0.6 * np.linspace(1, 0, num_rows)[:, None]
    inside[:, 0] = True
    return inside


def extreme(random: np.random.Generator, step: int, num_rows: int) -> np.ndarray:
    """Who is in which space: the second is empty on all ranks but the first, and on that in every third step; the
    third is one row of the global batch.
    """
    inside = np.zeros((num_rows, 3), bool)
    inside[:, 0] = True
    inside[: num_rows // 4, 1] = (step % 3 != 1) & (random.random(num_rows // 4) < 0.3)
    inside[step * 37 % num_rows, 2] = True
    return inside


SPACES = {"skewed": skewed, "extreme": extreme}


def make_rows(step: int, num_rows: int, spaces: str) -> EncodedRows:
    """The encoded rows of a global batch."""
    random = np.random.default_rng(step)
    lengths = random.integers(0, 6, num_rows)
    offsets = np.concatenate(([0], np.cumsum(lengths))).astype(np.int32)
    single = np.arange(num_rows + 1, dtype=np.int32)
    labels = random.integers(0, 2, (num_rows, 3)).astype(np.float32)
    labels[:, 2] = random.random(num_rows)
    labels[~SPACES[spaces](random, step, num_rows)] = np.nan
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
class Run:
    """Model and batches that the ranks train.

    Args:
        config: The project's configuration.
        steps: Which of the fixed global batches, numbered on.
        spaces: Who is in which space.
        padding: Rows more in every batch of every rank, of padding.
        load: Folder of the checkpoint to begin with.
        save: Folder for one at the end.
        wide: Whether the dense part is computed in float64.
        batches_class: Gives the batches their denominators.
        patches: Attributes to replace meanwhile, by dotted name.
        device: `cpu`, or `cuda` with a GPU for each rank, and NCCL.
    """

    config: Config
    steps: range = range(NUM_STEPS)
    spaces: str = "skewed"
    padding: int = 0
    load: str | None = None
    save: str | None = None
    wide: bool = False
    batches_class: type[CountedBatches] = CountedBatches
    patches: dict[str, Any] = field(default_factory=dict)
    device: str = "cpu"

    def __call__(self, rank: int, num_ranks: int) -> dict[str, Any]:
        """Train on one rank; returns its blocks of every tensor, before and after, and the plan."""
        torch.set_num_threads(1)
        with contextlib.ExitStack() as stack:
            for name, value in self.patches.items():
                stack.enter_context(mock.patch(name, value))
            return self._train(rank, num_ranks)

    def _train(self, rank: int, num_ranks: int) -> dict[str, Any]:
        groups, device = self._begin(rank)
        state = build_state(self.config, groups.training, device)
        if self.wide:
            state = widen(self.config, state, groups.training)
        if self.load:
            state.load(Storage(self.load), "checkpoint", groups.control)
            state.optimizer.num_steps = self.steps.start
        before = blocks_of(state.tensors())
        self._step(state, groups, functools.partial(self.make_batch, rank, num_ranks), device)
        if self.save:
            manifest = manifest_of() if rank == 0 else None
            write_checkpoint(state.tensors(), Storage(self.save), "checkpoint", manifest, groups.control)
        return {"before": before, "after": blocks_of(state.tensors()), "plan": table_shardings(state.model)}

    def _begin(self, rank: int) -> tuple[Groups, torch.device]:
        groups = Groups.create(60)
        if self.device == "cpu":
            return groups, torch.device("cpu")
        device = torch.device("cuda", rank)
        torch.cuda.set_device(device)
        return replace(groups, training=dist.new_group(backend="nccl")), device

    def _step(
        self,
        state: TrainState,
        groups: Groups,
        make_batch: Callable[[int], LogBatch],
        device: torch.device = torch.device("cpu"),  # noqa: B008 - it cannot change
    ) -> None:
        pipeline = build_train_pipeline(self.config, state, device)
        tasks = len(self.config.log_schema.tasks)
        ones, zeros = torch.ones(tasks), torch.zeros(tasks)
        batches = self.batches_class(make_batch, self.steps.start, lambda _: ones, lambda: zeros, groups.counts)
        for _ in self.steps:
            pipeline.progress(batches)
        with pytest.raises(StopIteration):
            pipeline.progress(batches)

    def make_rows(self, step: int) -> EncodedRows:
        """The encoded rows of a global batch."""
        return make_rows(step, ROWS_PER_STEP, self.spaces)

    def make_batch(self, rank: int, num_ranks: int, step: int) -> LogBatch:
        """One rank's share of a global batch."""
        share = ROWS_PER_STEP // num_ranks
        slices = []
        if step in self.steps:
            slices = [(self.make_rows(step), rank * share, (rank + 1) * share)]
        batch = collate(self.config.log_schema, slices, share + self.padding)
        spans = (Span(0, 0, np.arange(share)),) if slices else ()
        batch.cursor = BatchCursor(step, spans, batch.in_space.sum(0).numpy())
        return batch


def widen(config: Config, state: TrainState, group: Any) -> TrainState:
    """The same model with its dense part in float64, so that only the tables are rounded to float32."""
    for name, parameter in state.model.named_parameters():
        if table_of(name) is None:
            parameter.data, parameter.grad = parameter.data.double(), None
    (head,) = (module for module in state.model.modules() if isinstance(module, Head))
    head.register_forward_pre_hook(lambda _, inputs: (inputs[0].double(),))
    return replace(state, optimizer=build_optimizer(config, state.model, group))


class LocalDenominators(CountedBatches):
    """The negative control: every rank's loss is a mean over its own rows, as masked means and DDP make it."""

    def __next__(self) -> RankingBatch:
        batch = super().__next__()
        batch.denominators = (batch.in_space * batch.weight).sum(0)
        return batch


def blocks_of(parts: dict[str, Any]) -> dict[str, list[tuple[tuple[int, int], torch.Tensor]]]:
    """Copies of the blocks that this rank holds, by part and name."""
    found = {}
    for part, tensors in parts.items():
        flat = (
            tensors.items() if part == "model" else [(f"{n}/{k}", t) for n, s in tensors.items() for k, t in s.items()]
        )
        for name, tensor in flat:
            found[f"{part}:{name}"] = [
                (offset, block.cpu().clone())
                for block, offset in local_blocks(tensor)
                if isinstance(block, torch.Tensor)
            ]
    return found


def whole(results: list[dict[str, Any]], when: str) -> dict[str, torch.Tensor]:
    """Put the ranks' blocks together; a table's accumulators that are one a row become a column."""
    tensors: dict[str, torch.Tensor] = {}
    for name in dict.fromkeys(name for result in results for name in result[when]):
        blocks = [block for result in results for block in result[when].get(name, [])]
        if table_of(name.replace("/", ".")) is None:
            tensors[name] = blocks[0][1]
            continue
        unique = {offset: block.view(len(block), -1) for offset, block in blocks}
        rows = sorted({offset[0] for offset in unique})
        columns = sorted({offset[1] for offset in unique})
        tensors[name] = torch.cat([torch.cat([unique[(row, column)] for column in columns], 1) for row in rows])
    return tensors


def largest_difference(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor], part: str) -> float:
    names = [name for name in first if name.startswith(part)]
    return max((first[name].double() - second[name].double()).abs().max().item() for name in names)


def relative_difference(first: list[dict[str, Any]], second: list[dict[str, Any]]) -> float:
    """The largest difference of a weight after training, as a share of the largest weight."""
    expected, found = whole(first, "after"), whole(second, "after")
    assert {name for name in expected if "model:" in name} == {name for name in found if "model:" in name}
    largest = max(tensor.abs().max().item() for name, tensor in expected.items() if name.startswith("model:"))
    return largest_difference(expected, found, "model:") / largest


def assert_tables_moved(results: list[dict[str, Any]]) -> None:
    start, end = whole(results, "before"), whole(results, "after")
    for name in (name for name in start if table_of(name) and name.startswith("model:")):
        assert (end[name] - start[name]).abs().max() > 0.1, f"{name} has not moved: the test would see nothing"


def assert_equal(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> None:
    assert set(first) == set(second)
    different = [name for name, tensor in first.items() if not torch.equal(tensor, second[name])]
    assert different == []
