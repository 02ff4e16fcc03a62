"""Pass over units in Ray Data tasks, for computations on a log beside training; each task merges what it finds."""

import itertools
import pickle
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import ray.data

from features.errors import DataError
from pipeline.config.ingest import IngestConfig
from pipeline.ingest.units import DayLog, Unit

MOST_TASKS = 4096
"""A pass has at most so many tasks, whatever the number of units: the driver merges the result of each."""

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class UnitsResult(Generic[Result]):
    """Result of successive units.

    Args:
        rows: Rows of the units.
        merged: Their merged result; None if no unit has one.
        errors: Errors of units that the pass leaves out.
    """

    rows: int
    merged: Result | None
    errors: tuple[str, ...] = ()


def reduce_units(
    days: Sequence[DayLog],
    work: Callable[[Unit], Result | str],
    merge: Callable[[Result, Result], Result],
    ingest: IngestConfig,
) -> Iterator[UnitsResult[Result]]:
    """Apply a function to every unit in data tasks, and merge the results of each task's units.

    The runs of units, and the order of the merges, depend on the units alone. So a result is the same on any cluster.

    Args:
        days: Days of the units.
        work: Picklable function of a unit; text is the error of a unit that the pass leaves out.
        merge: Picklable function that merges two results into the first.
        ingest: CPUs of a task, and the nodes on which tasks run.

    Yields:
        The results, in unit order; a consumer that merges one at a time does not hold them all.

    Raises:
        DataError: The function raised it for a unit.
    """
    context = ray.data.DataContext.get_current().copy()  # the process's own stays as it is
    context.enable_progress_bars = False
    context.execution_options.preserve_order = True
    context.execution_options.label_selector = dict(ingest.label_selector) or None
    rows = [{"units": pickle.dumps(units)} for units in runs_of_units(days, MOST_TASKS)]
    with ray.data.DataContext.current(context):
        items = ray.data.from_items(rows, override_num_blocks=len(rows))
        found = items.map(_Reduce(work, merge), num_cpus=ingest.read_cpus)  # idle workers hold the others
    for row in found.iter_rows():
        result = pickle.loads(row["result"])
        if isinstance(result, DataError):
            raise result
        yield result


def runs_of_units(days: Sequence[DayLog], most: int) -> Iterator[list[Unit]]:
    """Yield the successive units of each task of a pass, as many in each task but the last.

    Args:
        days: Days of the units.
        most: Largest number of tasks.
    """
    each = -(-sum(len(day.units) for day in days) // most) or 1
    units = itertools.chain.from_iterable(day.units for day in days)
    while run := list(itertools.islice(units, each)):
        yield run


@dataclass(frozen=True, slots=True)
class _Reduce:
    work: Callable[[Unit], Any]
    merge: Callable[[Any, Any], Any]

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        try:
            result = self._reduced(pickle.loads(row["units"]))
        except DataError as error:
            result = error
        return {"result": pickle.dumps(result)}

    def _reduced(self, units: Sequence[Unit]) -> UnitsResult[Any]:
        merged, errors = None, []
        for unit in units:
            found = self.work(unit)
            if isinstance(found, str):
                errors.append(found)
            else:
                merged = found if merged is None else self.merge(merged, found)
        return UnitsResult(sum(unit.num_rows for unit in units), merged, tuple(errors))


class MergedRuns(Generic[Result]):
    """Merge of many results, each kept run more than twice as large as the next: few merges, and little memory.

    Args:
        merge: Function that merges two results.
        size: Function that returns the size of a result.
    """

    def __init__(self, merge: Callable[[Result, Result], Result], size: Callable[[Result], int]) -> None:
        self._merge, self._size = merge, size
        self._runs: list[Result] = []

    def add(self, result: Result) -> None:
        """Add a result."""
        self._runs.append(result)
        while len(self._runs) > 1 and self._size(self._runs[-2]) <= 2 * self._size(self._runs[-1]):
            self._merge_last()

    def total(self) -> Result | None:
        """Return the merge of all results; None without any."""
        while len(self._runs) > 1:
            self._merge_last()
        return self._runs[0] if self._runs else None

    def _merge_last(self) -> None:
        last = self._runs.pop()
        self._runs[-1] = self._merge(self._runs[-1], last)
