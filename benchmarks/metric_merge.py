"""CPU time of merging metrics over 4 ranks, one rank per metric, over that of a merge of all metrics on every rank."""

import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import spawn

from features.tasks import TaskConfig
from pipeline.evaluation.metrics import TaskMetrics
from pipeline.evaluation.rank_merge import results_over_ranks

_RANKS, _TURNS = 4, 3
_VALUES, _QUICK_VALUES = 50, 12
_ROWS = 50_000  # more distinct scores than a slice's sketch has bins
_TASK = TaskConfig(name="ctr", label="click")
_AT_512 = {"ranks": 512, "metrics": 200}  # 50 values of a slice, 4 tasks


def run(quick: bool) -> dict[str, Any]:
    """Merge the metrics of the values of a slice in both ways, in turns.

    Args:
        quick: A quarter of the values.
    """
    values = _QUICK_VALUES if quick else _VALUES
    with tempfile.TemporaryDirectory() as folder:
        spawn(_on_a_rank, args=(folder, values), nprocs=_RANKS)
        found = [torch.load(Path(folder, str(rank)), weights_only=True) for rank in range(_RANKS)]
    seconds = {
        name: statistics.median(sum(turn) for turn in zip(*(one[name] for one in found), strict=True))
        for name in ("everywhere", "one_each")
    }
    state = found[0]["bytes_of_a_state"]
    ranks, metrics = _AT_512["ranks"], _AT_512["metrics"]
    return {
        "ratio": round(seconds["one_each"] / seconds["everywhere"], 3),
        "cpu_seconds_of_all_ranks": {name: round(value, 2) for name, value in seconds.items()},
        "at_512_ranks_and_200_metrics": {
            "merges_of_a_rank": {"everywhere": ranks * metrics, "one_each": ranks * -(-metrics // ranks)},
            "megabytes_received": {
                "everywhere": round((ranks - 1) * metrics * state / 1e6),
                "one_each": round((ranks - 1) * -(-metrics // ranks) * state / 1e6),
            },
        },
    }


def _on_a_rank(rank: int, folder: str, values: int) -> None:
    """Merge in both ways, and save the CPU seconds of this rank per turn."""
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=_RANKS)
    assert dist.group.WORLD is not None
    metrics = [_metrics(rank * values + value) for value in range(values)]
    seconds: dict[str, list[float]] = {"everywhere": [], "one_each": []}
    for _ in range(_TURNS):
        for name, merge in (("everywhere", _everywhere), ("one_each", _one_each)):
            dist.barrier()
            started = time.process_time()
            merge(metrics, dist.group.WORLD)
            seconds[name].append(time.process_time() - started)
    torch.save(seconds | {"bytes_of_a_state": metrics[0].state().nbytes}, Path(folder, str(rank)))
    dist.destroy_process_group()


def _metrics(seed: int) -> TaskMetrics:
    random = torch.Generator().manual_seed(seed)
    scores = torch.randn(_ROWS, generator=random)
    labels = (torch.rand(_ROWS, generator=random) < scores.sigmoid()).float()
    found = TaskMetrics(_TASK, 2**14)
    found.update(scores.sigmoid(), scores, labels, torch.ones(_ROWS, dtype=torch.bool), torch.ones(_ROWS))
    return found


def _one_each(metrics: list[TaskMetrics], group: dist.ProcessGroup) -> list[Any]:
    return results_over_ranks(metrics, group, TaskMetrics.result)


def _everywhere(metrics: list[TaskMetrics], group: dist.ProcessGroup) -> list[Any]:
    """Merge as before: all ranks gather and merge all states, one metric after the other."""
    found = []
    for metric in metrics:
        state = metric.state()
        sizes = [torch.empty(1, dtype=torch.int64) for _ in range(group.size())]
        dist.all_gather(sizes, torch.tensor([len(state)]), group=group)
        longest = max(int(size) for size in sizes)
        gathered = [torch.empty(longest, dtype=state.dtype) for _ in sizes]
        dist.all_gather(gathered, torch.nn.functional.pad(state, (0, longest - len(state))), group=group)
        states = [one[: int(size)] for one, size in zip(gathered, sizes, strict=True)]
        found.append(metric.merged(states).result())
    return found
