"""Planned parcels of a run in the splitter's order of dealing, kept as arrays, and grouped into read tasks.

A day has 150,000 units. An object for each of them, before the first row is read, costs seconds and memory. So parcels
are made when a bundle is asked for: by the read task.
"""

import itertools
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, overload

import numpy as np

from pipeline.ingest.units import Unit, Units

SMALL_ROWS = 4096
"""Units of together at most so many rows share a block, if they are of one rank, and a read task."""

MANY_BUNDLES, MOST_BUNDLES = 16_384, 16
"""Bundles from which on several share a read task, whatever their rows; and the largest number of those."""

Kind = Literal["start", "unit", "blank", "bad"]


@dataclass(frozen=True, slots=True)
class PlannedParcel:
    """Plan of a parcel.

    Args:
        kind: `start`, `unit`, `blank`, or a `bad` plan.
        segment: Index of the segment.
        unit: Index of the unit among those of its log; -1 for other kinds.
        source: The unit; None for other kinds.
        skip: Number of rows of the unit, in its row order, that the model has seen.
        text: The header of a `start`, or the error.
        encoder: Index of the encoder of a unit's rows.
    """

    kind: Kind
    segment: int
    unit: int = -1
    source: Unit | None = None
    skip: int = 0
    text: str = ""
    encoder: int = 0


Bundle = tuple[PlannedParcel, ...]
"""Parcels of one rank that travel as one block: several where units have few rows, else one."""


@dataclass(frozen=True, slots=True, eq=False)
class SegmentBundles:
    """Successive bundles of one segment: signals, then bundles of units; a bundle without units is a blank.

    Args:
        segment: Index of the segment.
        num_signals: Number of bundles that are the signal, before all others.
        signal: Parcel of a signal; None without signals.
        units: Units of the bundles, in order.
        indices: Index of each unit among those of its log, int32 of shape (N,).
        skips: Number of rows of each unit that the model has seen, int64 of shape (N,).
        ends: First unit of each bundle after the signals, and N, int64 of shape (B + 1,).
        encoders: Indices of the encoders of every unit's rows.
    """

    segment: int
    num_signals: int
    signal: PlannedParcel | None
    units: Units
    indices: np.ndarray
    skips: np.ndarray
    ends: np.ndarray
    encoders: tuple[int, ...] = (0,)

    @classmethod
    def signals(cls, signal: PlannedParcel, num: int) -> "SegmentBundles":
        """Return so many bundles of one signal; a blank is one too."""
        none = np.empty(0, np.int64)
        return cls(signal.segment, num, signal, Units(()), none.astype(np.int32), none, np.zeros(1, np.int64))

    def __len__(self) -> int:
        return self.num_signals + len(self.ends) - 1

    def __iter__(self) -> Iterator[Bundle]:
        if self.signal is not None:
            yield from itertools.repeat((self.signal,), self.num_signals)
        entries = zip(self.units, self.indices.tolist(), self.skips.tolist(), strict=True)
        for begin, end in itertools.pairwise(self.ends.tolist()):
            bundle = tuple(
                PlannedParcel("unit", self.segment, index, unit, skip, encoder=encoder)
                for unit, index, skip in itertools.islice(entries, end - begin)
                for encoder in self.encoders
            )
            yield bundle or (PlannedParcel("blank", self.segment),)

    def cut(self, begin: int, end: int) -> "SegmentBundles":
        """Return the bundles from one to another, exclusive, with the units of these bundles only."""
        first, last = (min(max(place - self.num_signals, 0), len(self.ends) - 1) for place in (begin, end))
        ends = self.ends[first : last + 1]
        units = slice(int(ends[0]), int(ends[-1]))
        return SegmentBundles(
            self.segment,
            max(min(end, self.num_signals) - begin, 0),
            self.signal if begin < self.num_signals else None,
            self.units.chosen(units),
            self.indices[units],
            self.skips[units],
            ends - ends[0],
            self.encoders,
        )


class Bundles(Sequence[Bundle]):
    """Bundles of successive segments, in order; made when they are asked for.

    Args:
        pieces: Bundles of segments.
    """

    __slots__ = ("_begins", "pieces")

    def __init__(self, pieces: Sequence[SegmentBundles]) -> None:
        self.pieces = tuple(pieces)
        self._begins = [0, *itertools.accumulate(len(piece) for piece in self.pieces)]

    @overload
    def __getitem__(self, place: int) -> Bundle: ...
    @overload
    def __getitem__(self, place: slice) -> Sequence[Bundle]: ...
    def __getitem__(self, place: int | slice) -> Bundle | Sequence[Bundle]:
        places = range(len(self))[place]
        if isinstance(places, int):
            return next(iter(self.cut(places, places + 1)))
        return list(self)[place]

    def __len__(self) -> int:
        return self._begins[-1]

    def __iter__(self) -> Iterator[Bundle]:
        return itertools.chain.from_iterable(self.pieces)

    def cut(self, begin: int, end: int) -> "Bundles":
        """Return the bundles from one to another, exclusive; their size does not depend on the others."""
        begins, end = self._begins, min(end, len(self))
        first, last = bisect_right(begins, begin) - 1, bisect_left(begins, end)
        return Bundles(
            [
                self.pieces[place].cut(max(begin - begins[place], 0), min(end, begins[place + 1]) - begins[place])
                for place in range(first, last)
                if begins[place] < begins[place + 1]
            ]
        )


class ReadTasks(Sequence[Bundles]):
    """Bundles of each read task, in order; cut out when they are asked for.

    Args:
        bundles: All bundles.
        begins: First bundle of each task, increasing.
    """

    def __init__(self, bundles: Bundles, begins: Sequence[int]) -> None:
        self._bundles = bundles
        self._ends = [*begins, len(bundles)]

    @overload
    def __getitem__(self, place: int) -> Bundles: ...
    @overload
    def __getitem__(self, place: slice) -> Sequence[Bundles]: ...
    def __getitem__(self, place: int | slice) -> Bundles | Sequence[Bundles]:
        places = range(len(self))[place]
        if isinstance(places, int):
            return self._bundles.cut(self._ends[places], self._ends[places + 1])
        return [self[one] for one in places]

    def __len__(self) -> int:
        return len(self._ends) - 1


def group_bundles(bundles: Bundles, task_rows: int = SMALL_ROWS) -> ReadTasks:
    """Group bundles into tasks, in order.

    Successive ranges of one row group share a task, and its decoding. So do whole row groups of few rows, and the
    opening of their file: it costs more than reading them. Successive bundles of a large day share a task, whatever
    their rows, since Ray Data stores every task as an object before the first row is read.

    Args:
        bundles: Bundles in order.
        task_rows: Units share a task if they have no more rows than this together.
    """
    begins: list[int] = [0] if len(bundles) else []
    last_group, last_first_row, last_whole = -1, 0, False
    rows = 0  # of the units of the newest task
    share = min(MOST_BUNDLES, -(-len(bundles) // MANY_BUNDLES))
    for number, more, (group, first_row, whole), last in _edges(bundles):
        is_small = last_group >= 0 and last_whole and whole and rows + more <= task_rows
        is_next_range = group == last_group and first_row > last_first_row
        if last_group >= 0 and not (is_small or is_next_range or number - begins[-1] < share):
            begins.append(number)
            rows = 0
        last_group, last_first_row, last_whole = last
        rows += more
    return ReadTasks(bundles, begins)


_Edge = tuple[int, int, bool]
"""A unit at the edge of a bundle: number of its row group, first row, True if it is all of the row group."""


def _edges(bundles: Bundles) -> Iterator[tuple[int, int, _Edge, _Edge]]:
    """Yield number, rows, first and last unit of each bundle that has units."""
    files: dict[str, int] = {}
    begin = 0
    for piece in bundles.pieces:
        starts, ends = piece.ends[:-1], piece.ends[1:]
        filled = np.flatnonzero(ends > starts)
        sums = np.concatenate(([0], np.cumsum(piece.units.num_rows))) * len(piece.encoders)
        more = sums[ends[filled]] - sums[starts[filled]]
        groups = piece.units.group_numbers(files)
        columns = [
            [column[places].tolist() for column in (groups, piece.units.first_rows, piece.units.whole)]
            for places in (starts[filled], ends[filled] - 1)
        ]
        numbers = (filled + begin + piece.num_signals).tolist()
        yield from zip(
            numbers, more.tolist(), zip(*columns[0], strict=True), zip(*columns[1], strict=True), strict=True
        )
        begin += len(piece)
