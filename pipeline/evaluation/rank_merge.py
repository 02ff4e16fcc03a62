"""Metrics of all ranks merged, each by one rank: metric i by rank i mod W, so that no rank merges them all."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Protocol, Self, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor


class Mergeable(Protocol):
    """Metric whose state is one tensor."""

    def state(self) -> Tensor:
        """Return the state, float64 of shape (N,), N above 0; it may differ from rank to rank."""
        ...

    def merged(self, states: Iterable[Tensor]) -> Self:
        """Return a metric of the same kind with the rows of the states alone, added in their order."""
        ...


Metric = TypeVar("Metric", bound=Mergeable)
Result = TypeVar("Result")


def results_over_ranks(
    metrics: Sequence[Metric], group: dist.ProcessGroup, result: Callable[[Metric], Result]
) -> list[Result]:
    """Return a result of each metric over the rows of all ranks; collective, and bit-equal on every rank.

    The ranks work in rounds of W metrics. A rank merges one metric of a round and receives one state at a time. The
    states are merged in the order of the ranks. All ranks then gather the results, not the states.

    Args:
        metrics: The same metrics in the same order on every rank; they stay as they are.
        group: A group that moves CPU tensors (gloo).
        result: Function of a merged metric; its result is small and can be pickled.

    Returns:
        One per metric, in the same order.
    """
    rank, num_ranks = group.rank(), group.size()
    mine: list[Result] = []
    for first in range(0, len(metrics), num_ranks):
        among = metrics[first : first + num_ranks]
        states = [metric.state() for metric in among]
        sizes = _sizes(states, group)
        sent = [dist.isend(state, group=group, group_dst=place) for place, state in enumerate(states) if place != rank]
        if rank < len(among):
            mine.append(result(among[rank].merged(_received(states[rank], sizes, group))))
        for work in sent:
            assert work is not None
            work.wait()
    gathered: list[Any] = [None] * num_ranks
    dist.all_gather_object(gathered, mine, group=group)
    return [gathered[place % num_ranks][place // num_ranks] for place in range(len(metrics))]


def _sizes(states: Sequence[Tensor], group: dist.ProcessGroup) -> list[int]:
    """Return the length of every rank's state of this rank's metric, by rank; 0 for a rank without a metric."""
    sent = torch.zeros(group.size(), dtype=torch.int64)
    sent[: len(states)] = torch.tensor([len(state) for state in states])
    received = torch.empty_like(sent)
    dist.all_to_all_single(received, sent, group=group)
    return received.tolist()


def _received(own: Tensor, sizes: Sequence[int], group: dist.ProcessGroup) -> Iterator[Tensor]:
    """Yield every rank's state of this rank's metric, in the order of the ranks."""
    for source, size in enumerate(sizes):
        if source == group.rank():
            yield own
            continue
        state = torch.empty(size, dtype=own.dtype)
        dist.recv(state, group=group, group_src=source)
        yield state
