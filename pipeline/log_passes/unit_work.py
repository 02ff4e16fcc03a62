"""What data tasks compute of a unit beside encoding it for training; no torch, which costs each process 4 s."""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from features.columns import id_values
from features.encoding import Encoder
from features.errors import DataError
from features.hashing import hash_ids, salt_of
from features.profile import DayProfile
from features.schema import BucketFeature, IdFeature, Schema, SequenceFeature
from features.statistics import StatisticsAccumulator
from pipeline.ingest.datasource import named_unit, read_unit
from pipeline.ingest.units import Unit
from pipeline.storage.files import Storage

Counts = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True, slots=True)
class ObserveUnit:
    """Observes what the statistics of a schema are made of."""

    logs: Storage
    schema: Schema
    columns: tuple[str, ...]

    def __call__(self, unit: Unit) -> StatisticsAccumulator:
        """What one unit adds to them."""
        accumulator = StatisticsAccumulator(self.schema)
        columns = read_unit(self.logs, unit, list(self.columns))
        with named_unit(self.logs, unit):
            accumulator.update(columns)
        return accumulator


@dataclass(frozen=True, slots=True)
class SumLabels:
    """Sums labels by the ids of one feature: what popularity is made of."""

    logs: Storage
    encoder: Encoder
    place: int

    def __call__(self, unit: Unit) -> tuple[np.ndarray, np.ndarray]:
        """Ids of a unit with the sums of their labels and their rows in space, shape (n, 2, K)."""
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
    """Counts the ids of the tables that declare a vocabulary, as the encoder will look them up."""

    logs: Storage
    schema: Schema
    pass_over_bad: bool

    def __call__(self, unit: Unit) -> dict[str, Counts] | str:
        """Counts by table; or why the unit could not be read, where such units are passed over."""
        try:
            return self._count(unit)
        except DataError as error:
            if self.pass_over_bad:
                return str(error)
            raise

    def _count(self, unit: Unit) -> dict[str, Counts]:
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
    """Takes the figures that preflight holds against those of earlier days."""

    logs: Storage
    schema: Schema
    columns: tuple[str, ...]
    pass_over_bad: bool

    def __call__(self, unit: Unit) -> DayProfile | str:
        """The unit's figures; or why it could not be read, where training will quarantine it."""
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
            profile.update(self.schema, columns, at_once)
        return profile
