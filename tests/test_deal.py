"""The deal: every row to one rank, evenly, as a pure function; and the turns in which a splitter repeats it."""

import itertools
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pipeline.ingest.deal import Lanes, bundled, deal, rounds, row_order, unit_order
from pipeline.ingest.units import Unit, Units

DAY = "2026-03-01"


def _units(row_groups: list[int], max_rows: int = 10**9) -> Units:
    """Units of row groups of the given sizes, two row groups a file."""
    return Units(
        Unit(
            DAY, f"dt={DAY}/part-{group // 2}.parquet", group % 2, first, min(max_rows, rows - first), rows <= max_rows
        )
        for group, rows in enumerate(row_groups)
        for first in range(0, rows, max_rows)
    )


@st.composite
def _days(draw: st.DrawFn) -> Units:
    """A day's units: sizes alike or far apart, now and then cut into ranges, now and then one row in all."""
    sizes = draw(st.lists(st.integers(1, 9) | st.integers(1, 100_000), min_size=1, max_size=10))
    return _units(sizes, -(-max(sizes) // draw(st.integers(1, 4))))


_RANKS = st.integers(1, 5)
_ONE_ROW = _units([1])


def _rows(units: Units, lanes: Lanes, missing: dict[int, int] | None = None) -> list[int]:
    return [sum(missing[index] if missing else units[index].num_rows for index in lane) for lane in lanes]


def _check_deal(units: Units, lanes: Lanes, num_ranks: int) -> None:
    assert len(lanes) == num_ranks
    assert Counter(itertools.chain(*lanes)) == Counter(range(len(units)))
    rows = _rows(units, lanes)
    assert max(rows) - min(rows) <= max(unit.num_rows for unit in units)


@given(units=_days(), num_ranks=_RANKS, seed=st.integers(0, 99), shuffle=st.booleans())
@example(units=_ONE_ROW, num_ranks=5, seed=0, shuffle=True)
@example(units=_units([7, 7]), num_ranks=3, seed=0, shuffle=False)
def test_every_unit_is_dealt_once_and_evenly(units: Units, num_ranks: int, seed: int, shuffle: bool):
    """A unit is dealt twice or to nobody, or one rank gets more than a unit more than another."""
    order = unit_order(units, seed=seed, pass_index=0, day=DAY, shuffle=shuffle)
    _check_deal(units, deal(units, num_ranks, order), num_ranks)


def test_other_ways_to_deal_are_seen_to_fail():
    """Negative control: round and round is not even, and halves of a list lose what is left over."""
    units = _units([100, 1, 100, 1, 100, 1])
    with pytest.raises(AssertionError):
        _check_deal(units, [[0, 2, 4], [1, 3, 5]], 2)
    with pytest.raises(AssertionError):
        _check_deal(units, [[0, 1], [2, 3]], 2)
    _check_deal(units, deal(units, 2, range(6)), 2)


def test_a_deal_by_hand():
    """A tie goes to the lower rank, and what a lane has counts, not how often it was dealt to."""
    units = _units([5, 3, 2, 4, 1])
    # Rank 0 has 5, rank 1 then 3 + 2, a tie of 5: rank 0 gets 4, rank 1 the 1.
    assert deal(units, 2, range(5)) == [[0, 3], [1, 2, 4]]
    assert deal(units, 4, range(2)) == [[0], [1], [], []]


@given(units=_days(), num_ranks=st.integers(1, 12), seed=st.integers(0, 99))
def test_the_deal_is_to_the_rank_with_the_fewest_rows(units: Units, num_ranks: int, seed: int):
    """The heap gives a tie to another rank than a scan over all ranks, which checkpoints of earlier versions have."""
    order = unit_order(units, seed=seed, pass_index=0, day=DAY, shuffle=True)
    lanes: Lanes = [[] for _ in range(num_ranks)]
    rows = [0] * num_ranks
    for index in order:
        rank = rows.index(min(rows))
        lanes[rank].append(index)
        rows[rank] += units[index].num_rows
    assert deal(units, num_ranks, order) == lanes


@given(units=_days(), num_ranks=_RANKS, data=st.data())
def test_what_is_missing_is_dealt_once_and_evenly(units: Units, num_ranks: int, data: st.DataObject):
    """A resume with another number of ranks loses a half-read unit, or deals units that were finished."""
    left = {index: data.draw(st.integers(0, unit.num_rows)) for index, unit in enumerate(units)}
    missing = {index: rows for index, rows in left.items() if rows}
    lanes = deal(units, num_ranks, range(len(units)), missing)
    assert Counter(itertools.chain(*lanes)) == Counter(list(missing))
    rows = _rows(units, lanes, missing)
    assert max(rows) - min(rows) <= max(missing.values(), default=0)


@given(units=_days(), num_ranks=_RANKS, seed=st.integers(0, 99), shuffle=st.booleans())
def test_the_deal_is_a_function_of_its_arguments(units: Units, num_ranks: int, seed: int, shuffle: bool):
    """A rank that plans again, or another process, gets other lanes: from a global generator, `hash` or a set."""
    orders = [unit_order(units, seed=seed, pass_index=1, day=DAY, shuffle=shuffle) for _ in range(2)]
    copies = Units(replace(unit, file="".join(unit.file)) for unit in units)
    assert orders[0] == orders[1] == unit_order(copies, seed=seed, pass_index=1, day=DAY, shuffle=shuffle)
    np.random.seed(seed)
    assert deal(units, num_ranks, orders[0]) == deal(copies, num_ranks, orders[1])
    rows = [row_order(unit, seed=seed, pass_index=1, shuffle=shuffle) for unit in (units[0], copies[0])]
    np.testing.assert_array_equal(*rows)


# --- Orders ---


@given(units=_days(), seed=st.integers(0, 99), shuffle=st.booleans())
def test_ranges_of_a_row_group_stay_together(units: Units, seed: int, shuffle: bool):
    """A row group is decoded once for each of its ranges."""
    order = unit_order(units, seed=seed, pass_index=0, day=DAY, shuffle=shuffle)
    assert sorted(order) == list(range(len(units)))
    groups = [key for key, _ in itertools.groupby(order, lambda index: (units[index].file, units[index].row_group))]
    assert len(groups) == len(set(groups))
    for before, after in itertools.pairwise(order):
        if units[before].file == units[after].file and units[before].row_group == units[after].row_group:
            assert units[before].first_row < units[after].first_row
    if not shuffle:
        assert order == sorted(order)


def test_a_shuffle_is_one_of_row_groups_not_of_ranges():
    """Negative control of the test above: a permutation of the units tears row groups apart."""
    units = _units([30] * 4, max_rows=3)
    order = np.random.default_rng(0).permutation(len(units)).tolist()
    groups = [key for key, _ in itertools.groupby(order, lambda index: (units[index].file, units[index].row_group))]
    assert len(groups) > len(set(groups))


@given(num_rows=st.integers(1, 500), seed=st.integers(0, 9), pass_index=st.integers(0, 3))
def test_the_rows_of_a_unit_are_permuted(num_rows: int, seed: int, pass_index: int):
    """The first n rows and the rest are not all rows."""
    unit = _units([num_rows])[0]
    shuffled = row_order(unit, seed=seed, pass_index=pass_index, shuffle=True)
    assert sorted(shuffled.tolist()) == list(range(num_rows))
    np.testing.assert_array_equal(row_order(unit, seed=seed, pass_index=pass_index, shuffle=False), np.arange(num_rows))


def test_every_pass_day_unit_and_seed_has_an_order_of_its_own():
    """All passes see the rows in one order, or all units are permuted alike."""
    one, other = _units([64, 64])
    orders = [
        row_order(unit, seed=seed, pass_index=pass_index, shuffle=True).tolist()
        for unit in (one, other, replace(one, day="2026-03-02"), replace(one, first_row=64))
        for seed in (0, 1)
        for pass_index in (0, 1)
    ]
    assert len({tuple(order) for order in orders}) == 16
    units = _units([1] * 40)
    orders = [
        unit_order(units, seed=seed, pass_index=pass_index, day=day, shuffle=True)
        for seed in (0, 1)
        for pass_index in (0, 1)
        for day in (DAY, "2026-03-02")
    ]
    assert len({tuple(order) for order in orders}) == 8


def test_orders_are_the_same_for_years():
    """A checkpoint of last year says "the first 4 rows", and a new numpy or a new salt means other ones."""
    (unit,) = _units([10])
    assert row_order(unit, seed=7, pass_index=0, shuffle=True).tolist() == [3, 0, 7, 2, 4, 9, 5, 6, 1, 8]
    assert unit_order(_units([1] * 8), seed=7, pass_index=0, day=DAY, shuffle=True) == [3, 5, 7, 4, 2, 1, 0, 6]


# --- Turns ---


def _check_turns(lanes: Lanes, rows: dict[int, int], slack: int, turns: list[list[int | None]]) -> None:
    place, fed = [0] * len(lanes), [0] * len(lanes)
    for turn in turns:
        assert len(turn) == len(lanes)
        assert any(index is not None for index in turn)
        behind = min(fed[rank] for rank, lane in enumerate(lanes) if place[rank] < len(lane))
        allowed = [place[rank] < len(lane) and fed[rank] <= behind + slack for rank, lane in enumerate(lanes)]
        for rank, index in enumerate(turn):
            assert (index is not None) == allowed[rank]  # a blank where it is needed, and only there
            if index is not None:
                assert index == lanes[rank][place[rank]]
                place[rank] += 1
                fed[rank] += rows[index]
    assert place == [len(lane) for lane in lanes]


@given(units=_days(), num_ranks=_RANKS, slack=st.integers(0, 150_000), data=st.data())
def test_turns_repeat_the_lanes(units: Units, num_ranks: int, slack: int, data: st.DataObject):
    """A unit comes twice, not at all or to another rank, or a lane runs away and piles up in the object store."""
    lanes: Lanes = [[] for _ in range(num_ranks)]
    for index in range(len(units)):  # any lanes, also those of a resume, which no longer are even
        lanes[data.draw(st.integers(0, num_ranks - 1))].append(index)
    rows = {index: unit.num_rows for index, unit in enumerate(units)}
    _check_turns(lanes, rows, slack, rounds(lanes, rows, slack))


def test_turns_by_hand():
    """Lane 0 has one large unit, lane 1 many small ones, lane 2 none."""
    lanes, rows = [[0, 1], [2, 3, 4, 5], []], {0: 10, 1: 10, 2: 3, 3: 3, 4: 3, 5: 3}
    assert rounds(lanes, rows, slack_rows=4) == [
        [0, 2, None],
        [None, 3, None],  # 10 is more than 3 + 4
        [1, 4, None],  # 10 is not more than 6 + 4
        [None, 5, None],
    ]
    assert rounds([[], []], {}, 4) == []


def test_turns_without_slack_are_seen_to_fail():
    """Negative control: lanes that are lined up unit by unit run apart, and blanks at will are not needed."""
    lanes, rows = [[0, 1], [2, 3, 4]], {0: 10, 1: 10, 2: 1, 3: 1, 4: 1}
    with pytest.raises(AssertionError):
        _check_turns(lanes, rows, 2, [[0, 2], [1, 3], [None, 4]])
    with pytest.raises(AssertionError):
        _check_turns(lanes, rows, 100, [[0, None], [1, 2], [None, 3], [None, 4]])
    with pytest.raises(AssertionError):
        _check_turns(lanes, rows, 100, [[0, 2], [1, 3]])


@given(units=_days(), data=st.data(), most=st.integers(0, 200_000))
def test_blocks_of_units(units: Units, data: st.DataObject, most: int):
    """A small unit of a lane is left out or comes before its turn, or a block of many units is too large."""
    lane = data.draw(st.permutations(range(len(units))))
    rows = [unit.num_rows for unit in units]
    blocks = bundled(lane, units, rows, most)
    assert list(itertools.chain(*blocks)) == list(lane)
    sizes = [sum(rows[index] for index in block) for block in blocks]
    assert all(block and (len(block) == 1 or size <= most) for block, size in zip(blocks, sizes, strict=True))
    for (size, before), (_, after) in itertools.pairwise(zip(sizes, blocks, strict=True)):
        could_join = units[before[0]].whole and units[after[0]].whole
        assert not could_join or size + rows[after[0]] > most  # none could have been joined
    assert all(len(block) == 1 or all(units[index].whole for index in block) for block in blocks)
