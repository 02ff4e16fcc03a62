"""Metrics of slices: those of each task again, over the rows with each value of the declared columns."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from features.errors import DataError
from features.measured_columns import UNKNOWN, SliceConfig, text_hash, unpack_texts
from features.tasks import TaskConfig
from pipeline.evaluation.metrics import TaskMetrics
from pipeline.evaluation.rank_merge import results_over_ranks

_CAPACITY = 2**14  # bins of a slice's AUC: its error bound is below 1e-4
_ROWS_AT_ONCE = 2**16  # number of rows that wait for a common pass over the values

Known = tuple[Tensor, ...]


class SliceMetrics:
    """Metrics of every task for every value of the declared slices, added up over batches.

    Args:
        slices: The declared slices.
        tasks: The tasks, in order.
        max_slices: Largest number of values of one of them.
    """

    def __init__(self, slices: Sequence[SliceConfig], tasks: Sequence[TaskConfig], max_slices: int) -> None:
        self._slices, self._tasks, self._max_slices = slices, tasks, max_slices
        self._texts: list[dict[int, str]] = [{} for _ in slices]
        self._metrics: list[dict[int, list[TaskMetrics]]] = [{} for _ in slices]
        self._waiting: list[list[Known]] = [[] for _ in tasks]

    def name(self, packed: Sequence[np.ndarray]) -> None:
        """Keep the texts of the values in a batch.

        Args:
            packed: Packed texts of the units of the batch.

        Raises:
            DataError: A slice has too many values.
        """
        for one in packed:
            for known, texts in zip(self._texts, unpack_texts(one), strict=True):
                known.update(zip(text_hash(texts).tolist(), texts, strict=True))
            self._check()

    def _check(self) -> None:
        for config, known in zip(self._slices, self._texts, strict=True):
            if len(known) > self._max_slices:
                raise DataError(
                    f"evaluation.by: {config.name!r} has {len(known):,} values or more, evaluation.max_slices is "
                    f"{self._max_slices}: give boundaries, name another column, or raise max_slices"
                )

    def update(self, task: int, slices: Tensor, in_space: Tensor, *known: Tensor) -> None:
        """Add a batch of a task.

        Args:
            task: Number of the task.
            slices: Hash of each row's values, shape (B, S).
            in_space: Mask of the rows in the task's sample space; the others are dropped.
            known: Predictions, scores, labels and weights, as in `TaskMetrics.update`.
        """
        self._waiting[task].append((slices[in_space], *(tensor[in_space] for tensor in known)))
        if sum(len(part[0]) for part in self._waiting[task]) >= _ROWS_AT_ONCE:
            self._add_up(task)

    def _add_up(self, task: int) -> None:
        """Add the rows that wait, one pass per value."""
        waiting, self._waiting[task] = self._waiting[task], []
        if not waiting:
            return
        slices, *known = (torch.cat(parts) for parts in zip(*waiting, strict=True))
        for metrics, column in zip(self._metrics, slices.T, strict=True):
            order = torch.argsort(column, stable=True)
            values, counts = torch.unique_consecutive(column[order], return_counts=True)
            pieces = [torch.split(tensor[order], counts.tolist()) for tensor in known]
            for value, predictions, scores, labels, weight in zip(values.tolist(), *pieces, strict=True):
                everyone = torch.ones(len(labels), dtype=torch.bool)
                self._of(metrics, value)[task].update(predictions, scores, labels, everyone, weight)

    def _of(self, metrics: dict[int, list[TaskMetrics]], value: int) -> list[TaskMetrics]:
        if value not in metrics:
            metrics[value] = [TaskMetrics(task, _CAPACITY) for task in self._tasks]
        return metrics[value]

    def results(self, group: dist.ProcessGroup) -> list[dict[str, list[dict[str, Any]]]]:
        """Return the metrics over the rows of all ranks; collective. Ends the accumulation.

        Args:
            group: A group that moves CPU tensors (gloo).

        Returns:
            For each task, by the name of each declared slice, the value and the metrics of each of its slices.

        Raises:
            DataError: A slice has too many values on all ranks together; on all ranks alike.
        """
        for task in range(len(self._tasks)):
            self._add_up(task)
        gathered: list[Any] = [None] * group.size()
        dist.all_gather_object(gathered, self._texts, group=group)
        for texts in gathered:
            for known, more in zip(self._texts, texts, strict=True):
                known.update(more)
        self._check()
        metrics = [
            one
            for of_values, found in zip(self.values(), self._metrics, strict=True)
            for value in of_values
            for one in self._of(found, value)
        ]
        merged = iter(results_over_ranks(metrics, group, TaskMetrics.result))
        results: list[dict[str, list[dict[str, Any]]]] = [{one.name: [] for one in self._slices} for _ in self._tasks]
        for config, of_values, texts in zip(self._slices, self.values(), self._texts, strict=True):
            for value in of_values:
                for of_task in results:
                    of_task[config.name].append({"value": texts[value]} | next(merged))
        return results

    def values(self) -> list[list[int]]:
        """Return the hashes of the values of each declared slice in their order; after `results` those of all ranks."""
        return [
            sorted(texts, key=lambda value, known=texts, config=config: _place(config, known[value]))
            for config, texts in zip(self._slices, self._texts, strict=True)
        ]


def _place(config: SliceConfig, text: str) -> tuple[int, float, str]:
    """Return the place of a value among those of its slice: ranges and numbers in their order, texts, then null."""
    if text == UNKNOWN:
        return 2, 0.0, text
    if config.boundaries is not None:
        first = text.removeprefix(">= ").split(" to ")[0]
        return 0, float("-inf") if text.startswith("< ") else float(first), text
    try:
        number = float(text)
    except ValueError:
        return 1, 0.0, text
    return (0, number, text) if math.isfinite(number) else (1, 0.0, text)  # "nan" is a text: it has no place
