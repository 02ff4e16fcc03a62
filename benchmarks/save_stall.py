"""Stall of training by a checkpoint: time of a background save over a memcpy of the same bytes."""

import multiprocessing
import os
import statistics
import tempfile
import time
from datetime import timedelta
from functools import partial
from typing import Any

import torch
import torch.distributed as dist

from pipeline.checkpoint.saver import Saver
from pipeline.config.checkpoint import CheckpointConfig
from pipeline.config.load import parse_config
from pipeline.config.project import Config
from pipeline.lineage.line import Line
from pipeline.lineage.records import Manifest
from pipeline.trainer.train_state import TrainState
from pipeline.trainer.worker_setup import Groups, build_state

_ROWS, _QUICK_ROWS = 4_000_000, 500_000  # of 64 floats, over both ranks
_RANKS = 2
_DAY = "2026-01-01"


def run(quick: bool) -> dict[str, Any]:
    """Save a sharded model of two ranks several times, each save after the last one's files are written.

    The stall is the training thread's part: the sum of the cursor over the ranks, and the copy. A save in the
    foreground is measured beside it. The first copy also allocates its memory from the system, and is reported apart.

    Args:
        quick: An eighth of the rows.
    """
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        Line.of(folder, "main").begin_attempt([_DAY], "a", lambda: None)
        rows, turns = (_QUICK_ROWS, 4) if quick else (_ROWS, 6)
        work = partial(_measure, folder=folder, rows=rows, turns=turns)
        with context.Pool(_RANKS, maxtasksperchild=1) as pool:
            found = pool.map(work, range(_RANKS), chunksize=1)
    slowest = max(found, key=lambda rank: rank["stall_s"])
    return {
        "ranks": _RANKS,
        "mib_per_rank": round(slowest["bytes"] / 2**20),
        "memcpy_s": round(slowest["memcpy_s"], 4),
        "stall_over_memcpy": round(slowest["stall_s"] / slowest["memcpy_s"], 2),
        "first_stall_over_memcpy": round(slowest["first_s"] / slowest["memcpy_s"], 2),
        "foreground_save_over_memcpy": round(slowest["foreground_s"] / slowest["memcpy_s"], 2),
    }


def _config(rows: int) -> Config:
    return parse_config(
        {
            "name": "save",
            "root": "unused",
            "logs": {"path": "unused"},
            "schema": {
                "tables": [{"name": "video", "num_rows": rows, "dim": 64}],
                "features": [{"kind": "id", "name": "video_id", "table": "video"}],
                "tasks": [{"name": "click", "label": "click"}],
            },
            "model": {
                "network": {"kind": "cgc", "expert_layers": [64], "num_experts_per_task": 1, "num_shared_experts": 1}
            },
            "optimizer": {"tables": {"learning_rate": 0.1}, "dense": {"learning_rate": 0.01}},
            "sharding": {"tables": {"video": "row_wise"}},
        },
        "benchmark",
    )


def _measure(rank: int, folder: str, rows: int, turns: int) -> dict[str, float]:
    """Return one rank's median seconds."""
    torch.set_num_threads(1)
    os.environ |= {"LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": str(_RANKS), "GLOO_SOCKET_IFNAME": "lo"}
    dist.init_process_group("gloo", f"file://{folder}/store", timedelta(minutes=5), rank=rank, world_size=_RANKS)
    groups, line = Groups.create(300), Line.of(folder, "main")
    state = build_state(_config(rows), groups.training, torch.device("cpu"))
    state.optimizer.materialise()
    copied = _memcpy(state, turns)
    background = _save(Saver(line, CheckpointConfig(keep=2), groups.saving), state, groups, range(turns + 1))
    foreground = CheckpointConfig(keep=2, background=False)
    waited = _save(Saver(line, foreground, groups.saving), state, groups, range(100, 103))
    dist.destroy_process_group()
    return copied | {
        "first_s": background[0],
        "stall_s": statistics.median(background[1:]),
        "foreground_s": statistics.median(waited),
    }


def _save(saver: Saver, state: TrainState, groups: Groups, steps: range) -> list[float]:
    seconds = []
    for step in steps:
        dist.barrier(group=groups.control)
        started = time.perf_counter()
        gathered: list[Any] = [None] * _RANKS
        dist.all_gather_object(gathered, {"seen": {0: 1}}, group=groups.control)
        fields: dict[str, Any] = {"day": _DAY, "step": step, "complete": False, "attempt": "0001", "files": {}}
        manifest = Manifest.model_construct(**fields) if dist.get_rank() == 0 else None
        saver.save(state.tensors(), f"checkpoints/{_DAY}/0001/{step:010d}", manifest)
        seconds.append(time.perf_counter() - started)
        saver.wait()
    return seconds


def _memcpy(state: TrainState, turns: int) -> dict[str, float]:
    """Copy as many bytes as this rank saves, into allocated memory."""
    blocks = [shard.tensor for part in _sharded(state) for shard in part.local_shards()]
    copies = [torch.zeros_like(block) for block in blocks]
    seconds = []
    for _ in range(turns):
        started = time.perf_counter()
        for block, copy in zip(blocks, copies, strict=True):
            copy.copy_(block)
        seconds.append(time.perf_counter() - started)
    return {"memcpy_s": statistics.median(seconds), "bytes": sum(b.numel() * b.element_size() for b in blocks)}


def _sharded(state: TrainState) -> list[Any]:
    parts = state.tensors()
    found = list(parts["model"].values()) + [t for of in parts["tables"].values() for t in of.values()]
    return [tensor for tensor in found if hasattr(tensor, "local_shards")]
