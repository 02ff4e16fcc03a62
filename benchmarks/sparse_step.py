"""Lookup and update of sharded tables on one rank, over FBGEMM's bare table-batched embedding, in turns."""

import statistics
import tempfile
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from fbgemm_gpu.split_embedding_configs import SparseType
from fbgemm_gpu.split_table_batched_embeddings_ops_common import EmbeddingLocation, PoolingMode
from fbgemm_gpu.split_table_batched_embeddings_ops_training import (
    ComputeDevice,
    SplitTableBatchedEmbeddingBagsCodegen,
)
from torch import Tensor
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from benchmarks.one_rank import gloo_rank
from benchmarks.turns import seconds_in_turns
from benchmarks.workload import raw_config
from pipeline.config.load import parse_config
from pipeline.config.optimizer import TableOptimizerConfig
from pipeline.config.project import Config
from pipeline.trainer.optimizer import fused_arguments, fused_type
from pipeline.trainer.worker_setup import Groups, build_state, pin_arithmetic

_ROWS, _QUICK_ROWS = {"user": 1_000_000, "video": 200_000}, {"user": 100_000, "video": 20_000}
_TABLE_OF = {"user_id": "user", "video_id": "video", "watched": "video"}
_DIM, _HISTORY, _BATCHES, _TURNS = 32, 20, (1024, 4096), 9
_FLOAT_BYTES = 4


def run(quick: bool) -> dict[str, Any]:
    """Measure forward and backward of a batch of 2 ids and a history of 20, drawn uniformly.

    The step of the sharded tables is that of training without its head: distribution of ids, lookup, distribution of
    embeddings, and the fused update in the backward pass. The bare kernel gets ids and offsets in its own form.

    Args:
        quick: A tenth of the rows, and one batch size.
    """
    sizes = _QUICK_ROWS if quick else _ROWS
    batches = _BATCHES[:1] if quick else _BATCHES
    results: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as store, gloo_rank(f"{store}/store"):
        group = Groups.create(300).training
        for kind in ("row_wise", "table_wise"):
            config = _config(sizes, kind)
            pin_arithmetic(config.workers.deterministic)
            tables = build_state(config, group, torch.device("cpu")).model.module.ranker.embeddings
            bare = _bare_tables(sizes, config.optimizer.tables)
            turns = 3 if quick else _TURNS
            results += [{"sharding": kind} | _measure(tables, bare, sizes, batch, turns) for batch in batches]
    pin_arithmetic(False)
    return {"table_rows": sizes, "dim": _DIM, "threads": 1, "goal": 1.15, "results": results}


def _config(sizes: dict[str, int], kind: str) -> Config:
    raw = raw_config("unused")
    tables = [{"name": name, "num_rows": rows, "dim": _DIM} for name, rows in sizes.items()]
    schema, sharding = raw["schema"] | {"tables": tables}, {"tables": dict.fromkeys(sizes, kind)}
    return parse_config(raw | {"schema": schema, "sharding": sharding}, "benchmark")


def _bare_tables(sizes: dict[str, int], optimizer: TableOptimizerConfig) -> SplitTableBatchedEmbeddingBagsCodegen:
    """Return FBGEMM's module with the same tables, optimizer and precision."""
    arguments = fused_arguments(optimizer)
    names = list(sizes)
    return SplitTableBatchedEmbeddingBagsCodegen(
        [(rows, _DIM, EmbeddingLocation.HOST, ComputeDevice.CPU) for rows in sizes.values()],
        feature_table_map=[names.index(table) for table in _TABLE_OF.values()],
        pooling_mode=PoolingMode.SUM,
        optimizer=fused_type(optimizer),
        learning_rate=arguments["lr"],
        eps=arguments["eps"],
        weights_precision=SparseType.FP32,
        output_dtype=SparseType.FP32,
        device=torch.device("cpu"),
    )


def _measure(sharded: Any, bare: Any, sizes: dict[str, int], batch: int, turns: int) -> dict[str, Any]:
    ids, lengths = _draw(sizes, batch)
    jagged = KeyedJaggedTensor(keys=list(_TABLE_OF), values=ids, lengths=lengths)
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])
    gradient = torch.randn(batch, len(_TABLE_OF) * _DIM) / batch
    works: dict[str, Callable[[], object]] = {
        "sharded": partial(_step_sharded, sharded, jagged, gradient),
        "bare": partial(_step_bare, bare, ids, offsets, gradient),
    }
    seconds = seconds_in_turns(works, turns, repeats=max(1, 16_384 // batch))
    ratios = [mine / other for mine, other in zip(seconds["sharded"], seconds["bare"], strict=True)]
    floor = _bytes(len(ids), batch)
    return {
        "batch": batch,
        "lookups": len(ids),
        "turns": turns,
        "sharded_ms": round(1e3 * statistics.median(seconds["sharded"]), 3),
        "bare_ms": round(1e3 * statistics.median(seconds["bare"]), 3),
        "sharded_over_bare": round(statistics.median(ratios), 3),
        "floor_mb": round(floor / 1e6, 2),
        "bare_gb_per_s": round(floor / 1e9 / statistics.median(seconds["bare"]), 2),
    }


def _bytes(lookups: int, batch: int) -> int:
    """Count the bytes that a step has to move at least, if no row is in a cache.

    A looked-up row is read forward, and read and written backward, with one accumulator of 4 bytes; pooled embeddings
    are written once, their gradients read once.
    """
    return _FLOAT_BYTES * (lookups * (3 * _DIM + 2) + 2 * batch * len(_TABLE_OF) * _DIM)


def _draw(sizes: dict[str, int], batch: int) -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(1)
    counts = {"user_id": batch, "video_id": batch, "watched": batch * _HISTORY}
    ids = [torch.randint(sizes[_TABLE_OF[name]], (count,), generator=random) for name, count in counts.items()]
    lengths = [torch.full((batch,), count // batch, dtype=torch.int32) for count in counts.values()]
    return torch.cat(ids), torch.cat(lengths)


def _step_sharded(sharded: Any, jagged: KeyedJaggedTensor, gradient: Tensor) -> None:
    pooled = sharded(KeyedJaggedTensor(keys=jagged.keys(), values=jagged.values(), lengths=jagged.lengths()))
    pooled.values().backward(gradient)


def _step_bare(bare: Any, ids: Tensor, offsets: Tensor, gradient: Tensor) -> None:
    bare(ids, offsets).backward(gradient)
