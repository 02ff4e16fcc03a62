"""Metrics merged over ranks, each by one of them: bit for bit those of a merge in the order of the ranks."""

from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.distributed as dist

from features.tasks import TaskConfig
from pipeline.evaluation.metrics import TaskMetrics
from pipeline.evaluation.rank_merge import results_over_ranks

CTR, VCR, RATING = (
    TaskConfig(name="ctr", label="click"),
    TaskConfig(name="vcr", label="share", kind="regression"),
    TaskConfig(name="rating", label="stars", kind="multiclass", num_classes=3),
)
TASKS = [CTR, VCR, RATING, CTR, VCR, CTR, CTR]  # more than twice the number of ranks, and no multiple of it


def metrics_of(rank: int) -> list[TaskMetrics]:
    """Return the metrics of a rank's rows; later ranks have fewer, and the last metric has rows of rank 0 alone.

    The scores of the first metric are more than a sketch has bins, so that the order of merging shows in its bits.
    """
    found = []
    for place, task in enumerate(TASKS):
        metrics = TaskMetrics(task)
        random = torch.Generator().manual_seed(100 * rank + place)
        num_rows = 60_000 // (rank + 1) if place == 0 else 300 // (rank + 1)
        if place < len(TASKS) - 1 or rank == 0:
            scores = torch.randn(num_rows, *([3] if task is RATING else []), generator=random)
            predictions = scores.softmax(1) if task is RATING else scores.sigmoid()
            labels = torch.randint(0, 2, (num_rows,), generator=random).float()
            everyone, weight = torch.ones(num_rows, dtype=torch.bool), torch.rand(num_rows, generator=random)
            metrics.update(predictions, scores, labels, everyone, weight)
        found.append(metrics)
    return found


@dataclass(frozen=True)
class Merging:
    """Results on a rank, with the numbers of states that it merged and of bytes that it received."""

    def __call__(self, rank: int, num_ranks: int) -> Any:
        counts, merge, recv = {"merges": 0, "bytes": 0}, TaskMetrics.merge, dist.recv
        metrics = metrics_of(rank)
        before = [one.state() for one in metrics]

        def counted_merge(self: TaskMetrics, other: TaskMetrics) -> None:
            counts["merges"] += 1
            merge(self, other)

        def counted_recv(tensor: torch.Tensor, **options: Any) -> int:
            counts["bytes"] += tensor.nbytes
            return recv(tensor, **options)

        assert dist.group.WORLD is not None
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(TaskMetrics, "merge", counted_merge)
            patch.setattr(dist, "recv", counted_recv)
            found = results_over_ranks(metrics, dist.group.WORLD, result_of)
        kept = all(torch.equal(one.state(), state) for one, state in zip(metrics, before, strict=True))
        return found, counts, kept


def result_of(metrics: TaskMetrics) -> Any:
    return metrics.result(), metrics.calibration_curve()


def expected(num_ranks: int) -> list[Any]:
    """Return the results of all states, merged one after the other in the order of the ranks."""
    of_ranks, found = [metrics_of(rank) for rank in range(num_ranks)], []
    for place, task in enumerate(TASKS):
        whole = TaskMetrics(task)
        for metrics in of_ranks:
            whole.merge(TaskMetrics.from_state(task, metrics[place].state()))
        found.append(result_of(whole))
    return found


@pytest.mark.parametrize("num_ranks", [1, 2, 3])
def test_results_are_those_of_a_merge_in_order(run_ranks: Any, num_ranks: int) -> None:
    """Catches states that are merged in the order of their arrival, results that go to another metric, and padding."""
    wanted = expected(num_ranks)
    for found, _, kept in run_ranks(Merging(), num_ranks):
        assert found == wanted
        assert kept


def test_a_rank_merges_its_own_metrics_alone(run_ranks: Any) -> None:
    """Catches a rank that receives or merges the states of all metrics, as all ranks once did."""
    sizes = [[one.state().nbytes for one in metrics_of(rank)] for rank in range(3)]
    for rank, (_, counts, _) in enumerate(run_ranks(Merging(), 3)):
        own = range(rank, len(TASKS), 3)
        assert counts["merges"] == 3 * len(own)
        assert counts["bytes"] == sum(sizes[other][place] for other in range(3) if other != rank for place in own)


def test_no_metric(run_ranks: Any) -> None:
    """Catches ranks that wait for each other where there is nothing to merge."""
    assert run_ranks(Nothing(), 2) == [[], []]


class Nothing:
    """No metric on a rank."""

    def __call__(self, rank: int, num_ranks: int) -> list[Any]:
        assert dist.group.WORLD is not None
        return results_over_ranks([], dist.group.WORLD, result_of)
