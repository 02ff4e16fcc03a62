"""The cursor and its audit: what the model has seen, through unions and JSON, and what is said when it is not once."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from features.errors import DataError
from pipeline.ingest.cursor import BatchCursor, DayCursor, Span, StoredCursor, audit, expected_sums, joined_sums, union
from pipeline.ingest.units import Unit, Units

_UNITS = [
    Unit("2026-03-01", "dt=2026-03-01/part-0.parquet", group, 0, rows, whole=True)
    for group, rows in enumerate((5, 1, 300, 8))
]
_DAY = Units(_UNITS)
_SUMS = expected_sums(_UNITS)
_ALL = [(index, list(range(unit.num_rows))) for index, unit in enumerate(_UNITS)]


def _batch(spans: list[tuple[int, list[int]]], in_space: tuple[int, ...] = (0, 0)) -> BatchCursor:
    listed = tuple(Span(index, _UNITS[index].salt, np.array(rows, np.int32)) for index, rows in spans)
    return BatchCursor(0, listed, np.array(in_space, np.int64))


def _stepped(spans: list[tuple[int, list[int]]]) -> DayCursor:
    cursor = DayCursor()
    for span in spans:
        cursor.advance(_batch([span]))
    return cursor


def test_an_audit_in_order():
    """A day that was trained exactly once is called wrong."""
    assert audit(_stepped(_ALL), _UNITS, _SUMS) == []
    assert (
        audit(_stepped([(index, [row]) for index, rows in reversed(_ALL) for row in reversed(rows)]), _UNITS, _SUMS)
        == []
    )


@pytest.mark.parametrize(
    ("unit", "rows", "count"),
    [
        (2, [*range(300), 17], 301),
        (2, [*range(17), *range(18, 300)], 299),
        (2, [*range(17), 18, *range(18, 300)], 300),  # one lost and one doubled: only the sum tells
        (2, [*range(299), 300], 300),  # a row that the unit does not have
        (1, [], 0),
        (1, [0, 0], 2),
    ],
)
def test_an_audit_names_the_unit(unit: int, rows: list[int], count: int):
    """A row is trained twice or lost, and the count alone is right."""
    wrong = _ALL.copy()
    wrong[unit] = (unit, rows)
    problems = audit(_stepped(wrong), _UNITS, _SUMS)
    size = _UNITS[unit].num_rows
    assert problems == [f"{_UNITS[unit].key}: {count} rows stepped of {size}, or not each of them once"]


def test_an_audit_names_both_units_of_a_swap():
    """Rows of one unit are counted as another's."""
    swapped = [*_ALL[:2], (3, list(range(8))), (2, list(range(292))), (3, list(range(292, 300)))]
    problems = audit(_stepped(swapped), _UNITS, _SUMS)
    assert [line.partition(": ")[0] for line in problems] == [_UNITS[2].key, _UNITS[3].key]
    exchanged = [*_ALL[:2], (2, _ALL[3][1]), (3, _ALL[2][1])]
    assert len(audit(_stepped(exchanged), _UNITS, _SUMS)) == 2


@given(num_ranks=st.integers(1, 7), units=st.integers(0, 4))
def test_the_ranks_share_the_sums_of_an_audit(num_ranks: int, units: int):
    """A unit is in no rank's share, in two, or comes back as another unit's; more ranks than units."""
    shares = [expected_sums(_UNITS[:units], rank, num_ranks) for rank in range(num_ranks)]
    assert max(map(len, shares)) - min(map(len, shares)) <= 1
    np.testing.assert_array_equal(joined_sums(shares), _SUMS[:units])
    if units and num_ranks in (2, 4) and units % num_ranks == 0:  # the control
        assert joined_sums(shares[::-1]).tolist() != _SUMS[:units].tolist()


@given(rows=st.lists(st.integers(0, 4), min_size=4, max_size=6))
def test_an_audit_is_empty_for_every_row_once_and_only_then(rows: list[int]):
    """The sums of different rows agree; the negative control, the count alone, is content with five of any rows."""
    problems = audit(_stepped([(0, rows), *_ALL[1:]]), _UNITS, _SUMS)
    assert (problems == []) == (Counter(rows) == Counter(range(5)))
    assume(len(rows) == 5)
    assert _stepped([(0, rows)]).seen[0] == _UNITS[0].num_rows


def test_units_do_not_share_sums():
    """Equal rows of two units are taken for each other's: sums depend on file, row group and range."""
    unit = _UNITS[3]
    others = [
        replace(unit, file="x"),
        replace(unit, row_group=9),
        replace(unit, first_row=8),
        replace(unit, num_rows=9),
    ]
    assert len({other.salt for other in [unit, *others]}) == 5


def _written_and_read(cursor: DayCursor) -> DayCursor:
    return DayCursor.from_stored(StoredCursor.from_arrow(cursor.to_stored(_DAY).to_arrow()), _DAY)


def test_padding_is_not_counted():
    """A batch of padding moves the cursor."""
    cursor = _stepped(_ALL)
    before = cursor.to_stored(_DAY)
    cursor.advance(_batch([]))
    assert cursor.to_stored(_DAY) == before
    assert _batch([]).num_rows == 0


def test_rows_in_space_add_up():
    """The rows in each task's space, which the ledger records, are those of one rank or of one batch."""
    one, other = DayCursor(), DayCursor()
    one.advance(_batch([(0, [0, 1, 2])], (3, 1)))
    one.advance(_batch([(1, [0])], (1, 0)))
    other.advance(_batch([(0, [3, 4])], (2, 2)))
    assert (one.in_space, one.num_rows) == ([4, 1], 4)
    for joined in (union([one, other]), union([DayCursor(), other, one]), union([union([one]), other, DayCursor()])):
        assert joined.in_space == [6, 3]
        assert joined.num_rows == 6
    assert union([]).in_space == []
    assert _written_and_read(one).in_space == [4, 1]


@given(data=st.data(), num_ranks=st.integers(1, 4))
def test_a_union_is_what_one_rank_would_have_seen(data: st.DataObject, num_ranks: int):
    """A unit that two ranks read, one before a resume and one after it, counts once, or its sum is lost."""
    ranks = [DayCursor() for _ in range(num_ranks)]
    alone = DayCursor()
    for index, rows in _ALL:
        for row in rows[:9]:
            batch = _batch([(index, [row])], (1, row % 2))
            alone.advance(batch)
            ranks[data.draw(st.integers(0, num_ranks - 1))].advance(batch)
    assert union(ranks) == alone
    assert union([union(ranks[:2]), *ranks[2:]]) == alone


@given(num_rows=st.integers(0, 300))
def test_a_cursor_is_written_and_read(num_rows: int):
    """A sum of 64 bits comes back rounded, or with another sign."""
    cursor = _stepped([(2, list(range(num_rows)))] if num_rows else [])
    before = _written_and_read(cursor)
    assert before == cursor
    left = {0: 5, 1: 1, 2: 300 - num_rows, 3: 8}
    assert cursor.missing(_DAY) == {index: rows for index, rows in left.items() if rows}
    cursor.advance(_batch([(2, [0])]))
    assert before != cursor  # negative control


@pytest.mark.parametrize(
    "changed",
    [
        [_UNITS[0], _UNITS[1], _UNITS[3]],
        [*_UNITS[:2], replace(_UNITS[2], num_rows=200), _UNITS[3]],
        [*_UNITS[:2], replace(_UNITS[2], num_rows=400), _UNITS[3]],
        [replace(unit, file="dt=2026-03-01/part-9.parquet") for unit in _UNITS],
    ],
    ids=["unit gone", "fewer rows", "more rows", "file renamed"],
)
def test_a_log_that_has_changed(changed: list[Unit]):
    """Rows are skipped that were never trained: "the first n rows" are other rows in a unit of another size."""
    data = _stepped([(2, list(range(150)))]).to_stored(_DAY)
    with pytest.raises(DataError, match=r"the checkpoint has trained 150 rows of \S+\.parquet#2\[0:300\]") as caught:
        DayCursor.from_stored(data, Units(changed))
    assert "\n" not in str(caught.value)
    added = [*_UNITS, replace(_UNITS[0], file="dt=2026-03-01/part-9.parquet")]
    assert DayCursor.from_stored(data, Units(added)).num_rows == 150


def test_a_cursor_beyond_its_unit():
    """A corrupted cursor, of more rows than there are, makes the number of missing rows negative."""
    data = StoredCursor({_UNITS[1].key: (2, 1)})
    with pytest.raises(DataError, match="has trained 2 rows of"):
        DayCursor.from_stored(data, _DAY)
