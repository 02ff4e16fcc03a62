"""Bundles of a plan, kept as arrays: any cut of them has the bundles that a list would have there."""

import itertools
import pickle
from unittest import mock

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from small_units import DAY, alone, planned, unit_entries

from features.encoding import Encoder
from pipeline.config.ingest import IngestConfig
from pipeline.ingest.bundles import Bundle, Bundles, PlannedParcel, SegmentBundles, group_bundles
from pipeline.ingest.parts import whole_days
from pipeline.ingest.plan import RunPlan, StreamStart
from pipeline.ingest.units import DayLog, Unit, Units
from pipeline.storage.files import Storage

_UNITS = Units(  # a file has four row groups that are units, and one in two ranges
    Unit(DAY, f"file-{n // 6}", min(n % 6, 4), 20 * (n % 6 // 5), 10 + n, whole=n % 6 < 4) for n in range(18)
)

_SEGMENTS = st.lists(
    st.tuples(
        st.integers(0, 3),  # signals
        st.lists(st.integers(0, 3), max_size=5),  # units of each bundle; none: a blank
        st.sampled_from([(0,), (1,), (0, 1)]),  # encoders
    ),
    max_size=3,
)


def _segment(number: int, num_signals: int, sizes: list[int], encoders: tuple[int, ...]) -> SegmentBundles:
    """Bundles of units from one amid the log's on, some of whose rows have been seen."""
    indices = (np.arange(sum(sizes), dtype=np.int32) + 7 * number + 1) % len(_UNITS)
    signal = PlannedParcel("start", number, text=f"segment {number}") if num_signals else None
    ends = np.cumsum([0, *sizes], dtype=np.int64)
    skips = indices.astype(np.int64) % 4
    return SegmentBundles(number, num_signals, signal, _UNITS.chosen(indices), indices, skips, ends, encoders)


def _by_hand(number: int, num_signals: int, sizes: list[int], encoders: tuple[int, ...]) -> list[Bundle]:
    places = [(place + 7 * number + 1) % len(_UNITS) for place in range(sum(sizes))]
    found: list[Bundle] = [(PlannedParcel("start", number, text=f"segment {number}"),)] * num_signals
    for begin, end in itertools.pairwise([0, *itertools.accumulate(sizes)]):
        bundle = tuple(
            PlannedParcel("unit", number, place, _UNITS[place], place % 4, encoder=encoder)
            for place in places[begin:end]
            for encoder in encoders
        )
        found.append(bundle or (PlannedParcel("blank", number),))
    return found


@given(segments=_SEGMENTS, data=st.data())
def test_a_cut_has_the_bundles_of_a_list(
    segments: list[tuple[int, list[int], tuple[int, ...]]], data: st.DataObject
) -> None:
    """A cut gives a unit to another bundle's rank, loses a signal, or takes another unit's seen rows."""
    bundles = Bundles([_segment(number, *segment) for number, segment in enumerate(segments)])
    listed = [bundle for number, segment in enumerate(segments) for bundle in _by_hand(number, *segment)]
    assert list(bundles) == listed
    assert len(bundles) == len(listed)
    assert [bundles[place] for place in range(len(listed))] == listed
    begin = data.draw(st.integers(0, len(listed)))
    end = data.draw(st.integers(begin, len(listed)))
    cut = pickle.loads(pickle.dumps(bundles.cut(begin, end)))  # as it travels
    assert list(cut) == list(bundles[begin:end]) == listed[begin:end]
    assert len(cut) == end - begin
    inner = data.draw(st.integers(0, len(cut)))
    assert list(cut.cut(inner, len(cut))) == listed[begin + inner : end]
    with pytest.raises(IndexError):
        bundles[len(listed)]


def _grouped_by_hand(bundles: list[Bundle], task_rows: int, share: int) -> list[list[Bundle]]:
    """The rule of read tasks, bundle by bundle."""
    tasks: list[list[Bundle]] = []
    last, rows = None, 0
    for bundle in bundles:
        units = [entry.source for entry in bundle if entry.source is not None]
        more = sum(unit.num_rows for unit in units)
        joins = not units or last is None or len(tasks[-1]) < share
        if units and last is not None:
            first = units[0]
            is_next = (first.file, first.row_group) == (last.file, last.row_group) and first.first_row > last.first_row
            joins = joins or is_next or (last.whole and first.whole and rows + more <= task_rows)
        if tasks and joins:
            tasks[-1].append(bundle)
        else:
            tasks.append([bundle])
            rows = 0
        last, rows = (units[-1] if units else last), rows + more
    return tasks


@given(segments=_SEGMENTS, task_rows=st.integers(0, 90), share=st.integers(1, 3))
@example(segments=[(0, [1, 1, 1], (0, 1))], task_rows=50, share=1)  # 22, 24 and 26 rows
@example(segments=[(0, [1, 1, 1], (0, 1))], task_rows=49, share=1)
@example(segments=[(0, [1, 1, 1], (0,))], task_rows=25, share=1)  # 11, 12 and 13 rows
def test_tasks_are_those_of_a_loop_over_bundles(
    segments: list[tuple[int, list[int], tuple[int, ...]]], task_rows: int, share: int
) -> None:
    """A row group is decoded twice, small row groups have tasks of their own, or a task has too many rows."""
    bundles = Bundles([_segment(number, *segment) for number, segment in enumerate(segments)])
    with mock.patch("pipeline.ingest.bundles.MANY_BUNDLES", -(-len(bundles) // share) or 1):
        share = -(-len(bundles) // (-(-len(bundles) // share) or 1))
        tasks = group_bundles(bundles, task_rows)
    assert [list(task) for task in tasks] == _grouped_by_hand(list(bundles), task_rows, share)


def test_a_cut_has_the_files_of_its_units_only() -> None:
    """A read task gets the names of all files of a day, or something of each day."""
    bundles = planned(alone([*unit_entries(_UNITS), *unit_entries(_UNITS, segment=1)]))
    (piece,) = bundles.cut(25, 26).pieces
    assert piece.segment == 1
    assert b"file-1" in pickle.dumps(piece)
    assert b"file-2" not in pickle.dumps(piece)
    assert b"file-2" in pickle.dumps(bundles)  # negative control


def test_a_plan_makes_no_object_of_a_unit(tiny_encoder: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    """A day of 150,000 units costs seconds, and an object for each, before the first row is read."""
    plan = RunPlan(
        Storage("nowhere"), whole_days([DayLog(DAY, _UNITS, {})]), 1, tiny_encoder, IngestConfig(), 1, (StreamStart,)
    )
    made: list[tuple[object, ...]] = []
    unit_of = Units._unit

    def counted(self: Units, *fields: object) -> Unit:
        made.append(fields)
        return unit_of(self, *fields)  # pyright: ignore[reportArgumentType]

    monkeypatch.setattr(Units, "_unit", counted)
    tasks = group_bundles(plan.bundles(plan.segments([StreamStart()], 2), 2), task_rows=0)
    assert len(tasks) > 1
    assert not made
    read = [entry for bundle in tasks[0] for entry in bundle if entry.kind == "unit"]
    assert len(made) == len(read) > 0  # a task makes those of its own units, and no other
