"""Statistics of a log that encoding needs: means, deviations, quantiles, null rates and distinct ids, by sketches.

Every sketch merges exactly (sums of integers, maxima), so quantiles and distinct counts depend neither on the units
of the log nor on the order in which they are read. Means and deviations are merged in unit order.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
from pydantic import Field

from features.columns import contiguous, dense_values, id_values
from features.declaration import Declaration
from features.hashing import hash_ids, salt_of
from features.schema import BucketFeature, DenseFeature, Schema, SequenceFeature

_RELATIVE_ERROR = 0.005
_LOG_GAMMA = np.log((1 + _RELATIVE_ERROR) / (1 - _RELATIVE_ERROR))
_SMALLEST = 1e-12
_REGISTER_BITS = 14
_ROUNDING = 1e-12  # times the mean: summing equal values leaves a deviation below this


class NumberStatistics(Declaration):
    """Statistics of one dense or bucketised feature, after its log1p if declared.

    Args:
        count: Rows with a value.
        missing: Rows with null or NaN.
        mean: Mean of the values.
        deviation: Standard deviation of the values; 0 if all are equal.
        boundaries: Inner boundaries of the equal-frequency buckets, increasing; empty for dense features.
    """

    count: int
    missing: int
    mean: float
    deviation: float
    boundaries: list[float] = Field(default_factory=list)


class Statistics(Declaration):
    """Result of `jobs.fit_features`; stored in every checkpoint and frozen along a line.

    Args:
        days: Days that were read, as ISO dates.
        rows: Number of rows that were read.
        numbers: Statistics of numbers by feature name.
        distinct_ids: Estimated distinct ids per table (HyperLogLog, standard error .8 %).
        missing_ids: Share of rows without an id, by id feature.
        mean_lengths: Mean number of ids per row, after the cut to `max_length`, by sequence feature; empty in files of
            earlier versions.
        schema_fingerprint: Fingerprint of the schema that the statistics belong to.
    """

    days: list[str]
    rows: int
    numbers: dict[str, NumberStatistics]
    distinct_ids: dict[str, int]
    missing_ids: dict[str, float]
    schema_fingerprint: str
    mean_lengths: dict[str, float] = {}


@dataclass(slots=True)
class QuantileSketch:
    """DDSketch (Masson, Rim, Lee, VLDB 2019): counts per logarithmic bin, relative error .5 %, merged by addition."""

    bins: dict[int, int] = field(default_factory=dict)

    def update(self, values: np.ndarray) -> None:
        """Add finite values, shape (N,)."""
        magnitude = np.abs(values)
        keys = np.zeros(len(values), np.int64)
        large = magnitude > _SMALLEST
        # +1e6 keeps keys of either sign apart from each other and from zero's.
        keys[large] = np.ceil(np.log(magnitude[large]) / _LOG_GAMMA).astype(np.int64) + 1_000_000
        keys[values < 0] *= -1
        for key, count in zip(*np.unique(keys, return_counts=True), strict=True):
            self.bins[int(key)] = self.bins.get(int(key), 0) + int(count)

    def merge(self, other: "QuantileSketch") -> None:
        """Add another sketch's counts."""
        for key, count in other.bins.items():
            self.bins[key] = self.bins.get(key, 0) + count

    def quantiles(self, probabilities: np.ndarray) -> np.ndarray:
        """Return the values below which the given shares of the weight lie, each within .5 % of a true quantile."""
        values, cumulative = self._ordered()
        index = np.searchsorted(cumulative, probabilities * cumulative[-1], side="left")
        return values[np.minimum(index, len(values) - 1)]

    def boundaries(self, num_buckets: int) -> list[float]:
        """Return inner boundaries of buckets of near equal weight; fewer than `num_buckets` - 1 if values repeat.

        Each lies half-way between two bins, at the weight nearest to the one wanted. A boundary at a bin's own value
        would split the values of that bin, which are all equal in many logs.
        """
        if len(self.bins) < 2:
            return []
        values, cumulative = self._ordered()
        cuts, wanted = cumulative[:-1] * num_buckets, np.arange(1, num_buckets) * cumulative[-1]
        above = np.minimum(np.searchsorted(cuts, wanted), len(cuts) - 1)
        below = np.maximum(above - 1, 0)
        chosen = np.unique(np.where(wanted - cuts[below] < cuts[above] - wanted, below, above))
        return ((values[chosen] + values[chosen + 1]) / 2).tolist()

    def _ordered(self) -> tuple[np.ndarray, np.ndarray]:
        """Return every bin's value, increasing, and the weight up to and including it."""
        keys = np.array(sorted(self.bins))
        magnitude = np.exp((np.abs(keys) - 1_000_000) * _LOG_GAMMA) * (1 - _RELATIVE_ERROR)
        return np.where(keys == 0, 0.0, np.sign(keys) * magnitude), np.cumsum([self.bins[int(key)] for key in keys])


@dataclass(slots=True)
class DistinctSketch:
    """HyperLogLog (Flajolet et al., 2007) over 64-bit hashes with linear counting for few; merged by maximum."""

    registers: np.ndarray = field(default_factory=lambda: np.zeros(1 << _REGISTER_BITS, np.uint8))

    def update(self, hashes: np.ndarray) -> None:
        """Add hashes, uint64 of shape (N,)."""
        index = (hashes >> np.uint64(64 - _REGISTER_BITS)).astype(np.int64)
        rest = (hashes << np.uint64(_REGISTER_BITS)) >> np.uint64(_REGISTER_BITS)
        bits = 64 - _REGISTER_BITS
        rank = bits + 1 - np.frexp(rest.astype(np.float64))[1]  # the exponent is the number of bits in use, exactly
        np.maximum.at(self.registers, index, rank.astype(np.uint8))

    def merge(self, other: "DistinctSketch") -> None:
        """Take the maximum of the registers."""
        np.maximum(self.registers, other.registers, out=self.registers)

    def count(self) -> int:
        """Return the estimated number of distinct hashes."""
        size = len(self.registers)
        empty = int(np.count_nonzero(self.registers == 0))
        raw = 0.7213 / (1 + 1.079 / size) * size**2 / np.sum(2.0 ** -self.registers.astype(np.float64))
        return round(size * np.log(size / empty)) if raw <= 2.5 * size and empty else round(raw)


@dataclass(slots=True)
class _Moments:
    count: int = 0
    missing: int = 0
    mean: float = 0.0
    squares: float = 0.0
    sketch: QuantileSketch | None = None

    def update(self, values: np.ndarray) -> None:
        present = values[~np.isnan(values)].astype(np.float64)
        other = _Moments(len(present), len(values) - len(present))
        if len(present):
            other.mean = float(present.mean())
            other.squares = float(np.square(present - other.mean).sum())
        if self.sketch is not None:
            self.sketch.update(present)
        self.merge(other)

    @property
    def deviation(self) -> float:
        deviation = float(np.sqrt(self.squares / max(self.count, 1)))
        return deviation if deviation > _ROUNDING * abs(self.mean) else 0.0

    def merge(self, other: "_Moments") -> None:
        """Merge other moments pairwise (Chan, Golub, LeVeque, 1979)."""
        total = self.count + other.count
        if other.count:
            difference = other.mean - self.mean
            self.mean += difference * other.count / total
            self.squares += other.squares + difference**2 * self.count * other.count / total
        self.count, self.missing = total, self.missing + other.missing
        if self.sketch is not None and other.sketch is not None:
            self.sketch.merge(other.sketch)


class StatisticsAccumulator:
    """Accumulator of statistics: one per unit, merged in unit order.

    Args:
        schema: The schema whose features are observed.
    """

    def __init__(self, schema: Schema) -> None:
        self.schema = schema
        self.rows = 0
        self.numbers: dict[str, _Moments] = {}
        for feature in schema.features:
            if isinstance(feature, DenseFeature | BucketFeature):
                sketch = QuantileSketch() if isinstance(feature, BucketFeature) else None
                self.numbers[feature.name] = _Moments(sketch=sketch)
        self.distinct = {table.name: DistinctSketch() for table in schema.tables}
        self.missing_ids = {feature.name: 0 for feature in schema.features if feature.kind == "id"}
        self.lengths = {feature.name: 0 for feature in schema.features if feature.kind == "sequence"}

    def update(self, columns: Mapping[str, pa.Array | pa.ChunkedArray]) -> None:
        """Observe the rows of a unit: arrays of equal length by column name."""
        columns = contiguous(columns)
        self.rows += len(next(iter(columns.values())))
        for feature in self.schema.features:
            column = columns[feature.source]
            if isinstance(feature, DenseFeature | BucketFeature):
                self.numbers[feature.name].update(dense_values(feature, column))
            else:
                ids, offsets = id_values(feature, column)
                self.distinct[feature.table].update(hash_ids(ids, salt_of(self.schema.hash_salt)))
                if feature.kind == "id":
                    self.missing_ids[feature.name] += int(np.count_nonzero(np.diff(offsets) == 0))
                if isinstance(feature, SequenceFeature):
                    self.lengths[feature.name] += len(ids)

    def merge(self, other: "StatisticsAccumulator") -> None:
        """Add the observations of another accumulator."""
        self.rows += other.rows
        for name, moments in self.numbers.items():
            moments.merge(other.numbers[name])
        for name, sketch in self.distinct.items():
            sketch.merge(other.distinct[name])
        for name in self.missing_ids:
            self.missing_ids[name] += other.missing_ids[name]
        for name in self.lengths:
            self.lengths[name] += other.lengths[name]

    def finish(self, days: list[str]) -> Statistics:
        """Return the statistics of all rows observed.

        Args:
            days: Days that were read, as ISO dates.
        """
        numbers = {}
        for feature in self.schema.features:
            if not isinstance(feature, DenseFeature | BucketFeature):
                continue
            moments = self.numbers[feature.name]
            boundaries: list[float] = []
            if isinstance(feature, BucketFeature) and moments.sketch is not None:
                boundaries = moments.sketch.boundaries(feature.num_buckets)
            numbers[feature.name] = NumberStatistics(
                count=moments.count,
                missing=moments.missing,
                mean=moments.mean,
                deviation=moments.deviation,
                boundaries=boundaries,
            )
        return Statistics(
            days=days,
            rows=self.rows,
            numbers=numbers,
            distinct_ids={name: sketch.count() for name, sketch in self.distinct.items()},
            missing_ids={name: count / max(self.rows, 1) for name, count in self.missing_ids.items()},
            schema_fingerprint=self.schema.fingerprint(),
            mean_lengths={name: total / max(self.rows, 1) for name, total in self.lengths.items()},
        )
