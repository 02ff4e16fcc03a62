"""Passes over units: results are merged in the tasks, in order, and no unit is left out."""

import itertools
from collections.abc import Callable

import numpy as np
import pytest
import ray
from hypothesis import given
from hypothesis import strategies as st

from features.errors import DataError
from pipeline.config.ingest import IngestConfig
from pipeline.ingest.units import Unit, list_days
from pipeline.log_passes import reduce_units as module
from pipeline.log_passes.reduce_units import UnitsResult, reduce_units
from pipeline.log_passes.unit_work import Sums, merge_sums
from pipeline.storage.files import Storage

DAYS = ["2026-03-01", "2026-03-02"]


def _keys(unit: Unit) -> list[str] | str:
    """The unit's key; the unit of four rows is left out, and that of nine is refused."""
    if unit.num_rows == 9:
        raise DataError(f"{unit.key} is refused")
    return "four rows" if unit.num_rows == 4 else [unit.key]


def _join(one: list[str], other: list[str]) -> list[str]:
    return one + other


@pytest.mark.ray
@pytest.mark.parametrize("most_tasks", [4096, 3, 1])
def test_a_task_merges_its_units(
    most_tasks: int, write_log: Callable[..., Storage], ray_cluster: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches a driver that merges a result for each of 150,000 units, and a unit that a task of several loses."""
    ray.cloudpickle.register_pickle_by_value(__import__(__name__))  # Ray's workers cannot import this file
    monkeypatch.setattr(module, "MOST_TASKS", most_tasks)
    logs = write_log([[[1, 2, 3], [4]], [[5, 6, 7]]])
    listed = list_days(logs, DAYS, 1000)
    found: list[UnitsResult[list[str]]] = list(reduce_units(listed, _keys, _join, IngestConfig()))
    assert len(found) == min(most_tasks, 7)
    units = [unit for day in listed for unit in day.units]
    assert sum(part.rows for part in found) == sum(unit.num_rows for unit in units)
    merged = itertools.chain.from_iterable(part.merged or [] for part in found)
    assert list(merged) == [unit.key for unit in units if unit.num_rows != 4]
    assert [error for part in found for error in part.errors] == ["four rows"]
    with pytest.raises(DataError, match="is refused"):
        list(reduce_units(list_days(write_log([[[1, 9]]]), DAYS[:1], 1000), _keys, _join, IngestConfig()))


_PART = st.dictionaries(st.integers(0, 9), st.tuples(st.integers(0, 5), st.integers(0, 5)), max_size=8)


def _sums(part: dict[int, tuple[int, int]]) -> Sums:
    ids = sorted(part)
    return np.array(ids, np.int32), np.array([part[key] for key in ids], np.float64).reshape(-1, 2, 1)


@given(one=_PART, other=_PART)
def test_sums_of_labels_are_merged_by_id(one: dict[int, tuple[int, int]], other: dict[int, tuple[int, int]]) -> None:
    """Catches the labels of an id that two parts have, added once or to another id."""
    ids, sums = merge_sums(_sums(one), _sums(other))
    expected = {
        key: [one.get(key, (0, 0))[n] + other.get(key, (0, 0))[n] for n in range(2)] for key in sorted(one | other)
    }
    assert dict(zip(ids.tolist(), sums[:, :, 0].tolist(), strict=True)) == expected
