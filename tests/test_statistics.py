"""Statistics of a log: sketches against exact answers, and merging in any order."""

import math

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from features.errors import DataError
from features.hashing import mix64
from features.schema import Schema
from features.statistics import DistinctSketch, QuantileSketch, Statistics, StatisticsAccumulator

_VALUES = st.lists(
    st.floats(-1e30, 1e30, allow_subnormal=False) | st.integers(-20, 20).map(float), min_size=1, max_size=60
)


def _schema(num_buckets: int = 10) -> Schema:
    return Schema.model_validate(
        {
            "tables": [{"name": "video", "num_rows": 1000, "dim": 4}, {"name": "bucket", "num_rows": 2000, "dim": 4}],
            "features": [
                {"kind": "id", "name": "video_id", "table": "video"},
                {"kind": "sequence", "name": "watched", "table": "video", "max_length": 3},
                {"kind": "dense", "name": "price"},
                {"kind": "dense", "name": "log_price", "column": "price", "log1p": True},
                {"kind": "bucket", "name": "age", "table": "bucket", "num_buckets": num_buckets},
            ],
            "tasks": [{"name": "ctr", "label": "click"}],
        }
    )


def _columns(seed: int, num_rows: int) -> dict[str, pa.Array]:
    random = np.random.default_rng(seed)
    absent = random.random(num_rows) < 0.2
    prices = random.lognormal(3, 2, num_rows)
    prices[random.random(num_rows) < 0.1] = np.nan
    lists = [random.integers(0, 500, length) for length in random.integers(0, 6, num_rows)]
    return {
        "video_id": pa.array(random.integers(0, 500, num_rows), mask=absent),
        "watched": pa.array(lists, pa.list_(pa.int64())),
        "price": pa.array(prices, mask=random.random(num_rows) < 0.1),
        "age": pa.array(random.integers(0, 90, num_rows).astype(np.int16)),
        "click": pa.array(random.integers(0, 2, num_rows)),
    }


def _observed(schema: Schema, *parts: dict[str, pa.Array]) -> StatisticsAccumulator:
    accumulator = StatisticsAccumulator(schema)
    for part in parts:
        accumulator.update(part)
    return accumulator


@settings(max_examples=100, deadline=None)
@given(values=_VALUES, probabilities=st.lists(st.floats(0.001, 1), min_size=1, max_size=5))
@example(values=[0.0, -0.0, 1e-13, -1e-300], probabilities=[0.5])
@example(values=[-1e300, 1e300], probabilities=[0.5, 1.0])
def test_quantiles_are_within_half_a_percent(values: list[float], probabilities: list[float]):
    """A negative value is sorted by magnitude, or the bins are wider than the stated relative error."""
    sketch = QuantileSketch()
    sketch.update(np.array(values))
    for probability, found in zip(probabilities, sketch.quantiles(np.array(probabilities)), strict=True):
        exact = sorted(values)[max(math.ceil(probability * len(values)) - 1, 0)]
        assert abs(found - exact) <= 0.005 * abs(exact) * (1 + 1e-9) + 1e-12


@settings(max_examples=60, deadline=None)
@given(values=_VALUES, cuts=st.lists(st.integers(0, 60), max_size=4), seed=st.integers(0, 9))
def test_a_merged_sketch_is_the_sketch_of_all(values: list[float], cuts: list[int], seed: int):
    """Quantiles depend on how the log was cut into units, or on who finished first."""
    whole, merged = QuantileSketch(), QuantileSketch()
    whole.update(np.array(values))
    parts = np.split(np.array(values), sorted(cuts))
    for place in np.random.default_rng(seed).permutation(len(parts)):
        part = QuantileSketch()
        part.update(parts[place])
        merged.merge(part)
    assert merged.bins == whole.bins
    merged.merge(whole)  # negative control: twice the values are not the same sketch
    assert merged.bins != whole.bins


@pytest.mark.parametrize("count", [0, 1, 100, 5_000, 20_000, 35_000, 42_000, 60_000, 200_000, 1_000_000])
def test_distinct_ids_within_three_percent(count: int):
    """The estimate is off, for few (linear counting), many, or about where one takes over from the other."""
    hashes = mix64(np.arange(count), salt=7)
    sketch = DistinctSketch()
    sketch.update(hashes)
    assert abs(sketch.count() - count) <= 0.03 * count
    sketch.update(hashes[: count // 2])  # seen before
    again = DistinctSketch()
    again.update(hashes)
    assert sketch.count() == again.count()


def test_distinct_sketches_merge_to_the_union():
    """Ids that two units share count twice."""
    ours, theirs, union = DistinctSketch(), DistinctSketch(), DistinctSketch()
    hashes = mix64(np.arange(30_000))
    ours.update(hashes[:20_000])
    theirs.update(hashes[10_000:])
    union.update(hashes[::-1])
    assert ours.count() != union.count()  # negative control
    ours.merge(theirs)
    np.testing.assert_array_equal(ours.registers, union.registers)


def test_ranks_of_extreme_hashes():
    """The leading zeros are counted through a logarithm that rounds: all ones get rank 0, which is no rank."""
    sketch = DistinctSketch()
    sketch.update(np.array([0, 2**50 | 1, 2 * 2**50 | (2**50 - 1), 3 * 2**50 | 2**49, 4 * 2**50 | 2**48], np.uint64))
    assert sketch.registers[:6].tolist() == [51, 50, 1, 1, 2, 0]


@settings(max_examples=60, deadline=None)
@given(
    values=st.lists(st.none() | st.floats(-1e6, 1e6) | st.just(math.nan), max_size=40),
    cuts=st.lists(st.integers(0, 40), max_size=3),
)
def test_moments_equal_numpy_s_in_any_pieces(values: list[float | None], cuts: list[int]):
    """Means of units are averaged without their counts, or nulls count as zeros."""
    accumulator = StatisticsAccumulator(_schema())
    column, start = pa.array(values, pa.float64()), 0
    for stop in [*sorted(min(cut, len(values)) for cut in cuts), len(values)]:
        rows = stop - start
        part = StatisticsAccumulator(_schema())
        part.update(
            {
                "price": column[start:stop],
                "age": pa.nulls(rows, pa.int8()),
                "video_id": pa.nulls(rows, pa.int64()),
                "watched": pa.array([[]] * rows, pa.list_(pa.int64())),
            }
        )
        accumulator.merge(part)
        start = stop
    statistics = accumulator.finish(["2026-11-01"])
    present = np.array([value for value in values if value is not None and not math.isnan(value)])
    for name, numbers in (("price", present), ("log_price", np.sign(present) * np.log1p(np.abs(present)))):
        found = statistics.numbers[name]
        assert (found.count, found.missing) == (len(present), len(values) - len(present))
        assert found.mean == pytest.approx(numbers.mean() if len(numbers) else 0, rel=1e-9, abs=1e-9)
        assert found.deviation == pytest.approx(numbers.std() if len(numbers) else 0, rel=1e-6, abs=1e-6)
    assert statistics.numbers["age"].boundaries == []


@pytest.mark.parametrize("value", [0.1, 1e-20, -7.3, 1e9 + 0.1, 0.0])
def test_a_constant_has_no_deviation(value: float):
    """Rounding leaves a deviation of 1e-17, and the first other value is standardised to 1e16."""
    schema = _schema()
    parts = [_columns(seed, 333) | {"price": pa.array([value] * 333)} for seed in range(3)]
    numbers = _observed(schema, *parts).finish([]).numbers
    assert numbers["price"].deviation == 0
    assert numbers["log_price"].deviation == 0
    parts[1]["price"] = pa.array([value * 1.001 + 1e-9] * 333)
    assert _observed(schema, *parts).finish([]).numbers["price"].deviation > 0  # negative control


_DISTRIBUTIONS = {
    "lognormal": lambda random: random.lognormal(0, 3, 20_000),
    "normal": lambda random: random.normal(0, 1, 20_000),
    "negative": lambda random: -random.lognormal(0, 1, 20_000),
    "whole numbers 1 to 10": lambda random: random.integers(1, 11, 20_000).astype(float),
    "whole numbers -5 to 4": lambda random: random.integers(-5, 5, 20_000).astype(float),
    "hours": lambda random: random.integers(0, 20, 20_000) // 2.0,
}


@pytest.mark.parametrize("name", _DISTRIBUTIONS)
def test_buckets_are_of_near_equal_frequency(name: str):
    """A boundary falls on the wrong side of a repeated value: one bucket is empty, the next holds twice its rows."""
    values = _DISTRIBUTIONS[name](np.random.default_rng(0))
    schema = _schema(num_buckets=10)
    statistics = _observed(schema, _columns(0, len(values)) | {"age": pa.array(values)}).finish([])
    boundaries = np.array(statistics.numbers["age"].boundaries)
    assert (np.diff(boundaries) > 0).all()
    shares = np.bincount(np.searchsorted(boundaries, values, side="right"), minlength=10) / len(values)
    assert len(shares) == 10
    assert shares.min() > 0.08
    assert shares.max() < 0.12


def test_repeated_values_use_fewer_buckets():
    """Where most values are equal, boundaries repeat, and searchsorted leaves holes or splits equal values."""
    values = np.repeat([0.0, 1.0, 7.0], [9_000, 900, 100])
    schema = _schema(num_buckets=20)
    statistics = _observed(schema, _columns(0, len(values)) | {"age": pa.array(values)}).finish([])
    boundaries = statistics.numbers["age"].boundaries
    assert np.searchsorted(boundaries, [0.0, 1.0, 7.0], side="right").tolist() == [0, 1, 2]
    only = _observed(schema, _columns(0, 50) | {"age": pa.array([3] * 50)}).finish([])
    assert only.numbers["age"].boundaries == []


def test_statistics_do_not_depend_on_the_order_of_units():
    """Two runs over the same days give two models, because units were read in another order."""
    schema = _schema()
    parts = [_columns(seed, 200 + seed) for seed in range(4)]
    whole = _observed(schema, *parts).finish(["2026-11-01"])
    for order in ([0, 1, 2, 3], [3, 1, 0, 2]):
        merged = StatisticsAccumulator(schema)
        for place in order:
            merged.merge(_observed(schema, parts[place]))
        found = merged.finish(["2026-11-01"])
        assert found.rows == whole.rows == 806
        assert found.distinct_ids == whole.distinct_ids
        assert found.missing_ids == whole.missing_ids
        assert found.mean_lengths == whole.mean_lengths
        for name, numbers in whole.numbers.items():
            assert found.numbers[name].boundaries == numbers.boundaries
            assert found.numbers[name].mean == pytest.approx(numbers.mean, rel=1e-12)
            assert found.numbers[name].deviation == pytest.approx(numbers.deviation, rel=1e-12)
    assert _observed(schema, *parts[1:]).finish(["2026-11-01"]) != whole  # negative control
    in_order = [_observed(schema, part) for part in parts]
    once, twice = StatisticsAccumulator(schema), StatisticsAccumulator(schema)
    for part in in_order:
        once.merge(part)
        twice.merge(part)
    assert once.finish([]) == twice.finish([])  # to the last bit


def test_ids_are_counted_per_table_and_missing_ids_per_feature():
    """Features that share a table count their ids apart, nulls count as an id, or cut histories count in full."""
    columns = {
        "video_id": pa.array([1, None, 2, None, None]),
        "watched": pa.array([[9, 9, 1, 2, 3], [], [None, 4], [5], []], pa.list_(pa.int64())),
        "price": pa.array([1.0] * 5),
        "age": pa.array([None] * 5, pa.int8()),
    }
    statistics = _observed(_schema(), columns).finish(["2026-11-01"])
    assert statistics.distinct_ids == {"video": 5, "bucket": 0}  # 1, 2, 3, 4, 5: the two 9s are cut off
    assert statistics.missing_ids == {"video_id": 0.6}
    assert statistics.mean_lengths == {"watched": 5 / 5}  # 3 of the first list's five, 1 beside a null, 1
    assert statistics.numbers["age"].missing == 5


def test_chunked_columns_are_observed():
    """The columns of a Parquet table come in chunks."""
    columns, schema = _columns(0, 100), _schema()
    table = pa.concat_tables([pa.table(columns).slice(0, 30), pa.table(columns).slice(30)])
    chunked = {name: table[name] for name in table.column_names}
    assert _observed(schema, chunked).finish([]) == _observed(schema, columns).finish([])


def test_statistics_of_nothing_and_their_journey_through_json():
    """A day without rows divides by zero, or what a checkpoint stores is not what was found."""
    schema = _schema()
    nothing = StatisticsAccumulator(schema).finish([])
    assert nothing.rows == 0
    assert nothing.missing_ids == {"video_id": 0.0}
    statistics = _observed(schema, {name: column[:0] for name, column in _columns(0, 5).items()}).finish([])
    assert statistics == nothing
    full = _observed(schema, _columns(0, 300)).finish(["2026-11-01"])
    assert Statistics.model_validate_json(full.model_dump_json()) == full
    assert full.schema_fingerprint == schema.fingerprint()


def test_bad_values_are_refused_while_observing():
    """An infinity is averaged into the statistics, which are then frozen along the line."""
    with pytest.raises(DataError, match="column 'price' has inf at row 1"):
        _observed(_schema(), _columns(0, 2) | {"price": pa.array([1.0, math.inf])})
