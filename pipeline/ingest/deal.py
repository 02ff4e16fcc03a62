"""Deal of units to ranks, in order: a pure function of the day's units, the seed and the ranks.

A lane is the list of units of one rank. Lanes are drawn from the day's start, so they do not depend on the ranks'
speed. Ray Data's splitter then has to reproduce them. It gives each row to the rank with the fewest rows; since a block
is one row, it deals round and round, and a lane without a block for its turn gets a blank.
"""

import heapq
from collections.abc import Mapping, Sequence

import numpy as np

from features.hashing import salt_of
from pipeline.ingest.units import Unit, Units

Lanes = list[list[int]]


def generator(seed: int, *parts: object) -> np.random.Generator:
    """Return the random generator of a named quantity, e.g. (seed, "rows", pass, day, unit)."""
    return np.random.Generator(np.random.Philox(key=salt_of("/".join(map(str, (seed, *parts))))))


def deal(units: Units, num_ranks: int, order: Sequence[int], missing: Mapping[int, int] | None = None) -> Lanes:
    """Deal units to ranks: in the given order, each to the rank with the fewest rows so far, ties by rank.

    Args:
        units: The day's units.
        num_ranks: Number of ranks W.
        order: Indices into `units`, each at most once.
        missing: Number of rows that the model has not seen, by index; absent: all rows of every unit. Units without a
            missing row are not dealt.

    Returns:
        W lanes of indices into `units`.
    """
    lanes: Lanes = [[] for _ in range(num_ranks)]
    least = [(0, rank) for rank in range(num_ranks)]  # a heap of (rows so far, rank)
    of_unit = units.num_rows.tolist()
    for index in order:
        left = of_unit[index] if missing is None else missing.get(index, 0)
        if left:
            rows, rank = least[0]
            lanes[rank].append(index)
            heapq.heapreplace(least, (rows + left, rank))
    return lanes


def unit_order(units: Units, *, seed: int, pass_index: int, day: str, shuffle: bool) -> list[int]:
    """Return the order in which a day's units are dealt.

    Row groups are shuffled; the ranges of one row group stay together so that it is decoded once.
    """
    listed = units.row_groups()
    if shuffle:
        permutation = generator(seed, "units", pass_index, day).permutation(len(listed))
        listed = [listed[place] for place in permutation]
    return [index for group in listed for index in group]


def row_order(unit: Unit, *, seed: int, pass_index: int, shuffle: bool) -> np.ndarray:
    """Return the order of the rows within a unit, so that "its first n rows" means the same at every resume.

    Returns:
        int64 of shape (unit.num_rows,).
    """
    if not shuffle:
        return np.arange(unit.num_rows)
    return generator(seed, "rows", pass_index, unit.day, unit.key).permutation(unit.num_rows)


def bundled(lane: Sequence[int], units: Units, rows: Sequence[int], most_rows: int) -> list[list[int]]:
    """Group successive whole row groups of a lane that travel as one block.

    A range of a row group travels alone. The next range is another lane's, and is decoded with it in one go.

    Args:
        lane: Indices of units.
        units: The day's units.
        rows: Number of rows to read of each unit.
        most_rows: Maximum number of rows of a block of several units.

    Returns:
        Groups of at least one unit, in order.
    """
    bundles: list[list[int]] = []
    room = 0
    for index, whole in zip(lane, units.whole[np.array(lane, np.int64)].tolist(), strict=True):
        if bundles and whole and rows[index] <= room:
            bundles[-1].append(index)
            room -= rows[index]
        else:
            bundles.append([index])
            room = most_rows - rows[index] if whole else 0
    return bundles


def rounds(lanes: Lanes, rows: Mapping[int, int], slack_rows: int) -> list[list[int | None]]:
    """Align the lanes in turns, one entry per rank and turn; None is a blank.

    A lane that is more than `slack_rows` ahead of the slowest lane waits a turn: otherwise its blocks would pile up in
    the object store while the other lanes are read.

    Args:
        lanes: Indices of blocks, per rank.
        rows: Number of rows of each block.
        slack_rows: Maximum lead of a lane, in rows.

    Returns:
        Turns of W entries each; every lane's blocks appear once and in order.
    """
    turns: list[list[int | None]] = []
    place, fed = [0] * len(lanes), [0] * len(lanes)
    while True:
        behind = [fed[rank] for rank, lane in enumerate(lanes) if place[rank] < len(lane)]
        if not behind:
            return turns
        most = min(behind) + slack_rows
        turn: list[int | None] = []
        for rank, lane in enumerate(lanes):
            if place[rank] == len(lane) or fed[rank] > most:
                turn.append(None)
                continue
            index = lane[place[rank]]
            turn.append(index)
            place[rank] += 1
            fed[rank] += rows[index]
        turns.append(turn)
