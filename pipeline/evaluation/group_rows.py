"""Rows kept by user or request, for metrics within each of them: GAUC, NDCG and hit rate of the binary tasks.

A group's rows may be on any rank and anywhere in the day. Each rank writes its rows to a file of its own, sorted by
partition of the group's hash. At the end the partitions go to the ranks one after the other, so that a rank holds one
partition at a time, with all rows of its groups. The figures are exact, whatever the size of the day.
"""

import tempfile
from collections.abc import Iterator, Sequence
from functools import reduce
from operator import add
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from features.hashing import mix64, rows_of
from features.measured_columns import NO_GROUP
from features.tasks import TaskConfig
from models.batch import RankingBatch
from pipeline.config.evaluation import GroupedConfig
from pipeline.evaluation.grouped import GroupedSums, RankingSums, grouped_auc, grouped_ranking

PARTITION_ROWS = 2**20
"""Number of rows that a partition should have; a rank holds some three times their bytes."""

_ROWS_AT_ONCE = 2**18  # number of rows that a rank holds before it writes them
_VALUES = ("score", "label", "weight")


class GroupRows:
    """Rows of the binary tasks by group.

    Args:
        config: Groups and places.
        tasks: The tasks, in order.
        num_rows: Number of rows that all ranks will add, about.
        num_ranks: Number of ranks.
        partition_rows: Number of rows that a partition should have.
    """

    def __init__(
        self,
        config: GroupedConfig,
        tasks: Sequence[TaskConfig],
        num_rows: int,
        num_ranks: int,
        partition_rows: int = PARTITION_ROWS,
    ) -> None:
        self._config, self._tasks = config, tasks
        self._places = [place for place, task in enumerate(tasks) if task.kind == "binary"]
        self._num_partitions = num_ranks * -(-max(num_rows, 1) // (num_ranks * partition_rows))
        values = [(name, np.float32, (len(self._places),)) for name in _VALUES]
        self._record = np.dtype([("group", np.int64), *values])
        self._waiting: list[np.ndarray] = []
        self._num_waiting = 0
        self._file: Any = None
        self._pieces: list[np.ndarray] = []  # offsets in rows of the partitions of each written piece

    def update(self, batch: RankingBatch, scores: Sequence[Tensor]) -> None:
        """Add a batch on the host.

        Args:
            batch: The rows.
            scores: Raw output of each task, shape (B,) for binary tasks.
        """
        if batch.groups is None:
            return
        in_space = batch.in_space[:, self._places]
        chosen = (batch.groups != int(NO_GROUP)) & in_space.any(1)
        records = np.empty(int(chosen.sum()), self._record)
        records["group"] = batch.groups[chosen].numpy()
        labels = torch.where(in_space, batch.labels[:, self._places], torch.nan)
        found = {"label": labels, "weight": batch.weight[:, self._places]}
        found["score"] = torch.stack([scores[place] for place in self._places], dim=1)
        for name, tensor in found.items():
            records[name] = tensor[chosen].to(torch.float32).numpy()
        self._waiting.append(records)
        self._num_waiting += len(records)
        if self._num_waiting >= _ROWS_AT_ONCE:
            self._write()

    def _write(self) -> None:
        """Append the rows that wait to the rank's file, sorted by partition."""
        records = np.concatenate([np.empty(0, self._record), *self._waiting])
        self._waiting, self._num_waiting = [], 0
        # Mixed anew: the hash of a group has other uses, such as the order of a sample.
        partition = rows_of(mix64(records["group"]), self._num_partitions)
        order = np.argsort(partition, kind="stable")
        first = self._pieces[-1][-1] if self._pieces else 0
        self._pieces.append(first + np.searchsorted(partition[order], np.arange(self._num_partitions + 1)))
        if self._file is None:
            self._file = tempfile.TemporaryFile(prefix="counterpoise-groups-")  # noqa: SIM115 - until the results
        self._file.seek(int(first) * self._record.itemsize)
        self._file.write(records[order].tobytes())

    def _read(self, partition: int) -> np.ndarray:
        """Return this rank's rows of a partition."""
        found = [np.empty(0, self._record)]
        for offsets in self._pieces:
            begin, end = int(offsets[partition]), int(offsets[partition + 1])
            if end > begin:
                self._file.seek(begin * self._record.itemsize)
                data = self._file.read((end - begin) * self._record.itemsize)
                found.append(np.frombuffer(data, self._record))
        return np.concatenate(found)

    def results(self, group: dist.ProcessGroup) -> list[dict[str, float | int | None]]:
        """Return the metrics of each task over the rows of all ranks, none of a task that is not binary; collective.

        Args:
            group: A group that moves CPU tensors (gloo).
        """
        aucs: list[list[GroupedSums]] = [[] for _ in self._places]
        rankings: list[list[RankingSums]] = [[] for _ in self._places]
        for records in self._partitions(group):
            for number in range(len(self._places)):
                known = records[~np.isnan(records["label"][:, number])]
                groups, (score, label, weight) = known["group"], (known[name][:, number] for name in _VALUES)
                aucs[number].append(grouped_auc(groups, score, label, weight))
                rankings[number].append(grouped_ranking(groups, score, label, self._config.at))
        gathered: list[Any] = [None] * group.size()
        mine = [(reduce(add, auc), reduce(add, ranking)) for auc, ranking in zip(aucs, rankings, strict=True)]
        dist.all_gather_object(gathered, mine, group=group)
        found: list[dict[str, float | int | None]] = [{} for _ in self._tasks]
        for place, of_ranks in zip(self._places, zip(*gathered, strict=True), strict=True):
            auc, ranking = (reduce(add, sums) for sums in zip(*of_ranks, strict=True))
            found[place] = self._named(auc, ranking)
        return found

    def _named(self, auc: GroupedSums, ranking: RankingSums) -> dict[str, float | int | None]:
        gauc = auc.by_rows if self._config.weighting == "rows" else auc.equal
        at = {f"ndcg@{cut}": value for cut, value in ranking.ndcg.items()}
        at |= {f"hit_rate@{cut}": value for cut, value in ranking.hit_rate.items()}
        counts = {"gauc_groups": auc.groups, "one_class_groups": auc.one_class, "ndcg_groups": ranking.groups}
        return {"gauc": gauc} | at | counts

    def _partitions(self, group: dist.ProcessGroup) -> Iterator[np.ndarray]:
        """Yield this rank's partitions, with the rows of all ranks; collective, and ends the addition."""
        self._write()
        num_ranks = group.size()
        for first in range(0, self._num_partitions, num_ranks):
            yield _exchanged([self._read(first + rank) for rank in range(num_ranks)], group)
        self._file.close()


def _exchanged(parts: Sequence[np.ndarray], group: dist.ProcessGroup) -> np.ndarray:
    """Send each rank its part, and return this rank's parts of all ranks, by rank; collective."""
    record = parts[0].dtype
    sent = torch.tensor([len(part) for part in parts])
    received = torch.empty_like(sent)
    dist.all_to_all_single(received, sent, group=group)
    width = record.itemsize
    mine = torch.from_numpy(np.concatenate(parts).view(np.uint8))
    found = torch.empty(int(received.sum()) * width, dtype=torch.uint8)
    dist.all_to_all_single(found, mine, (received * width).tolist(), (sent * width).tolist(), group=group)
    return found.numpy().view(record)
