"""Counts of ids: their sum, their parts, and the little of them that an update needs, against the plain update."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from features.id_counts import IdCounts, SeenIds, merge_counts, split_keys
from features.tables import VocabularyConfig
from features.vocabulary import Vocabulary, VocabularyUpdate

# Neighbours, which share their high bits, and both ends of the range.
KEYS = [0, 1, 2, 2**32, 2**62 - 1, 2**62, 2**63 - 1, 2**63, 2**63 + 1, 2**64 - 3, 2**64 - 2, 2**64 - 1]
KEYS += [(0x9E3779B97F4A7C15 * k) % 2**64 for k in range(1, 13)]
COUNTS = st.dictionaries(st.sampled_from(KEYS), st.integers(1, 4), max_size=20)


def arrays(counts: dict[int, int]) -> IdCounts:
    keys = sorted(counts)
    return np.array(keys, np.uint64), np.array([counts[key] for key in keys], np.int64)


@given(parts=st.lists(COUNTS, min_size=1, max_size=5))
def test_counts_are_added_up(parts: list[dict[int, int]]) -> None:
    """Catches an id that is counted in one part only, or twice as two ids."""
    keys, counts = merge_counts(*map(arrays, parts))
    expected = {key: sum(part.get(key, 0) for part in parts) for part in parts for key in part}
    assert dict(zip(keys.tolist(), counts.tolist(), strict=True)) == expected
    assert keys.tolist() == sorted(expected)


@given(keys=st.sets(st.sampled_from(KEYS)), bits=st.integers(0, 6))
def test_a_key_is_in_the_part_of_its_high_bits(keys: set[int], bits: int) -> None:
    """Catches a key on a part's edge that two parts have, or none, or that another task's counts do not meet."""
    found = np.array(sorted(keys), np.uint64)
    parts = [found[place].tolist() for place in split_keys(found, 2**bits)]
    assert parts == [[key for key in sorted(keys) if key >> (64 - bits) == part] for part in range(2**bits)]


def test_a_number_of_parts_that_is_no_power_of_two_is_refused() -> None:
    """Catches parts that are cut at other bits than they are counted for."""
    with pytest.raises(AssertionError, match="3 parts"):
        split_keys(np.empty(0, np.uint64), 3)


def plain_update(start: Vocabulary, config: VocabularyConfig, day: str, counts: IdCounts) -> VocabularyUpdate:
    """Update by all ids of a day at once, in one process: the code of the versions before counts had parts."""
    keys, numbers = counts
    today = np.datetime64(day, "D").astype(np.int32)
    places = np.searchsorted(start.keys, keys)
    known = places < len(start)
    known[known] = start.keys[places[known]] == keys[known]
    last_seen = start.last_seen.copy()
    last_seen[places[known]] = np.maximum(last_seen[places[known]], today)
    new = np.flatnonzero(~known & (numbers >= config.min_count))
    new = new[np.argsort(-numbers[new], kind="stable")]
    free = start._free_rows()
    evicted = np.flatnonzero(today - last_seen >= config.keep_days) if len(new) > len(free) else new[:0]
    evicted = evicted[np.argsort(last_seen[evicted], kind="stable")][: len(new) - len(free)]
    given_rows = np.concatenate((free, start.rows[evicted]))[: len(new)]
    admitted = new[: len(given_rows)]
    stays = np.ones(len(start), bool)
    stays[evicted] = False
    changed = start._replace_ids(stays, last_seen, keys[admitted], given_rows, today)
    figures = {
        "seen": len(keys),
        "admitted": len(admitted),
        "evicted": len(evicted),
        "in_tail": len(keys) - int(known.sum()) - len(admitted),
        "no_room": len(new) - len(admitted),
        "size": len(changed),
    }
    return VocabularyUpdate(changed, np.sort(start.rows[evicted]), figures)


def update_in_parts(
    start: Vocabulary, config: VocabularyConfig, day: str, counts: IdCounts, num_parts: int
) -> VocabularyUpdate:
    """Update by the ids of parts, each cut by itself with the part's own keys of the vocabulary."""
    parts, own = split_keys(counts[0], num_parts), split_keys(start.keys, num_parts)
    found: Any = None
    for place, keys in zip(parts, own, strict=True):
        ids = SeenIds.of((counts[0][place], counts[1][place]), start.keys[keys], config.min_count, start.room)
        found = ids if found is None else found.joined(ids, start.room)
        assert len(found.new) == len(found.counts) <= start.room
        assert len(found.known) <= len(start)
    return start.update(config, day, found)


def assert_same(one: VocabularyUpdate, other: VocabularyUpdate) -> None:
    assert one.vocabulary.to_arrow() == other.vocabulary.to_arrow()
    np.testing.assert_array_equal(one.rows_to_reset, other.rows_to_reset)
    assert one.figures == other.figures


def empty(num_rows: int) -> Vocabulary:
    none = np.empty(0, np.int32)
    return Vocabulary("video", 3, num_rows, np.empty(0, np.uint64), none, none.copy())


@given(
    days=st.lists(COUNTS, min_size=1, max_size=5),
    num_rows=st.integers(4, 14),
    min_count=st.integers(1, 3),
    keep_days=st.integers(1, 3),
    bits=st.integers(0, 6),
)
def test_an_update_in_parts_is_the_plain_update(
    days: list[dict[int, int]], num_rows: int, min_count: int, keep_days: int, bits: int
) -> None:
    """Catches a cut of the new ids that drops one which finds a row, a tie that goes to the larger key, a known id of
    another part, a figure of one part only.
    """
    config = VocabularyConfig(kind="vocabulary", min_count=min_count, keep_days=keep_days, tail_rows=3)
    vocabulary = empty(num_rows)
    for number, counts in enumerate(days):
        day = str(np.datetime64(20_000 + number, "D"))
        expected = plain_update(vocabulary, config, day, arrays(counts))
        found = update_in_parts(vocabulary, config, day, arrays(counts), 2**bits)
        assert_same(found, expected)
        assert_same(vocabulary.update(config, day, vocabulary.seen(config, *arrays(counts))), expected)
        vocabulary = found.vocabulary


@pytest.mark.parametrize(("num_ids", "num_rows"), [(1, 5), (997, 300), (997, 700), (10_007, 2_000), (40_009, 100_000)])
@pytest.mark.parametrize("num_parts", [1, 2, 16, 64])
def test_many_ids_in_parts(num_ids: int, num_rows: int, num_parts: int) -> None:
    """Catches a difference that few ids do not show: tables that are full, and counts with many ties."""
    rng = np.random.default_rng(num_ids)
    config = VocabularyConfig(kind="vocabulary", min_count=2, keep_days=1, tail_rows=3)
    vocabulary = empty(num_rows)
    for number in range(4):
        keys = np.unique(rng.integers(0, 2 * num_ids, num_ids).astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15))
        counts = keys, rng.geometric(0.4, len(keys))
        day = str(np.datetime64(20_000 + number, "D"))
        expected = plain_update(vocabulary, config, day, counts)
        assert_same(update_in_parts(vocabulary, config, day, counts, num_parts), expected)
        vocabulary = expected.vocabulary


def test_what_an_update_needs_is_bounded_by_the_table() -> None:
    """Catches ids of a day that are kept although none of them can be admitted: memory that grows with the day."""
    keys = np.arange(100_000, dtype=np.uint64) << np.uint64(40)
    seen = SeenIds.of((keys, np.arange(len(keys))), keys[:50], 3, 20)
    assert (len(seen.known), len(seen.new), seen.num_seen, seen.num_frequent) == (50, 20, 100_000, 99_950)
    kept = seen.known.nbytes + seen.new.nbytes + seen.counts.nbytes
    assert kept <= 20 * 16 + 50 * 8
    assert all(array.base is None for array in (seen.known, seen.new, seen.counts)), "views keep all ids"
