"""The vocabulary: against a plain dictionary over any history, its file, its index, and how the encoder uses it."""

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from features.encoding import Encoder
from features.errors import ConfigError, DataError
from features.hashing import hash_ids, rows_of, salt_of, table_rows
from features.schema import Schema
from features.tables import TableConfig, VocabularyConfig
from features.vocabulary import Vocabulary

TAIL = 3
# Neighbours, which share their high bits, and both ends of the range.
KEYS = [0, 1, 2, 3, 2**32, 2**63 - 1, 2**63, 2**63 + 1, 2**63 + 2, 2**64 - 3, 2**64 - 2, 2**64 - 1]
KEYS += [(0x9E3779B97F4A7C15 * k) % 2**64 for k in range(1, 13)]


def make_table(num_rows: int, min_count: int = 2, keep_days: int = 2, tail_rows: int = TAIL) -> TableConfig:
    mapping = {"kind": "vocabulary", "min_count": min_count, "keep_days": keep_days, "tail_rows": tail_rows}
    return TableConfig.model_validate({"name": "video", "num_rows": num_rows, "dim": 4, "id_mapping": mapping})


def mapping_of(table: TableConfig) -> VocabularyConfig:
    assert isinstance(table.id_mapping, VocabularyConfig)
    return table.id_mapping


def iso(day: int) -> str:
    return str(np.datetime64(day, "D"))


def arrays(counts: dict[int, int]) -> tuple[np.ndarray, np.ndarray]:
    keys = sorted(counts)
    return np.array(keys, np.uint64), np.array([counts[key] for key in keys], np.int64)


def update(vocabulary: Vocabulary, table: TableConfig, day: int, counts: dict[int, int]) -> Any:
    mapping = mapping_of(table)
    return vocabulary.update(mapping, iso(day), vocabulary.seen(mapping, *arrays(counts)))


def contents(vocabulary: Vocabulary) -> dict[int, tuple[int, int]]:
    columns = (vocabulary.keys.tolist(), vocabulary.rows.tolist(), vocabulary.last_seen.tolist())
    return {key: (row, day) for key, row, day in zip(*columns, strict=True)}


# --- Against a dictionary ---


class Reference:
    """A vocabulary as one would write it down: dictionaries of rows and days, one id after the other."""

    def __init__(self, num_rows: int) -> None:
        self.num_rows = num_rows
        self.rows: dict[int, int] = {}
        self.last_seen: dict[int, int] = {}
        self.had_an_owner: set[int] = set()

    def update(self, day: int, counts: dict[int, int], min_count: int, keep_days: int) -> tuple[set[int], int]:
        """Returns the rows that have another owner now, and how many found no room."""
        for key in counts:
            if key in self.rows:
                self.last_seen[key] = max(self.last_seen[key], day)
        new = [key for key, count in counts.items() if key not in self.rows and count >= min_count]
        reused, homeless = set(), 0
        for key in sorted(new, key=lambda key: (-counts[key], key)):
            row = self._free_row() or self._evict(day, keep_days)
            if row is None:
                homeless += 1
                continue
            if row in self.had_an_owner:
                reused.add(row)
            self.had_an_owner.add(row)
            self.rows[key], self.last_seen[key] = row, day
        return reused, homeless

    def _free_row(self) -> int | None:
        return next((row for row in range(TAIL, self.num_rows) if row not in self.rows.values()), None)

    def _evict(self, day: int, keep_days: int) -> int | None:
        unseen = [key for key in self.rows if day - self.last_seen[key] >= keep_days]
        if not unseen:
            return None
        oldest = min(unseen, key=lambda key: (self.last_seen[key], key))
        del self.last_seen[oldest]
        return self.rows.pop(oldest)


days = st.tuples(
    st.just("day"), st.integers(0, 3), st.dictionaries(st.sampled_from(KEYS), st.integers(1, 4), max_size=12)
)
histories = st.lists(
    st.one_of(days, days, days, st.tuples(st.just("restart")), st.tuples(st.just("grow"), st.integers(0, 3))),
    max_size=14,
)


@given(
    history=histories, num_rows=st.integers(TAIL + 1, TAIL + 10), min_count=st.integers(1, 3), keep=st.integers(1, 4)
)
def test_it_equals_a_dictionary(history: list[Any], num_rows: int, min_count: int, keep: int):
    """Catches a row that two ids share, an id that loses its row while there is room or while it is in use, an order
    of admission or eviction that depends on anything but counts, days and keys, a row that is not named for a reset
    although somebody else had it or named although nobody had, and anything that a file or a larger table forgets.
    """
    table = make_table(num_rows, min_count, keep)
    vocabulary, reference, today = Vocabulary.empty(table), Reference(num_rows), 20_000
    for step, *arguments in history:
        if step == "restart":
            vocabulary = Vocabulary.from_arrow(vocabulary.to_arrow())
        elif step == "grow":
            reference.num_rows += arguments[0]
            vocabulary = vocabulary.grown(reference.num_rows)
        else:
            today += arguments[0]
            before = set(reference.rows)
            done = update(vocabulary, table, today, arguments[1])
            reused, homeless = reference.update(today, arguments[1], min_count, keep)
            vocabulary = done.vocabulary
            assert done.rows_to_reset.tolist() == sorted(reused)
            assert done.figures == {
                "seen": len(arguments[1]),
                "admitted": len(set(reference.rows) - before),
                "evicted": len(before - set(reference.rows)),
                "in_tail": len(set(arguments[1]) - set(reference.rows)),
                "no_room": homeless,
                "size": len(reference.rows),
            }
        assert contents(vocabulary) == {key: (row, reference.last_seen[key]) for key, row in reference.rows.items()}
        tail = rows_of(np.array(KEYS, np.uint64), TAIL).tolist()
        expected = [reference.rows.get(key, in_tail) for key, in_tail in zip(KEYS, tail, strict=True)]
        assert vocabulary.lookup(np.array(KEYS, np.uint64)).tolist() == expected


def test_the_dictionary_sees_all_that_can_happen():
    """The negative control of the histories: by hand, with rows 3 and 4 for ids, min_count 2 and keep_days 2."""
    table, reference = make_table(TAIL + 2), Reference(TAIL + 2)
    steps = [
        (100, {1: 2, 2: 5, 3: 1}, {1: 4, 2: 3}, [], 0),  # the more frequent one is first; 3 is too seldom
        (101, {1: 1, 3: 9}, {1: 4, 2: 3}, [], 1),  # no room: 2 was seen yesterday
        (102, {3: 2, 2**63: 2}, {1: 4, 3: 3}, [3], 1),  # 2 has not been seen for two days, 1 has
        (103, {1: 1}, {1: 4, 3: 3}, [], 0),
        (105, {}, {1: 4, 3: 3}, [], 0),  # nobody is evicted without need
        (105, {7: 2, 8: 3}, {7: 4, 8: 3}, [3, 4], 0),  # the longer unseen one goes first
    ]
    vocabulary = Vocabulary.empty(table)
    for day, counts, rows, reset, homeless in steps:
        done = update(vocabulary, table, day, counts)
        vocabulary = done.vocabulary
        assert {key: row for key, (row, _) in contents(vocabulary).items()} == rows
        assert done.rows_to_reset.tolist() == reset
        assert done.figures["no_room"] == homeless
        assert reference.update(day, counts, 2, 2) == (set(reset), homeless)


@given(days=st.lists(st.dictionaries(st.sampled_from(KEYS), st.integers(1, 4), max_size=12), min_size=1, max_size=5))
def test_an_update_depends_on_nothing_else(days: list[dict[int, int]]):
    """Catches an update that changes the vocabulary it starts from, so that a restart computes another one; and one
    that, made twice, admits or evicts again.
    """
    table = make_table(TAIL + 5, min_count=1, keep_days=1)
    vocabulary = Vocabulary.empty(table)
    for day, counts in enumerate(days):
        before = vocabulary.to_arrow()
        done, again = (update(vocabulary, table, day, counts) for _ in range(2))
        assert vocabulary.to_arrow() == before
        assert done.vocabulary.to_arrow() == again.vocabulary.to_arrow()
        assert done.rows_to_reset.tolist() == again.rows_to_reset.tolist()
        twice = update(done.vocabulary, table, day, counts)
        assert twice.vocabulary.to_arrow() == done.vocabulary.to_arrow()
        assert twice.rows_to_reset.tolist() == []
        vocabulary = done.vocabulary


def test_nobody_can_change_it():
    """Catches arrays that a caller writes into: two encoders of one node would look ids up differently."""
    vocabulary = update(Vocabulary.empty(make_table(10)), make_table(10), 1, {5: 2}).vocabulary
    for array in (vocabulary.keys, vocabulary.rows, vocabulary.last_seen):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 0


# --- Sizes ---


def test_a_table_does_not_shrink():
    """Catches ids that keep rows which the table no longer has."""
    vocabulary = Vocabulary.empty(make_table(10))
    assert vocabulary.grown(10).num_rows == 10
    with pytest.raises(DataError, match=r"table 'video' has 10 rows .* declares 9: it can grow, not shrink; restore"):
        vocabulary.grown(9)


@pytest.mark.parametrize("num_ids", [0, 1, 2, 3, 4, 5, 1000, 100_000])
def test_ids_are_found_at_all_sizes(num_ids: int):
    """Catches an index whose last or first bits are off by one, which a few crafted keys may miss."""
    keys = np.sort(hash_ids(pa.array(np.arange(num_ids)), 1))
    table = make_table(num_ids + TAIL + 1, min_count=1)
    start, mapping = Vocabulary.empty(table), mapping_of(table)
    vocabulary = start.update(mapping, iso(1), start.seen(mapping, keys, np.ones(len(keys), np.int64)))
    index, others = vocabulary.vocabulary.index(), hash_ids(pa.array(np.arange(num_ids, 2 * num_ids + 9)), 1)
    assert (index.lookup(keys) == vocabulary.vocabulary.rows).all()
    assert (index.lookup(others) == rows_of(others, TAIL)).all()
    assert np.diff(index.starts).max(initial=1) < 16


# --- The file ---


def test_a_damaged_file_is_refused():
    """Catches a file that is cut off or has a bit flipped, and is read as another vocabulary or ends in a traceback."""
    table = make_table(40, min_count=1)
    vocabulary = update(Vocabulary.empty(table), table, 3, {key: 1 for key in KEYS}).vocabulary
    data, said = vocabulary.to_arrow(), []
    for place in range(len(data)):
        flipped = bytearray(data)
        flipped[place] ^= 1 << place % 8
        for damaged in (bytes(flipped), data[:place]):
            try:
                assert Vocabulary.from_arrow(damaged).to_arrow() == data  # it was in the padding
            except DataError as error:
                said.append(str(error))
    assert len(said) > len(data)
    assert all("Arrow file is damaged" in text and "\n" not in text for text in said)


def test_another_format_is_refused():
    """Catches a table of another kind, or of a later version, that is read as if it were this one."""
    vocabulary = Vocabulary.empty(make_table(10))
    assert Vocabulary.from_arrow(vocabulary.to_arrow()).to_arrow() == vocabulary.to_arrow()
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, pa.schema([("key", pa.int64())])) as writer:
        writer.write_batch(pa.record_batch({"key": pa.array([1])}))
    for data in (b"", b"{}", sink.getvalue().to_pybytes()):
        with pytest.raises(DataError, match="damaged"):
            Vocabulary.from_arrow(data)


# --- In the encoder ---


def _schema(**changes: Any) -> Schema:
    table = make_table(20, min_count=1).model_dump(mode="json")
    return Schema.model_validate(
        {
            "tables": [table | changes, {"name": "author", "num_rows": 50, "dim": 4}],
            "features": [
                {"kind": "id", "name": "video", "table": "video"},
                {"kind": "sequence", "name": "watched", "table": "video", "max_length": 2},
                {"kind": "id", "name": "author", "table": "author"},
            ],
            "tasks": [{"name": "click", "label": "click"}],
        }
    )


IDS = {
    "integers": [7, -7, None, 2**62, 8],
    "strings": ["a", "", None, "a" * 20, "b"],
    "binary": [b"\x00", b"\x01", None, b"\x00\x00", b""],
}


@pytest.mark.parametrize("kind", IDS)
@pytest.mark.parametrize("dictionary", [False, True])
def test_the_encoder_looks_ids_up(kind: str, dictionary: bool):
    """Catches ids that are counted under one key and looked up under another, whatever their type; and a table that
    another table's vocabulary leaks into.
    """
    ids, schema = IDS[kind], _schema()
    column, watched = pa.array(ids), pa.array([[ids[0], ids[1], None, ids[3]], [], ids[3:], [], []])
    known = hash_ids(column.drop_null()[:3], salt_of(schema.hash_salt))
    table = schema.tables[0]
    vocabulary = update(Vocabulary.empty(table), table, 1, dict.fromkeys(known.tolist(), 1)).vocabulary
    columns = {"video": column, "watched": watched, "author": column, "click": pa.array([0, 1, 0, 1, 0])}
    if dictionary:
        columns["video"] = column.dictionary_encode()
    encoded = Encoder(schema, None, vocabularies={"video": vocabulary}).encode(columns)
    rows = {key: row for key, (row, _) in contents(vocabulary).items()}
    expected = dict(zip([ids[0], ids[1], ids[3]], [rows[key] for key in known.tolist()], strict=True))
    expected[ids[4]] = int(table_rows(pa.array([ids[4]]), salt_of(schema.hash_salt), TAIL)[0])
    assert len(set(expected.values())) == 4
    assert encoded.ids[0].tolist() == [expected[value] for value in ids if value is not None]
    assert encoded.ids[1].tolist() == [expected[value] for value in (ids[3], ids[3], ids[4])]
    assert encoded.offsets[1].tolist() == [0, 1, 1, 3, 3, 3]
    assert encoded.ids[2].tolist() == table_rows(column.drop_null(), salt_of(schema.hash_salt), 50).tolist()


@pytest.mark.parametrize(
    ("vocabularies", "message"),
    [
        ({}, "table 'video' declares a vocabulary, none is given"),
        ({"video": Vocabulary.empty(make_table(19))}, "table 'video' has num_rows 20, its vocabulary 19"),
        ({"video": Vocabulary.empty(make_table(20, tail_rows=2))}, "has tail_rows 3, its vocabulary 2"),
    ],
)
def test_the_encoder_wants_the_table_s_own(vocabularies: dict[str, Vocabulary], message: str):
    """Catches ids that are hashed for want of a vocabulary, or given rows that the table does not have."""
    with pytest.raises(ConfigError, match=message):
        Encoder(_schema(), None, vocabularies=vocabularies)
