"""Profile of a day's log before its training: rows, missing values, labels, ids; merged over its units."""

import base64
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from features.encoding import evaluate_space
from features.errors import DataError
from features.hashing import hash_ids, salt_of
from features.holdout import HoldoutConfig
from features.schema import IdFeature, Schema

_SKETCH_IDS = 1024
_SALT = salt_of("profile")


@dataclass(slots=True)
class IdSketch:
    """Sample of a column's ids: those with the smallest hashes, the same on every day, with their numbers of rows.

    Bottom-k or KMV sketch (Beyer et al., "On synopses for distinct-value estimation", SIGMOD 2007): two days' samples
    below the smaller of their bounds are samples of the same ids, so shares of ids can be compared between days.

    Args:
        hashes: The smallest hashes seen, uint64, increasing, at most 1,024.
        counts: Rows of each.
    """

    hashes: np.ndarray = field(default_factory=lambda: np.empty(0, np.uint64))
    counts: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))

    def update(self, hashes: np.ndarray) -> None:
        """Add the ids of rows, uint64 hashes of shape (N,)."""
        below = hashes[hashes <= self.bound]
        self.merge(IdSketch(*_counted(below, np.ones(len(below), np.int64))))

    def merge(self, other: "IdSketch") -> None:
        """Add another part of the same day."""
        bound = min(self.bound, other.bound)
        hashes, counts = np.append(self.hashes, other.hashes), np.append(self.counts, other.counts)
        self.hashes, self.counts = _counted(hashes[hashes <= bound], counts[hashes <= bound])

    @property
    def bound(self) -> np.uint64:
        """Largest hash up to which the sample holds every id seen."""
        return self.hashes[-1] if len(self.hashes) == _SKETCH_IDS else np.uint64(2**64 - 1)

    def unseen(self, earlier: Sequence["IdSketch"]) -> float | None:
        """Return the share of rows whose id is in none of the earlier days; None if there is nothing to compare."""
        if not earlier or not len(self.hashes):
            return None
        bound = min([self.bound, *(sketch.bound for sketch in earlier)])
        known = np.unique(np.concatenate([sketch.hashes for sketch in earlier]))
        chosen = self.hashes <= bound
        total = int(self.counts[chosen].sum())
        seen = int(self.counts[chosen & np.isin(self.hashes, known)].sum())
        return (total - seen) / total if total else None

    @property
    def effective_ids(self) -> float:
        """Number of ids with equally many rows whose share is as uncertain as that of these (Kish, 1965).

        Rows of one id are new or known together, so that a share of rows is as uncertain as one of so few ids.
        """
        squares = float(np.square(self.counts.astype(np.float64)).sum())
        return float(self.counts.sum()) ** 2 / squares if squares else 0.0

    def to_json(self) -> list[str]:
        """Return the sketch as base64 text."""
        return [base64.b64encode(array.tobytes()).decode() for array in (self.hashes, self.counts)]

    @classmethod
    def from_json(cls, data: Sequence[str]) -> "IdSketch":
        """Read the text that `to_json` wrote."""
        hashes, counts = (base64.b64decode(text) for text in data)
        return cls(np.frombuffer(hashes, np.uint64), np.frombuffer(counts, np.int64))


def _counted(hashes: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the smallest distinct hashes, increasing, and the sum of the counts of each."""
    distinct, places = np.unique(hashes, return_inverse=True)
    sums = np.bincount(places, counts, minlength=len(distinct)).astype(np.int64)
    return distinct[:_SKETCH_IDS], sums[:_SKETCH_IDS]


@dataclass(slots=True)
class DayProfile:
    """Figures of a day.

    Args:
        rows: Number of rows.
        nulls: Per column: number of rows with null or NaN.
        labels: Per task: number of rows in its space, sum of their labels, and sum of their squares.
        ids: Per id feature: a sample of its ids.
        held_out: Per task: number of held-out rows in its space, and number of positive ones among them. A task that
            is not there was not counted.
    """

    rows: int = 0
    nulls: dict[str, int] = field(default_factory=dict)
    labels: dict[str, tuple[int, float, float]] = field(default_factory=dict)
    ids: dict[str, IdSketch] = field(default_factory=dict)
    held_out: dict[str, tuple[int, int]] = field(default_factory=dict)

    def update(
        self,
        schema: Schema,
        columns: Mapping[str, pa.Array],
        tasks: Iterable[str],
        holdout: HoldoutConfig | None = None,
    ) -> None:
        """Add rows.

        Args:
            schema: The schema of the rows.
            columns: Arrays of N rows by column name.
            tasks: Names of the tasks whose labels count.
            holdout: Rows that are never trained; None: all are.

        Raises:
            DataError: The schema does not allow a value of a column.
        """
        num_rows = len(next(iter(columns.values())))
        part = DayProfile(num_rows, {name: _missing(column) for name, column in columns.items()})
        chosen, held = set(tasks), holdout.held_out(columns) if holdout else None
        for task in schema.tasks:
            if task.name in chosen:
                label = task.label_expression.evaluate(columns)
                values = pc.cast(label, pa.float64(), safe=False).to_numpy(zero_copy_only=False)
                inside = label.is_valid().to_numpy(zero_copy_only=False)
                if task.space is not None:
                    inside &= evaluate_space(task.space, columns)
                if held is not None:
                    part.held_out[task.name] = (int((held & inside).sum()), int((values[held & inside] > 0).sum()))
                values = values[inside]
                part.labels[task.name] = (len(values), float(values.sum()), float(np.square(values).sum()))
        for feature in schema.features:
            if isinstance(feature, IdFeature):
                sketch = part.ids[feature.name] = IdSketch()
                sketch.update(_hashes(feature, columns[feature.source]))
        self.merge(part)

    def merge(self, other: "DayProfile") -> None:
        """Add another part of the same day."""
        self.rows += other.rows
        for name, count in other.nulls.items():
            self.nulls[name] = self.nulls.get(name, 0) + count
        for name, sums in other.labels.items():
            so_far = self.labels.get(name, (0, 0.0, 0.0))
            self.labels[name] = (so_far[0] + sums[0], so_far[1] + sums[1], so_far[2] + sums[2])
        for name, sketch in other.ids.items():
            self.ids.setdefault(name, IdSketch()).merge(sketch)
        for name, (rows, positives) in other.held_out.items():
            known = self.held_out.get(name, (0, 0))
            self.held_out[name] = (known[0] + rows, known[1] + positives)

    def label_mean(self, task: str) -> float | None:
        """Return the mean label of a task in its space; None without a row, or if it is not finite."""
        rows, total, squares = self.labels.get(task, (0, 0.0, 0.0))
        return total / rows if rows and math.isfinite(squares) else None

    def to_json(self) -> dict[str, Any]:
        """Return the profile as JSON."""
        return {
            "rows": self.rows,
            "nulls": self.nulls,
            "labels": {name: list(sums) for name, sums in self.labels.items()},
            "ids": {name: sketch.to_json() for name, sketch in self.ids.items()},
            "held_out": {name: list(counts) for name, counts in self.held_out.items()},
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "DayProfile":
        """Read the JSON that `to_json` wrote."""
        labels = {
            name: (int(rows), float(total), float(squares)) for name, (rows, total, squares) in data["labels"].items()
        }
        ids = {name: IdSketch.from_json(sketch) for name, sketch in data["ids"].items()}
        held_out = {name: (rows, positives) for name, (rows, positives) in data.get("held_out", {}).items()}
        return cls(data["rows"], dict(data["nulls"]), labels, ids, held_out)


def _missing(column: pa.Array) -> int:
    return column.null_count + (pc.sum(pc.is_nan(column)).as_py() or 0 if pa.types.is_floating(column.type) else 0)


def _hashes(feature: IdFeature, column: pa.Array) -> np.ndarray:
    try:
        return hash_ids(pc.drop_null(column), _SALT)
    except TypeError as error:
        raise DataError(f"column {feature.source!r}: {error}") from error
