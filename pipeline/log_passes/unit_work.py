"""Computations on a unit in data tasks, beside encoding it for training; no torch, which costs each process 4 s."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from features.columns import id_values
from features.encoding import Encoder
from features.errors import DataError
from features.hashing import hash_ids, salt_of
from features.holdout import HoldoutConfig
from features.id_counts import IdCounts
from features.profile import DayProfile
from features.schema import BucketFeature, IdFeature, Schema, SequenceFeature
from features.statistics import StatisticsAccumulator
from pipeline.ingest.datasource import named_unit, read_unit
from pipeline.ingest.units import Unit
from pipeline.storage.files import Storage

Sums = tuple[np.ndarray, np.ndarray]


def merge_into(one: Any, other: Any) -> Any:
    """Merge an accumulator of figures into another by its own `merge`, and return that."""
    one.merge(other)
    return one


def merge_sums(one: Sums, other: Sums) -> Sums:
    """Merge results of `SumLabels`."""
    ids, inverse = np.unique(np.concatenate([one[0], other[0]]), return_inverse=True)
    sums = np.zeros((len(ids), *one[1].shape[1:]))
    sums[inverse[: len(one[0])]] = one[1]
    sums[inverse[len(one[0]) :]] += other[1]
    return ids, sums


@dataclass(frozen=True, slots=True)
class ObserveUnit:
    """Statistics of a schema over one unit."""

    logs: Storage
    schema: Schema
    columns: tuple[str, ...]

    def __call__(self, unit: Unit) -> StatisticsAccumulator:
        """Return the accumulated statistics of a unit."""
        accumulator = StatisticsAccumulator(self.schema)
        columns = read_unit(self.logs, unit, list(self.columns))
        with named_unit(self.logs, unit):
            accumulator.update(columns)
        return accumulator


@dataclass(frozen=True, slots=True)
class SumLabels:
    """Sums of labels by the ids of one feature, for the popularity baseline."""

    logs: Storage
    encoder: Encoder
    place: int

    def __call__(self, unit: Unit) -> Sums:
        """Return the ids of a unit with the sums of their labels and their rows in space, shape (n, 2, K)."""
        columns = read_unit(self.logs, unit, self.encoder.columns)
        with named_unit(self.logs, unit):
            encoded = self.encoder.encode(columns)
        present = np.diff(encoded.offsets[self.place]) > 0
        labels = encoded.labels[present].astype(np.float64)
        ids, inverse = np.unique(encoded.ids[self.place], return_inverse=True)
        sums = np.zeros((len(ids), 2, labels.shape[1]))
        np.add.at(sums, inverse, np.stack([np.nan_to_num(labels), ~np.isnan(labels)], axis=1))
        return ids, sums


@dataclass(frozen=True, slots=True)
class CountIds:
    """Counts of the ids of tables that declare a vocabulary, as looked up by the encoder."""

    logs: Storage
    schema: Schema
    pass_over_bad: bool

    def __call__(self, unit: Unit) -> dict[str, IdCounts] | str:
        """Return counts by table; or the error of an unreadable unit, if such units are skipped."""
        try:
            return self._count(unit)
        except DataError as error:
            if self.pass_over_bad:
                return str(error)
            raise

    def _count(self, unit: Unit) -> dict[str, IdCounts]:
        readers: dict[str, list[IdFeature | SequenceFeature]] = {name: [] for name in self.schema.vocabularies}
        for feature in self.schema.sparse_features:
            if feature.table in readers and not isinstance(feature, BucketFeature):
                readers[feature.table].append(feature)
        names = dict.fromkeys(feature.source for features in readers.values() for feature in features)
        columns, salt = read_unit(self.logs, unit, list(names)), salt_of(self.schema.hash_salt)
        with named_unit(self.logs, unit):
            keys = {
                name: [hash_ids(id_values(feature, columns[feature.source])[0], salt) for feature in features]
                for name, features in readers.items()
            }
        return {name: np.unique(np.concatenate(found), return_counts=True) for name, found in keys.items()}


@dataclass(frozen=True, slots=True)
class ProfileUnit:
    """Figures of one unit for preflight."""

    logs: Storage
    schema: Schema
    columns: tuple[str, ...]
    pass_over_bad: bool
    holdout: HoldoutConfig | None = None

    def __call__(self, unit: Unit) -> DayProfile | str:
        """Return the unit's figures; or the error of an unreadable unit, if training will quarantine it."""
        try:
            return self._profile(unit)
        except DataError as error:
            if self.pass_over_bad:
                return str(error)
            raise

    def _profile(self, unit: Unit) -> DayProfile:
        profile = DayProfile()
        at_once = [task.name for task in self.schema.tasks if not task.delay_days]
        columns: dict[str, pa.Array] = read_unit(self.logs, unit, list(self.columns))
        with named_unit(self.logs, unit):
            profile.update(self.schema, columns, at_once, self.holdout)
        return profile
