"""Newest rows of users as arrays: against a dictionary of all ranks' rows, on one process and on several."""

from dataclasses import dataclass
from typing import Any
from unittest import mock

import numpy as np
import pyarrow as pa
import pytest
import torch
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st

from features.errors import DataError
from pipeline.log_passes.reduce_units import MergedRuns
from pipeline.scoring.newest_rows import PLACES, NewestRows, newest_over_ranks
from pipeline.trainer.worker_setup import Groups

TEXT = ["a", "", "b", "a" * 20, "ü", "ab"]
SPANS = st.lists(
    st.tuples(st.integers(0, 2), st.integers(0, 3), st.lists(st.none() | st.integers(-3, 2), min_size=1, max_size=9)),
    max_size=12,
)


def _id(user: int | None, text: bool) -> Any:
    return None if user is None else TEXT[user + 3] if text else user


def _run(spans: list[Any], text: bool, kinds: list[pa.DataType]) -> NewestRows | None:
    """Merge spans of rows; the vector of a row has its part, unit and row."""
    runs = MergedRuns(NewestRows.merged, len)
    for number, (part, unit, users) in enumerate(spans):
        rows = np.arange(len(users)) + 10 * number
        vectors = np.stack([np.full(len(users), part), np.full(len(users), unit), rows], 1).astype(np.float32)
        ids = pa.array([_id(user, text) for user in users], kinds[number % len(kinds)])
        found = NewestRows.of(ids, part, unit, rows, vectors)
        if len(found):
            runs.add(found)
    return runs.total()


def _plain(spans: list[Any], text: bool) -> dict[Any, tuple[int, int, int]]:
    newest: dict[Any, tuple[int, int, int]] = {}
    for number, (part, unit, users) in enumerate(spans):
        for place, user in enumerate(users):
            if user is not None:
                at = part, unit, 10 * number + place
                newest[_id(user, text)] = max(at, newest.get(_id(user, text), at))
    return newest


def _contents(found: NewestRows | None) -> dict[Any, tuple[int, ...]]:
    if found is None:
        return {}
    assert found.places[["part", "unit", "row"]].tolist() == [tuple(row) for row in found.vectors.astype(int).tolist()]
    assert len(set(found.ids.to_pylist())) == len(found)
    return dict(zip(found.ids.to_pylist(), found.places[["part", "unit", "row"]].tolist(), strict=True))


@given(spans=SPANS, text=st.booleans())
def test_runs_equal_a_dictionary(spans: list[Any], text: bool) -> None:
    """Catches a user who is lost or comes twice, an older row of a user, another user's vector, and files whose ids
    have several types.
    """
    kinds = [pa.string(), pa.dictionary(pa.int8(), pa.string())] if text else [pa.int64(), pa.int8(), pa.int32()]
    assert _contents(_run(spans, text, kinds)) == _plain(spans, text)


@pytest.mark.parametrize("backwards", [False, True])
def test_ids_of_files_with_wider_integers(backwards: bool) -> None:
    """Catches users whose ids do not fit the type of another file: an error of Arrow at the merge."""
    files: list[tuple[pa.DataType, list[int]]] = [
        (pa.int8(), [-128, 127]),
        (pa.uint8(), [255, 127]),
        (pa.dictionary(pa.int8(), pa.int16()), [300, -300]),
        (pa.int16(), [300, -32_768]),
        (pa.uint32(), [2**32 - 1, 255]),
        (pa.int32(), [70_000, 300]),
        (pa.int64(), [2**63 - 1, -(2**63), 70_000]),
    ]
    spans = [(0, unit, ids) for unit, (_, ids) in enumerate(files)]
    kinds = [kind for kind, _ in files]
    if backwards:
        spans, kinds = spans[::-1], kinds[::-1]
    found = _run(spans, False, kinds)
    assert found is not None
    assert found.ids.type == pa.int64()
    assert _contents(found) == _plain(spans, False)


@pytest.mark.parametrize("backwards", [False, True])
@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ([(pa.bool_(), [True]), (pa.int64(), [5, 1])], pa.int64()),
        ([(pa.uint64(), [5]), (pa.int64(), [5, -1])], pa.int64()),
        ([(pa.uint64(), [2**63 + 5]), (pa.int64(), [5, 1]), (pa.uint64(), [1])], pa.uint64()),
    ],
)
def test_ids_of_several_types(files: list[Any], expected: pa.DataType, backwards: bool) -> None:
    """Catches an id that the type of another file changes, and a type that depends on the order of the files."""
    spans = [(0, unit, ids) for unit, (_, ids) in enumerate(files)]
    kinds = [kind for kind, _ in files]
    if backwards:
        spans, kinds = spans[::-1], kinds[::-1]
    found = _run(spans, False, kinds)
    assert found is not None
    assert found.ids.type == expected
    assert _contents(found) == _plain(spans, False)


def test_ids_that_no_type_holds() -> None:
    """Catches ids that wrap around."""
    with pytest.raises(DataError, match="some users have negative ids, others ids of 2"):
        _run([(0, 0, [2**63]), (0, 1, [-1])], False, [pa.uint64(), pa.int64()])


def test_the_second_hash_tells_users_apart() -> None:
    """Catches two users of one key, as two texts may be, of whom only one is written."""
    rows = np.zeros(3, PLACES)
    rows["check"], rows["row"] = [1, 2, 1], [5, 3, 9]
    assert NewestRows(rows, pa.array([1, 2, 1]), np.zeros((3, 1), np.float32)).merged(
        NewestRows(rows[:0], pa.array([], pa.int64()), np.zeros((0, 1), np.float32))
    ).places["row"].tolist() == [9, 3]


def test_a_user_takes_few_bytes() -> None:
    """Catches Python objects for each user: hundreds of bytes, where the vector takes 32."""
    users = np.arange(10_000)
    found = NewestRows.of(pa.array(users), 0, 0, users, np.zeros((len(users), 8), np.float32))
    assert found.places.nbytes + found.ids.nbytes + found.vectors.nbytes <= 72 * len(found)


@dataclass(frozen=True)
class Compare:
    """Every rank has some of the spans."""

    spans: list[Any]
    text: bool

    def __call__(self, rank: int, num_ranks: int) -> tuple[dict[Any, Any], int, int]:
        """Returns the rank's newest users, the number of all, and the most bytes that were received at once."""
        groups, sizes = Groups.create(60), [0]
        send = dist.all_to_all_single

        def noted(output: torch.Tensor, *arguments: Any, **named: Any) -> Any:
            sizes.append(output.nbytes)
            return send(output, *arguments, **named)

        found = _run(self.spans[rank::num_ranks], self.text, [pa.string() if self.text else pa.int64()])
        places = np.empty(0, PLACES) if found is None else found.places
        # Nobody receives all users. Other tests run in this process afterwards.
        with mock.patch.multiple(dist, all_to_all_single=noted, all_gather_object=None):
            mine, num_users = newest_over_ranks(places, groups.control)
        return _contents(found.chosen(mine) if found else None), num_users, max(sizes)


@pytest.mark.parametrize("num_ranks", [1, 3])
@pytest.mark.parametrize("seed", [0, 1])
def test_ranks_agree_who_saw_a_user_last(run_ranks: Any, num_ranks: int, seed: int) -> None:
    """Catches a user that two ranks write, or none, and a rank without rows that the others wait for."""
    rng = np.random.default_rng(seed)
    spans = [
        (number // 7, number % 7, [None if user > 2 else int(user) for user in rng.integers(-3, 4, 5)])
        for number in range(2 if seed else 20)
    ]
    # Row numbers of a rank's spans are its own: units tell the ranks' rows apart.
    found = run_ranks(Compare(spans, text=True), num_ranks)
    expected = {user: place[:2] for user, place in _plain(spans, True).items()}
    assert [num_users for _, num_users, _ in found] == [len(expected)] * num_ranks
    together = [item for contents, _, _ in found for item in contents.items()]
    assert len(together) == len(expected)
    assert {user: place[:2] for user, place in together} == expected


def test_a_rank_receives_a_share_of_the_users(run_ranks: Any) -> None:
    """Catches ranks that receive the users of all ranks: memory that grows with their number."""
    spans = [(0, unit, list(range(1000 * unit, 1000 * unit + 1500))) for unit in range(3)]
    found = run_ranks(Compare(spans, text=False), 3)
    assert [num_users for _, num_users, _ in found] == [3500] * 3
    assert sorted(len(contents) for contents, _, _ in found) == [1000, 1000, 1500]  # a later unit's row is newer
    assert max(size for _, _, size in found) < 1.2 * 1500 * PLACES.itemsize
