"""Counts by parts of the range of keys: every id once, whatever the numbers of units, tasks and parts."""

import gc
import weakref
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import local_objects
import numpy as np
import pytest
import ray
from hypothesis import example, given
from hypothesis import strategies as st

from features.errors import DataError
from features.id_counts import IdCounts
from pipeline.config.ingest import IngestConfig
from pipeline.ingest.units import DayLog, Unit, Units
from pipeline.log_passes import count_partitions
from pipeline.log_passes.count_partitions import Counts, count_by_partition, num_partitions

DAY = "2026-03-01"


def _log(num_units: int, day: str = DAY) -> DayLog:
    return DayLog(day, Units(Unit(day, "file", place, 0, 10, whole=True) for place in range(num_units)), {})


@dataclass(frozen=True)
class Draw:
    """Counts of some 40 ids in each unit, of a table with many ids and of one with few; some units cannot be read."""

    bad: str = ""

    def __call__(self, unit: Unit) -> dict[str, IdCounts] | str:
        if self.bad == "raise" and unit.row_group == 5:
            raise DataError("row group 5")
        if self.bad == "skip" and unit.row_group % 3 == 1:
            return f"row group {unit.row_group}"
        rng = np.random.default_rng(unit.row_group)
        drawn = rng.integers(0, 500, 40).astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        few = rng.integers(0, 3, 40).astype(np.uint64) << np.uint64(62)
        return {"many": np.unique(drawn, return_counts=True), "few": np.unique(few, return_counts=True)}


def _plain(logs: list[DayLog], work: Draw) -> dict[str, Counter[int]]:
    """Count one id after the other."""
    found: dict[str, Counter[int]] = {"many": Counter(), "few": Counter()}
    for unit in (unit for log in logs for unit in log.units):
        counts = work(unit)
        if not isinstance(counts, str):
            for name, (keys, numbers) in counts.items():
                found[name].update(dict(zip(keys.tolist(), numbers.tolist(), strict=True)))
    return found


def _same(counts: Counts) -> Counts:
    return counts


def _counts(logs: list[DayLog], work: Draw, num_parts: int) -> dict[str, Counter[int]]:
    """Count in parts, and check that keys are in the part of their high bits, increasing."""
    found: dict[str, Counter[int]] = {"many": Counter(), "few": Counter()}
    for part, counts in enumerate(count_by_partition(logs, work, [_same] * num_parts, IngestConfig())):
        for name, (keys, numbers) in counts.items():
            listed = keys.tolist()
            assert listed == sorted(set(listed))
            assert {key * num_parts >> 64 for key in listed} <= {part}
            assert not found[name].keys() & set(listed)
            found[name].update(dict(zip(listed, numbers.tolist(), strict=True)))
    return found


@given(
    num_units=st.lists(st.integers(1, 70), min_size=1, max_size=2),
    most_tasks=st.sampled_from([1, 3, 17, 4096]),
    most_running=st.integers(1, 20),
    fan_in=st.integers(2, 5),
    bits=st.integers(0, 5),
    bad=st.sampled_from(["", "skip"]),
)
@example(num_units=[64], most_tasks=4096, most_running=9, fan_in=4, bits=2, bad="")  # levels that are just full
@example(num_units=[63], most_tasks=4096, most_running=99, fan_in=4, bits=2, bad="")
@example(num_units=[65], most_tasks=4096, most_running=1, fan_in=4, bits=2, bad="skip")
@example(num_units=[2], most_tasks=1, most_running=1, fan_in=2, bits=0, bad="")
def test_ids_are_counted_once(
    num_units: list[int], most_tasks: int, most_running: int, fan_in: int, bits: int, bad: str
) -> None:
    """Catches a task's counts that are lost or merged twice, keys that meet in two parts, and a task without counts."""
    logs = [_log(num, f"2026-03-0{place + 1}") for place, num in enumerate(num_units)]
    with pytest.MonkeyPatch.context() as patch:
        local_objects.keep_objects(patch.setattr)
        patch.setattr(count_partitions, "MOST_TASKS", most_tasks)
        patch.setattr(count_partitions, "MOST_RUNNING", most_running)
        patch.setattr(count_partitions, "FAN_IN", fan_in)
        assert _counts(logs, Draw(bad), 2**bits) == _plain(logs, Draw(bad))


def test_a_unit_that_cannot_be_read(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """Catches a bad unit that ends the pass although it is passed over, or is passed over in silence or for good."""
    local_objects.keep_objects(monkeypatch.setattr)
    cancelled: list[Any] = []
    monkeypatch.setattr("ray.cancel", cancelled.append)
    assert _counts([_log(7)], Draw("skip"), 2) == _plain([_log(7)], Draw("skip"))
    assert caplog.messages == ["not counted: row group 1", "not counted: row group 4"]
    assert cancelled == []
    with pytest.raises(DataError, match="row group 5"):
        _counts([_log(9)], Draw("raise"), 2)
    assert len(cancelled) == 4  # the tasks from that of row group 5 on


def test_a_count_that_fails_when_it_runs_again() -> None:
    """Catches the counts of units that are missing in a merge, since their task failed after a node was lost."""
    error = DataError("row group 5")
    with pytest.raises(DataError, match="row group 5"):
        count_partitions._merge_parts(count_partitions.Part.of({}), error)
    outcome = count_partitions._count(Draw("raise"), list(_log(9).units), 2)
    assert [str(part) for part in outcome] == ["row group 5"] * 3


def test_parts_are_too_large_to_stay_in_the_driver() -> None:
    """Catches counted or merged parts that Ray keeps in the driver until the pass ends: 2 GB for 100 million ids."""
    limit = 100 * 1024  # bytes, Ray's default
    _, *parts = count_partitions._count(Draw(), list(_log(3).units), 4)
    for part in [*parts, count_partitions._merge_parts(*parts[:2])]:
        assert len(ray.cloudpickle.dumps(part)) > limit


def test_days_without_units_have_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a part that has no result, which its table would wait for."""
    local_objects.keep_objects(monkeypatch.setattr)
    assert list(count_partitions.count_by_partition([], Draw("skip"), [dict, dict], IngestConfig())) == [{}, {}]


def test_few_results_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches results of all tasks that are kept until the end: references, and small results, fill the driver."""
    kept: weakref.WeakSet[Any] = weakref.WeakSet()
    most, made = 0, 0

    class Counted(local_objects.Kept):
        def __init__(self, value: Any) -> None:
            super().__init__(value)
            nonlocal most, made
            kept.add(self)
            most, made = max(most, len(kept)), made + 1

    monkeypatch.setattr(local_objects, "Kept", Counted)
    local_objects.keep_objects(monkeypatch.setattr)
    monkeypatch.setattr(count_partitions, "MOST_RUNNING", 8)
    gc.disable()  # references are not in cycles
    _counts([_log(1000)], Draw(), 4)
    gc.enable()
    assert made > 5000
    assert most <= 4 * (8 + 15 * 3 + 2 * 16) + 16, most


@pytest.mark.parametrize(
    ("num_units", "expected"), [(1, 1), (31, 1), (32, 2), (100, 4), (1023, 32), (1024, 64), (152_588, 64)]
)
def test_parts_grow_with_the_units(num_units: int, expected: int) -> None:
    """Catches a small day that pays for 64 tasks, and a large one whose ids one task holds."""
    assert num_partitions(num_units) == expected


def test_the_nodes_are_selected(monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches tasks on nodes which `ingest.label_selector` leaves out, and tasks that wait for CPUs of idle workers."""
    local_objects.keep_objects(monkeypatch.setattr)
    given_options: list[dict[str, Any]] = []
    options: Callable[..., Any] = local_objects.Task.options

    def noted(self: local_objects.Task, **named: Any) -> local_objects.Task:
        given_options.append(named)
        return options(self, **named)

    monkeypatch.setattr(local_objects.Task, "options", noted)
    on_data_nodes = IngestConfig(label_selector={"group": "data"}, read_cpus=0.5)
    assert len(list(count_by_partition([_log(40)], Draw(), [_same] * 2, on_data_nodes))) == 2
    assert [(named["label_selector"], named["num_cpus"]) for named in given_options] == [({"group": "data"}, 0.5)] * 3
    given_options.clear()
    list(count_by_partition([_log(40)], Draw(), [_same] * 2, IngestConfig()))
    assert all("label_selector" not in named for named in given_options)
