"""Bundles of a plan, kept as arrays: any cut of them has the bundles that a list would have there."""

import itertools
import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_units import DAY, alone, planned, unit_entries

from features.encoding import Encoder
from pipeline.config.ingest import IngestConfig
from pipeline.ingest.bundles import Bundle, Bundles, PlannedParcel, SegmentBundles, group_bundles
from pipeline.ingest.parts import whole_days
from pipeline.ingest.plan import RunPlan, StreamStart
from pipeline.ingest.units import DayLog, Unit, Units
from pipeline.storage.files import Storage

_UNITS = Units(Unit(DAY, f"file-{n // 3}", n % 3, 0, 10 + n, whole=True) for n in range(12))

_SEGMENTS = st.lists(
    st.tuples(
        st.integers(0, 3),  # signals
        st.lists(st.integers(0, 3), max_size=5),  # units of each bundle; none: a blank
        st.sampled_from([(0,), (1,), (0, 1)]),  # encoders
    ),
    max_size=3,
)


def _segment(number: int, num_signals: int, sizes: list[int], encoders: tuple[int, ...]) -> SegmentBundles:
    """Bundles of units in another order than the log's, some of whose rows have been seen."""
    indices = (np.arange(sum(sizes), dtype=np.int32) * 5 + number) % len(_UNITS)
    signal = PlannedParcel("start", number, text=f"segment {number}") if num_signals else None
    ends = np.cumsum([0, *sizes], dtype=np.int64)
    skips = indices.astype(np.int64) % 4
    return SegmentBundles(number, num_signals, signal, _UNITS.chosen(indices), indices, skips, ends, encoders)


def _by_hand(number: int, num_signals: int, sizes: list[int], encoders: tuple[int, ...]) -> list[Bundle]:
    places = [(place * 5 + number) % len(_UNITS) for place in range(sum(sizes))]
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


def test_a_cut_has_the_files_of_its_units_only() -> None:
    """A read task gets the names of all files of a day."""
    (piece,) = planned(alone(unit_entries(_UNITS))).cut(4, 5).pieces
    assert b"file-1" in pickle.dumps(piece)
    assert b"file-2" not in pickle.dumps(piece)
    assert b"file-2" in pickle.dumps(planned(alone(unit_entries(_UNITS))))  # negative control


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
