"""The newest row of every user that a rank has seen, as arrays; the ranks compare them by shares of the keys."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import pyarrow as pa
import torch
import torch.distributed as dist

from features.columns import one_array
from features.errors import DataError
from features.hashing import hash_ids
from features.ids import id_type

_SALTS = (0, 0x5851F42D4C957F2D)
PLACES = np.dtype([("key", "<u8"), ("check", "<u8"), ("part", "<i4"), ("unit", "<i4"), ("row", "<i4")])
"""A user and a row: two hashes of the id, the first of which is a bijection of integers; part, unit, row within it."""


@dataclass(frozen=True, slots=True, eq=False)
class NewestRows:
    """Newest row of each of some users, with the user's vector.

    Args:
        places: Users and rows, by increasing key, `PLACES` of shape (U,).
        ids: Ids of the users, Arrow array of length U: int64, uint64, large strings or large binary.
        vectors: float32 of shape (U, width).
    """

    places: np.ndarray
    ids: pa.Array
    vectors: np.ndarray

    @classmethod
    def of(cls, ids: pa.Array, part: int, unit: int, rows: np.ndarray, vectors: np.ndarray) -> Self:
        """Return the newest row of each user among rows of one unit.

        Args:
            ids: Id of each of N rows, integers or text; a null is nobody's row.
            part: Index of the part.
            unit: Index of the unit.
            rows: Row within the unit, integers of shape (N,).
            vectors: float32 of shape (N, width).
        """
        somebody = np.flatnonzero(ids.is_valid().to_numpy(zero_copy_only=False))
        known = _wide(ids.take(pa.array(somebody)))
        places = np.empty(len(known), PLACES)
        places["key"], places["check"] = (hash_ids(known, salt) for salt in _SALTS)
        places["part"], places["unit"], places["row"] = part, unit, rows[somebody]
        newest = newest_of_users(places)
        return cls(places[newest], known.take(pa.array(newest)), vectors[somebody[newest]])

    def __len__(self) -> int:
        return len(self.places)

    def merged(self, other: Self) -> Self:
        """Return the newest rows of the users of both.

        Raises:
            DataError: No type holds the ids of both.
        """
        places = np.concatenate((self.places, other.places))
        newest = newest_of_users(places)
        kind = common_type([id_types(self.ids), id_types(other.ids)])
        ids = one_array(pa.chunked_array([self.ids.cast(kind), other.ids.cast(kind)])).take(pa.array(newest))
        mine = newest < len(self)
        vectors = np.empty((len(newest), self.vectors.shape[1]), np.float32)
        vectors[mine], vectors[~mine] = self.vectors[newest[mine]], other.vectors[newest[~mine] - len(self)]
        return type(self)(places[newest], ids, vectors)

    def chosen(self, mask: np.ndarray) -> Self:
        """Return the users for whom the mask, bool of shape (U,), is true."""
        return type(self)(self.places[mask], self.ids.filter(pa.array(mask)), self.vectors[mask])


def _wide(ids: pa.Array) -> pa.Array:
    """Return ids in the widest type of their kind: files may have several widths, and all users' text much length."""
    found = ids.type.value_type if pa.types.is_dictionary(ids.type) else ids.type
    if id_type(found) == "integer":
        return ids.cast(found if found == pa.uint64() else pa.int64())
    is_text = pa.types.is_string(found) or pa.types.is_large_string(found)
    return ids.cast(pa.large_string() if is_text else pa.large_binary())


def id_types(ids: pa.Array) -> list[pa.DataType]:
    """Return the types that hold ids as `NewestRows` has them: their own first, then the others without a loss."""
    others = {pa.int64(): pa.uint64(), pa.uint64(): pa.int64(), pa.large_string(): pa.large_binary()}
    try:
        ids.cast(others.get(ids.type, ids.type))
    except pa.ArrowInvalid:
        return [ids.type]
    return list(dict.fromkeys([ids.type, others.get(ids.type, ids.type)]))


def common_type(found: Sequence[list[pa.DataType]]) -> pa.DataType:
    """Return the type in which several arrays of ids are written; their order does not matter.

    Args:
        found: Result of `id_types` of each.

    Raises:
        DataError: There is none: some ids are negative, and others 2^63 or more.
    """
    own = {first for first, *_ in found}
    if len(own) == 1:
        return own.pop()
    for kind in (pa.int64(), pa.uint64(), pa.large_binary()):
        if all(kind in types for types in found):
            return kind
    raise DataError("some users have negative ids, others ids of 2^63 or more: write all ids with one type")


def newest_of_users(places: np.ndarray) -> np.ndarray:
    """Return the index of each user's newest row, by increasing key, int64 of shape (U,).

    Args:
        places: Users and rows, `PLACES` of shape (N,), in any order.
    """
    order = np.lexsort([places[name] for name in reversed(PLACES.names or ())])
    users = places[["key", "check"]][order]
    is_last = np.append(users[1:] != users[:-1], True)[: len(users)]
    return order[is_last]


def newest_over_ranks(places: np.ndarray, group: dist.ProcessGroup) -> tuple[np.ndarray, int]:
    """Return which rows are the newest of their users over all ranks, and the number of users; collective.

    Each rank compares the rows of a share of the users, and receives no others: 28 bytes a row.

    Args:
        places: Newest row of each user of this rank, `PLACES` of shape (U,).
        group: A group that moves CPU tensors (gloo).

    Returns:
        bool of shape (U,), and the number of distinct users of all ranks.
    """
    share = (places["key"] % np.uint64(group.size())).astype(np.int64)
    order = np.argsort(share, kind="stable")
    sent = np.bincount(share, minlength=group.size())
    received = _exchanged(sent, np.ones_like(sent), np.ones_like(sent), group)
    rows = _exchanged(places[order], sent, received, group)
    newest = np.zeros(len(rows), np.bool_)
    newest[newest_of_users(rows)] = True
    mine = np.empty(len(places), np.bool_)
    mine[order] = _exchanged(newest, received, sent, group)
    num_users = torch.tensor(int(newest.sum()))
    dist.all_reduce(num_users, group=group)
    return mine, int(num_users)


def _exchanged(values: np.ndarray, sent: np.ndarray, received: np.ndarray, group: dist.ProcessGroup) -> np.ndarray:
    """Send successive values to the ranks, so many to each, and return those of all ranks in order; collective."""
    size = values.dtype.itemsize
    found = np.empty(int(received.sum()), values.dtype)
    dist.all_to_all_single(
        torch.from_numpy(found.view(np.uint8)),
        torch.from_numpy(np.ascontiguousarray(values).view(np.uint8)),
        (received * size).tolist(),
        (sent * size).tolist(),
        group=group,
    )
    return found
