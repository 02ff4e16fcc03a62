"""Quality of a ranking score on past days: GAUC or NDCG@k of each task, in its own space, within requests or users."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Self

import numpy as np

from features.errors import ConfigError, DataError
from features.hashing import mix64, salt_of
from features.measured_columns import NO_GROUP, group_hashes
from models.ranking_score import ProductConfig
from pipeline.config.ranking import nearest
from pipeline.evaluation.grouped import grouped_auc, grouped_ranking
from pipeline.scoring.prediction_files import (
    Predictions,
    batches_of,
    columns_to_score,
    files_of,
    names_of,
    num_rows_of,
    numbers,
    scores_of,
)
from pipeline.storage.files import Storage

_SAMPLE = salt_of("search_weights")


@dataclass(frozen=True, slots=True)
class Objective:
    """Metric of one task.

    Args:
        task: Name of the task.
        at: The cut of NDCG; None: GAUC, each group weighted by its rows' weights.
    """

    task: str
    at: int | None = None

    @staticmethod
    def parse(text: str) -> "Objective":
        """Read `click:gauc` or `share:ndcg@10`."""
        match = re.fullmatch(r"(\w+):(?:gauc|ndcg@([1-9]\d{0,5}))", text.strip())
        if match is None:
            raise ConfigError(f"objective {text!r}: expected TASK:gauc or TASK:ndcg@K, e.g. click:gauc,share:ndcg@10")
        return Objective(match[1], int(match[2]) if match[2] else None)

    def __str__(self) -> str:
        return f"{self.task}:gauc" if self.at is None else f"{self.task}:ndcg@{self.at}"


@dataclass(frozen=True, slots=True)
class Constraint:
    """Bound of an objective by its value under the present exponents.

    Args:
        objective: The metric that must not fall.
        allowed: Allowed fall, at least 0.
    """

    objective: Objective
    allowed: float = 0.0

    @staticmethod
    def parse(text: str) -> "Constraint":
        """Read `share:gauc>=current`, or with an allowed fall `share:gauc>=current-0.001`."""
        match = re.fullmatch(r"(.+?)\s*>=\s*current(?:\s*-\s*(\d*\.?\d+))?", text.strip())
        if match is None:
            raise ConfigError(f"constraint {text!r}: expected e.g. share:gauc>=current or share:gauc>=current-0.001")
        return Constraint(Objective.parse(match[1]), float(match[2] or 0))


def check_objective(objective: Objective, predictions: Predictions) -> None:
    """Check that an objective is a metric of its task.

    Raises:
        ConfigError: The task is not predicted, or has no such metric.
    """
    kind = predictions.tasks.get(objective.task)
    if kind is None:
        known = nearest(objective.task, list(predictions.tasks))
        raise ConfigError(f"objective {str(objective)!r}: there is no task {objective.task!r}: {known}")
    if kind == "multiclass" or (kind != "binary" and objective.at is None):
        raise ConfigError(
            f"objective {str(objective)!r}: task {objective.task!r} is {kind}; GAUC is for binary tasks, NDCG for "
            "binary and regression tasks"
        )


@dataclass(slots=True)
class TaskRows:
    """Rows of one task in the groups that have a metric.

    Args:
        rows: Numbers of the rows among all that were read, shape (M,).
        groups: Number of each row's group, shape (M,).
        labels: Shape (M,).
        weights: Shape (M,).
    """

    rows: np.ndarray
    groups: np.ndarray
    labels: np.ndarray
    weights: np.ndarray

    @property
    def has_both(self) -> bool:
        """True if a group has a positive and a negative of a weight above 0."""
        return grouped_auc(self.groups, np.zeros(len(self.rows)), self.labels, self.weights).groups > 0

    @staticmethod
    def of(groups: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> "TaskRows":
        """Keep the rows of the task's space (with a label) in groups with a positive: no others have a metric."""
        (rows,) = np.nonzero(~np.isnan(labels))
        _, numbers_of = np.unique(groups[rows], return_inverse=True)
        positives = np.bincount(numbers_of, labels[rows] > 0)
        kept = positives[numbers_of] > 0 if len(rows) else np.zeros(0, bool)
        rows = rows[kept]
        return TaskRows(rows, numbers_of[kept].astype(np.int64), labels[rows], weights[rows])


@dataclass(slots=True)
class PastDays:
    """Predictions, durations and labels of past days, in memory.

    Args:
        columns: Columns that scores read, shape (N,) each.
        tasks: Rows of each task.
        num_rows: Number of rows that were read into memory.
        share: Share of the requests or users that were read.
    """

    columns: dict[str, np.ndarray]
    tasks: dict[str, TaskRows]
    num_rows: int
    share: float

    def measure(self, ranking: ProductConfig, objectives: Sequence[Objective]) -> dict[Objective, float]:
        """Return the value of each objective, if rows are ranked by a score."""
        scores = scores_of(ranking, self.columns, "the past days")
        return {objective: self._value(objective, scores) for objective in objectives}

    def _value(self, objective: Objective, scores: np.ndarray) -> float:
        task = self.tasks[objective.task]
        if objective.at is not None and task.labels.min(initial=0) < 0:
            raise DataError(f"objective {str(objective)!r}: a label is below 0, and a gain is not")
        of_rows = task.groups, scores[task.rows], task.labels
        if objective.at is None:
            value = grouped_auc(*of_rows, task.weights).by_rows
        else:
            value = grouped_ranking(*of_rows, at=(objective.at,)).ndcg[objective.at]
        if value is None:
            raise DataError(f"objective {str(objective)!r}: no group has rows of this task with and without a positive")
        return value


@dataclass(slots=True)
class _Parts:
    """Columns of the rows read so far, in parts."""

    parts: dict[str, list[np.ndarray]] = field(default_factory=dict)

    def add(self, columns: Mapping[str, np.ndarray]) -> Self:
        for name, values in columns.items():
            self.parts.setdefault(name, []).append(values)
        return self

    def whole(self, name: str) -> np.ndarray:
        return np.concatenate(self.parts[name])


def read_past_days(
    storage: Storage,
    predictions: Predictions,
    ranking: ProductConfig,
    days: Sequence[str],
    tasks: Sequence[str],
    most_rows: int,
) -> PastDays:
    """Read predictions of past days; of more rows than fit, a sample of whole requests or users by their hash.

    Args:
        storage: Directory of the predictions.
        predictions: Their record.
        ranking: A score that reads all columns that are to be read.
        days: ISO dates.
        tasks: Tasks that objectives measure.
        most_rows: Number of rows that are held in memory, about.

    Raises:
        DataError: The files lack a day, a column or labels.
    """
    if not predictions.labels:
        raise DataError(f"{storage.url} has no labels: predict these days with labels, to measure a score on them")
    files = [(day, name) for day in days for name in files_of(storage, predictions, day)]
    share = min(1.0, most_rows / max(1, sum(num_rows_of(storage, name) for _, name in files)))
    by, read = ranking.top.by, columns_to_score(ranking)
    labels = [f"label_{task}" for task in tasks]
    found = _Parts()
    for day, name in files:
        weights = [f"weight_{task}" for task in tasks if f"weight_{task}" in names_of(storage, name)]
        for batch in batches_of(storage, name, list(dict.fromkeys([by, *read, *labels, *weights]))):
            groups = group_hashes(batch[by], by)
            kept = mix64(groups, _SAMPLE) <= np.uint64(math.floor(share * (2**64 - 2**11)))
            kept &= groups != NO_GROUP
            columns = {column: numbers(batch[column], column)[kept] for column in [*read, *labels, *weights]}
            ones = {f"weight_{task}": np.ones(kept.sum()) for task in tasks}
            found.add(ones | columns | {"": mix64(groups[kept], salt_of(day)).view(np.int64)})
    groups = found.whole("")
    rows = {task: TaskRows.of(groups, found.whole(f"label_{task}"), found.whole(f"weight_{task}")) for task in tasks}
    return PastDays({column: found.whole(column) for column in read}, rows, len(groups), share)
