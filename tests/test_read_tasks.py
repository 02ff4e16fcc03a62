"""Read tasks and blocks: which units share one, and what a rank receives of them."""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_units import DAY, alone, numbers_of, planned, read_plan_of, unit_entries

from features.encoded_rows import EncodedRows
from features.encoding import Encoder
from pipeline.ingest.bundles import MANY_BUNDLES, MOST_BUNDLES, Bundle, Bundles, PlannedParcel, group_bundles
from pipeline.ingest.datasource import read_bundles, read_parcels, unpack
from pipeline.ingest.deal import bundled, deal
from pipeline.ingest.units import Unit, Units
from pipeline.storage.files import Storage

WriteLog = Callable[..., Storage]


# --- Tasks ---


def _day(groups: list[int]) -> Units:
    """Ranges of 10 rows: as many for each row group as are given."""
    return Units(
        Unit(DAY, "file", group, 10 * place, 10, whole=count == 1)
        for group, count in enumerate(groups)
        for place in range(count)
    )


def _tasks(bundles: Sequence[Bundle], task_rows: int) -> list[list[Bundle]]:
    """The bundles of each task."""
    return [list(task) for task in group_bundles(planned(bundles), task_rows)]


def _check_tasks(bundles: list[Bundle], tasks: list[list[Bundle]]) -> None:
    """Order is kept, and a task is one row group, read forwards."""
    assert list(itertools.chain(*tasks)) == bundles
    named = [[entry.source for (entry,) in task if entry.source is not None] for task in tasks]
    for units in named:
        assert len({(unit.file, unit.row_group) for unit in units}) <= 1
        assert [unit.first_row for unit in units] == sorted({unit.first_row for unit in units})
    for before, after in itertools.pairwise(named):  # none could have been joined
        assert before
        assert after
        alike = before[-1].row_group == after[0].row_group
        assert not alike or after[0].first_row <= before[-1].first_row


@given(data=st.data(), groups=st.lists(st.integers(1, 4), min_size=1, max_size=4))
def test_ranges_of_a_row_group_share_a_task(data: st.DataObject, groups: list[int]):
    """A row group is decoded once for each of its ranges; or a task has so many units that it is read at once."""
    units = _day(groups)
    entries = [
        PlannedParcel("start", 0),
        *itertools.chain(
            *([entry] + [PlannedParcel("blank", 0)] * data.draw(st.integers(0, 2)) for entry in unit_entries(units))
        ),
        PlannedParcel("start", 1),
        *unit_entries(units, data.draw(st.permutations(range(len(units)))), segment=1),
    ]
    _check_tasks(alone(entries), _tasks(alone(entries), task_rows=0))
    two, apart = alone(unit_entries(_day([2]))), alone(unit_entries(_day([1, 1])))
    with pytest.raises(AssertionError):  # negative control: a task a unit
        _check_tasks(two, [[bundle] for bundle in two])
    with pytest.raises(AssertionError):  # and one task for all
        _check_tasks(apart, [apart])


def test_tasks_by_hand():
    """Starts and blanks have no task of their own, the next pass begins a new one."""
    units = _day([2, 1])
    start, blank = (PlannedParcel("start", 0),), (PlannedParcel("blank", 0),)
    a, b, c = alone(unit_entries(units))
    again_a, again_b = ((replace(entry, segment=1),) for (entry,) in (a, b))
    bundles = [start, start, a, blank, b, c, blank]
    assert _tasks(bundles, task_rows=0) == [[start, start, a, blank, b], [c, blank]]
    assert _tasks([b, a, again_a, again_b], task_rows=19) == [[b], [a], [again_a, again_b]]
    assert _tasks([start, blank], task_rows=19) == [[start, blank]]
    assert _tasks([], task_rows=19) == []


def test_bundles_of_a_large_day_share_tasks():
    """Ray Data stores 150,000 read tasks before the first row, or a task has thousands of units and memory for none."""
    units = Units(Unit(DAY, "file", n, 0, 65_536, whole=True) for n in range(3 * MANY_BUNDLES // 2))
    for num, each in ((MANY_BUNDLES, 1), (MANY_BUNDLES + 1, 2), (len(units), 2)):
        bundles = alone(unit_entries(units, range(num)))
        tasks = group_bundles(planned(bundles))
        assert list(itertools.chain(*tasks)) == bundles
        assert {len(task) for task in tasks[:-1]} == {each}
    pieces = planned(alone(unit_entries(units))).pieces
    assert max(map(len, group_bundles(Bundles(pieces * 40)))) == MOST_BUNDLES


def test_small_units_share_a_task():
    """A row group of two rows costs a task of its own: an hour for a day's rows in ten thousand of them."""
    units = _day([1] * 7)
    bundles = alone([PlannedParcel("start", 0), *unit_entries(units), PlannedParcel("blank", 0)])
    tasks = _tasks(bundles, task_rows=30)
    assert [len(task) for task in tasks] == [4, 3, 2]  # three units of ten rows, with starts and blanks
    assert list(itertools.chain(*tasks)) == bundles
    assert len(group_bundles(planned(bundles))) == 1


@given(
    sizes=st.lists(st.integers(1, 9), min_size=1, max_size=6), cuts=st.sets(st.integers(1, 5)), skip=st.integers(0, 9)
)
def test_units_that_share_a_block(
    sizes: list[int], cuts: set[int], skip: int, write_log: WriteLog, tiny_encoder: Encoder
):
    """A unit's rows come with another unit's number or another's ids, or a bad unit takes others along."""
    plan, units = read_plan_of(write_log([[sizes]]), tiny_encoder, shuffle=True)
    plan.logs.write("dt=2026-03-01/part-1.parquet", b"")
    gone = Unit(DAY, "dt=2026-03-01/part-1.parquet", 0, 0, 5, whole=True)
    entries = unit_entries([*units, gone])
    entries[0] = replace(entries[0], skip=min(skip, sizes[0]))
    ends = [0, *sorted(cut for cut in cuts if cut < len(entries)), len(entries)]
    bundles = [tuple(entries[start:stop]) for start, stop in itertools.pairwise(ends)]
    blocks = list(read_bundles(plan, planned(bundles), tiny_encoder.empty()))
    assert [block.num_rows for block in blocks] == [1] * len(bundles)
    together = pa.concat_tables(blocks).combine_chunks()  # as Ray hands on neighbours
    received = [parcel for place in range(len(blocks)) for parcel in unpack(together.slice(place, 1))]
    alone = list(read_parcels(plan, entries))
    assert [(parcel.kind, parcel.unit, parcel.text) for parcel in received] == [
        (parcel.kind, parcel.unit, parcel.text) for parcel in alone
    ]
    for ours, theirs in zip(received[:-1], alone[:-1], strict=True):
        assert ours.rows is not None
        assert theirs.rows is not None
        _assert_same_rows(ours.rows, theirs.rows)
    assert received[-1].kind == "bad"


def _assert_same_rows(left: EncodedRows, right: EncodedRows) -> None:
    for name in ("dense", "labels", "slots", "rows"):
        np.testing.assert_array_equal(getattr(left, name), getattr(right, name))
    for name in ("ids", "offsets"):
        for ours, theirs in zip(getattr(left, name), getattr(right, name), strict=True):
            np.testing.assert_array_equal(ours, theirs)


def test_a_file_is_opened_once_a_task(write_log: WriteLog, tiny_encoder: Encoder, monkeypatch: pytest.MonkeyPatch):
    """The footer of a file with a thousand row groups is read a thousand times."""
    plan, units = read_plan_of(write_log([[[2] * 5, [2] * 5]]), tiny_encoder)
    opened = []
    opens = pq.ParquetFile.__init__

    def counted(self: Any, source: Any, **settings: Any) -> None:
        opened.append(source)
        opens(self, source, **settings)

    monkeypatch.setattr(pq.ParquetFile, "__init__", counted)
    parcels = read_parcels(plan, unit_entries(units, [0, 5, 1, 6, 4, 9, 2, 7, 3, 8]))
    assert sorted(number for parcel in parcels for number in numbers_of(parcel)) == list(range(20))
    assert len(opened) == len(set(opened)) == 2


def test_a_task_holds_few_files_open(write_log: WriteLog, tiny_encoder: Encoder, monkeypatch: pytest.MonkeyPatch):
    """Small units of a hundred files hold a hundred footers in memory, megabytes each."""
    plan, units = read_plan_of(write_log([[[2, 2]] * 12]), tiny_encoder)
    open_now, most = set(), 0
    opens, closes = pq.ParquetFile.__init__, pq.ParquetFile.close

    def opened(self: Any, source: Any, **settings: Any) -> None:
        nonlocal most
        opens(self, source, **settings)
        open_now.add(id(self))
        most = max(most, len(open_now))

    def closed(self: Any, force: bool = False) -> None:
        closes(self, force=force)
        open_now.discard(id(self))

    monkeypatch.setattr(pq.ParquetFile, "__init__", opened)
    monkeypatch.setattr(pq.ParquetFile, "close", closed)
    order = [*range(0, 24, 2), *range(1, 24, 2)]
    numbers = [number for parcel in read_parcels(plan, unit_entries(units, order)) for number in numbers_of(parcel)]
    assert sorted(numbers) == list(range(48))
    assert 1 < most <= 5


def test_ranges_of_a_row_group_are_decoded_once_on_any_number_of_ranks():
    """Ranges of one lane share a block, behind which the other lane's ranges decode the row group once more."""
    units = _day([4] * 5)
    for num_ranks in (1, 2, 3):
        lanes = deal(units, num_ranks, range(len(units)))
        blocks = [bundled(lane, units, [unit.num_rows for unit in units], 4096) for lane in lanes]
        turns = itertools.zip_longest(*blocks, fillvalue=[])
        bundles = [tuple(unit_entries(units, block)) for turn in turns for block in turn if block]
        assert [len(task) for task in group_bundles(planned(bundles))] == [4] * 5
