"""Vocabulary of a table: each id's row and last day, and its update by a day's ids.

A vocabulary is a value: an update makes a new one from the old one, a day and its counts alone, so that a recomputation
gives the same. An id is known by its 64-bit key, `features.hashing.hash_ids`. For integers the hash is a bijection, so
two of them never share a key. Strings and binary ids are known by their hash: among n of them, two share a key with
odds of n^2 / 2^65, one in 400,000 for 10 million.
"""

import hashlib
from dataclasses import dataclass
from typing import Self

import numpy as np
import pyarrow as pa

from features.errors import DataError
from features.hashing import rows_of
from features.id_counts import SeenIds
from features.tables import TableConfig, VocabularyConfig

_FORMAT = "1"
_FIELDS = pa.schema([("key", pa.uint64()), ("row", pa.int32()), ("last_seen", pa.date32())])
_LAST_KEY = np.uint64(2**64 - 1)


@dataclass(frozen=True, slots=True)
class RowIndex:
    """Lookup index of a vocabulary; its arrays travel without copies.

    Args:
        keys: Increasing, with a sentinel at the end that stops every search, uint64 of shape (V + 1,).
        rows: Row of each key, int32 of shape (V + 1,); -1 for the sentinel.
        starts: Index of the first key with these high bits, int32 of shape (2^bits,); about one key apiece.
        tail_rows: Number of rows over which other ids are hashed.
    """

    keys: np.ndarray
    rows: np.ndarray
    starts: np.ndarray
    tail_rows: int

    def lookup(self, keys: np.ndarray) -> np.ndarray:
        """Return the rows of ids.

        Args:
            keys: uint64 of shape (N,).

        Returns:
            int32 of shape (N,): the id's own row, or one of the tail.
        """
        # Keys are uniform, so few share their high bits: a search takes one or two steps from the first. A binary
        # search of 10 million keys misses the processor's caches at every step: 40 times the time.
        bits = (len(self.starts) - 1).bit_length()
        high = keys >> np.uint64(64 - bits) if bits else np.zeros_like(keys)
        places = self.starts.take(high.view(np.int64)).astype(np.int64)
        found = self.keys.take(places)
        searching = np.flatnonzero(found < keys)
        while len(searching):
            places[searching] += 1
            found[searching] = stepped = self.keys.take(places[searching])
            searching = searching[stepped < keys[searching]]
        rows = self.rows.take(places)
        unknown = np.flatnonzero((found != keys) | (rows < 0))
        rows[unknown] = rows_of(keys[unknown], self.tail_rows)
        return rows


@dataclass(frozen=True, slots=True, eq=False)
class Vocabulary:
    """Mapping of ids to rows of a table. Rows below `tail_rows` belong to no single id.

    Args:
        table: The table's name.
        tail_rows: Rows over which ids without a row are hashed: [0, tail_rows).
        num_rows: Number of rows of the table; ids own rows in [tail_rows, num_rows).
        keys: Keys of the V ids with a row, increasing, uint64 of shape (V,).
        rows: Rows of these ids, int32 of shape (V,).
        last_seen: Newest day of these ids, in days since 1970-01-01, int32 of shape (V,).
    """

    table: str
    tail_rows: int
    num_rows: int
    keys: np.ndarray
    rows: np.ndarray
    last_seen: np.ndarray

    def __post_init__(self) -> None:
        for array in (self.keys, self.rows, self.last_seen):
            array.setflags(write=False)

    def __len__(self) -> int:
        return len(self.keys)

    @classmethod
    def empty(cls, table: TableConfig) -> Self:
        """Return a vocabulary without ids.

        Args:
            table: A table that declares a vocabulary.
        """
        assert isinstance(table.id_mapping, VocabularyConfig)
        none = np.empty(0, np.int32)
        return cls(table.name, table.id_mapping.tail_rows, table.num_rows, np.empty(0, np.uint64), none, none.copy())

    def grown(self, num_rows: int) -> Self:
        """Return a vocabulary of the same ids in a table of more rows.

        Raises:
            DataError: The table has fewer rows: ids would lose theirs.
        """
        if num_rows < self.num_rows:
            raise DataError(
                f"table {self.table!r} has {self.num_rows:,} rows and gives them to ids, the config declares "
                f"{num_rows:,}: it can grow, not shrink; restore num_rows or start a new root"
            )
        return type(self)(self.table, self.tail_rows, num_rows, self.keys, self.rows, self.last_seen)

    def index(self) -> RowIndex:
        """Return the lookup index of the vocabulary."""
        bits = len(self.keys).bit_length()
        firsts = np.arange(2**bits, dtype=np.uint64) << np.uint64(64 - bits) if bits else np.zeros(1, np.uint64)
        starts = np.searchsorted(self.keys, firsts).astype(np.int32)
        keys = np.append(self.keys, _LAST_KEY)
        return RowIndex(keys, np.append(self.rows, np.int32(-1)), starts, self.tail_rows)

    def lookup(self, keys: np.ndarray) -> np.ndarray:
        """Return the rows of ids, int32 of shape (N,), for keys, uint64 of shape (N,); repeated calls use `index`."""
        return self.index().lookup(keys)

    def seen(self, config: VocabularyConfig, keys: np.ndarray, counts: np.ndarray) -> SeenIds:
        """Return what `update` needs of a day's ids, or of those in a part of the range of keys.

        Args:
            config: Rules of admission and eviction.
            keys: Keys of the ids seen, increasing, each once, uint64 of shape (D,).
            counts: Occurrences of each id, int64 of shape (D,).
        """
        return SeenIds.of((keys, counts), self.keys, config.min_count, self.room)

    @property
    def room(self) -> int:
        """Number of rows for ids, given or free: an update admits no more new ids."""
        return self.num_rows - self.tail_rows

    def update(self, config: VocabularyConfig, day: str, seen: SeenIds) -> "VocabularyUpdate":
        """Admit the new and frequent ids of a day, if needed in place of those unseen for long.

        Free rows are given first, the lowest to the most frequent id. The ids that are left evict the ids unseen for
        the longest time; ties go by key. An id that finds no room stays in the tail, and is new again on the next day.

        Args:
            config: Rules of admission and eviction.
            day: ISO date; the newest of several days that are counted together.
            seen: Ids of the day, as `seen` returns them of this vocabulary.
        """
        today = np.datetime64(day, "D").astype(np.int32)
        last_seen = self.last_seen.copy()
        places = np.searchsorted(self.keys, seen.known)
        last_seen[places] = np.maximum(last_seen[places], today)
        free, num_new = self._free_rows(), len(seen.new)
        unseen = today - last_seen >= config.keep_days if num_new > len(free) else np.zeros(len(self), bool)
        evicted = np.flatnonzero(unseen)
        evicted = evicted[np.argsort(last_seen[evicted], kind="stable")][: max(num_new - len(free), 0)]
        given = np.concatenate((free, self.rows[evicted]))[:num_new]
        stays = np.ones(len(self), bool)
        stays[evicted] = False
        changed = self._replace_ids(stays, last_seen, seen.new[: len(given)], given, today)
        figures = {
            "seen": seen.num_seen,
            "admitted": len(given),
            "evicted": len(evicted),
            "in_tail": seen.num_seen - len(seen.known) - len(given),
            "no_room": seen.num_frequent - len(given),
            "size": len(changed),
        }
        return VocabularyUpdate(changed, np.sort(self.rows[evicted]), figures)

    def _free_rows(self) -> np.ndarray:
        free = np.ones(self.num_rows, bool)
        free[: self.tail_rows] = False
        free[self.rows] = False
        return np.flatnonzero(free).astype(np.int32)

    def _replace_ids(
        self, stays: np.ndarray, last_seen: np.ndarray, keys: np.ndarray, rows: np.ndarray, today: np.int32
    ) -> Self:
        """Return a vocabulary of the ids that stay, with their last days, and the new ids with the rows given today."""
        by_key = np.argsort(keys)
        new = (keys[by_key], rows[by_key], np.full(len(keys), today, np.int32))
        old = (self.keys[stays], self.rows[stays], last_seen[stays])
        merged = [np.concatenate(both) for both in zip(old, new, strict=True)]
        order = np.argsort(merged[0], kind="stable")  # a stable sort merges two sorted runs in one pass
        return type(self)(self.table, self.tail_rows, self.num_rows, *(column[order] for column in merged))

    def to_arrow(self) -> bytes:
        """Return an Arrow IPC file: one row per id, in order of keys; equal vocabularies give equal bytes."""
        days = pa.array(self.last_seen, pa.int32()).view(pa.date32())
        said = {"format": _FORMAT, "table": self.table, "tail_rows": self.tail_rows, "num_rows": self.num_rows}
        fields = _FIELDS.with_metadata({key: str(value) for key, value in (said | {"digest": self._digest()}).items()})
        sink = pa.BufferOutputStream()
        with pa.ipc.new_file(sink, fields) as writer:
            writer.write_batch(pa.record_batch([pa.array(self.keys), pa.array(self.rows), days], schema=fields))
        return sink.getvalue().to_pybytes()

    @classmethod
    def from_arrow(cls, data: bytes) -> Self:
        """Read the file that `to_arrow` wrote; the arrays are views of the bytes.

        Raises:
            DataError: The file is damaged, or of another format.
        """
        try:
            with pa.ipc.open_file(pa.py_buffer(data)) as file:
                batch = file.get_batch(0)
            said = {key.decode(): value.decode() for key, value in (batch.schema.metadata or {}).items()}
            if said["format"] != _FORMAT or not batch.schema.equals(_FIELDS):
                raise ValueError(f"format {said['format']!r} with columns {batch.schema.names}")
            columns = [
                column.to_numpy() for column in (batch["key"], batch["row"], batch["last_seen"].view(pa.int32()))
            ]
            read = cls(said["table"], int(said["tail_rows"]), int(said["num_rows"]), *columns)
            if read._digest() != said["digest"]:
                raise ValueError("its checksum differs")
        except (pa.ArrowException, ValueError, KeyError, IndexError, TypeError, OSError) as error:
            reason = " ".join(str(error).split())[:200]
            raise DataError(f"a vocabulary's Arrow file is damaged ({reason}): restore its checkpoint") from error
        return read

    def _digest(self) -> str:
        """Return a checksum of the whole content, since Arrow's format has none."""
        digest = hashlib.blake2b(f"{self.table}/{self.tail_rows}/{self.num_rows}".encode(), digest_size=16)
        for column in (self.keys, self.rows, self.last_seen):
            digest.update(column.data)
        return digest.hexdigest()


@dataclass(frozen=True, slots=True)
class VocabularyUpdate:
    """Result of a vocabulary's update by a day.

    Args:
        vocabulary: The new vocabulary.
        rows_to_reset: Rows that had another id before, increasing, int32: weights and optimizer state must start anew.
        figures: Distinct ids: `seen` on the day; `admitted`; `evicted`; `in_tail`, seen without a row of their own;
            `no_room`, those of them that were frequent enough; `size`, with a row.
    """

    vocabulary: Vocabulary
    rows_to_reset: np.ndarray
    figures: dict[str, int]
