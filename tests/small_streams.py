"""Shapes of small logs and of their reading, for tests of the stream and of the trainer on it."""

import itertools
from dataclasses import dataclass

from hypothesis import strategies as st

DAYS = ["2026-03-01", "2026-03-02"]


@dataclass(frozen=True)
class Shape:
    """A small log, and how it is read.

    Args:
        days: By day, file and row group: the number of rows.
        max_rows: Of a unit.
        batch_size: Rows of a rank's batch.
        interleave: Open units of a lane.
        units: Whether units are shuffled.
        rows: Whether the rows of a unit are.
        passes: Over all days.
        seed: Of the shuffles.
        every_steps: Steps between two checkpoints, where there are any.
        block_rows: Units with together at most so many rows share a block.
        lookahead: Batches that are made and counted together.
    """

    days: list[list[list[int]]]
    max_rows: int = 4
    batch_size: int = 3
    interleave: int = 1
    units: bool = True
    rows: bool = True
    passes: int = 1
    seed: int = 1
    every_steps: int = 1
    block_rows: int = 0
    lookahead: int = 1

    @property
    def num_rows(self) -> int:
        return sum(itertools.chain.from_iterable(itertools.chain.from_iterable(self.days)))


SHAPES = st.builds(
    Shape,
    # Two days of files of row groups; every day has a row.
    days=st.lists(
        st.lists(st.lists(st.integers(1, 9), max_size=3), min_size=1, max_size=3).filter(any), min_size=1, max_size=2
    ),
    max_rows=st.integers(2, 10),
    batch_size=st.integers(1, 7),
    interleave=st.integers(1, 4),
    units=st.booleans(),
    rows=st.booleans(),
    passes=st.integers(1, 2),
    seed=st.integers(0, 9),
    every_steps=st.integers(1, 3),
    block_rows=st.sampled_from([0, 7, 4096]),
    lookahead=st.sampled_from([1, 1, 2, 5]),
)
SORTED = Shape([[[9, 5], [7]], [[2], [8, 1]]], interleave=3, batch_size=4)
