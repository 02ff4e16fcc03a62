"""Counts of the ids of units in Ray tasks, by parts of the range of keys, so that no process holds all ids of a day."""

import collections
import itertools
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import ray
from ray.exceptions import RaySystemError

from features.errors import DataError
from features.id_counts import IdCounts, merge_counts, split_keys
from pipeline.config.ingest import IngestConfig
from pipeline.ingest.units import DayLog, Unit
from pipeline.log_passes.reduce_units import MergedRuns, runs_of_units

logger = logging.getLogger(__name__)

UNITS_PER_PARTITION, MOST_PARTITIONS = 16, 64
"""Units for which there is a part of the range of keys, and the largest number of parts."""

FAN_IN = 16
"""Results of one level that are merged into one of the next: few are in the object store at any time."""

MOST_TASKS = 1024
"""Largest number of tasks that count. The driver keeps some 3 kB for each part of each: how to make it again."""

MOST_RUNNING = 128
"""Tasks that count at one time. Their results are in the object store, at most some 1 GB of small ones."""

STORED_BYTES = 2**17
"""Smallest size of a counted or merged part. Ray keeps a result below 100 kB in the driver, for as long as anything
that was made of it lives: 2 GB for 100 million ids."""

Counts = Mapping[str, IdCounts]
"""Counts by table."""

Result = TypeVar("Result")


def num_partitions(num_units: int) -> int:
    """Return the number of parts of the range of keys for so many units, a power of two."""
    wanted = min(num_units // UNITS_PER_PARTITION, MOST_PARTITIONS)
    return 2 ** (max(wanted, 1).bit_length() - 1)


def count_by_partition(
    days: Sequence[DayLog],
    work: Callable[[Unit], Counts | str],
    finish: Sequence[Callable[[Counts], Result]],
    ingest: IngestConfig,
) -> Iterator[Result]:
    """Count the ids of all units in Ray tasks, and apply a function to the counts of each part of the range of keys.

    A task counts successive units, and cuts its counts into the parts. Sixteen results of a part are merged by a task,
    sixteen of those by another, and the last ones by the task that applies the function. So the driver holds references
    to 45 results a part, and receives the results of the functions. Sums do not depend on the order of the merges.

    Args:
        days: Days of the units.
        work: Picklable function of a unit; text is the error of a unit that the pass leaves out.
        finish: Picklable function of each part, in order of keys; `num_partitions` gives their number.
        ingest: CPUs of a task, and the nodes on which tasks run.

    Yields:
        The results, in order of keys; the driver holds one at a time.

    Raises:
        DataError: The function of a unit raised it.
    """
    # As tasks of Ray Data: on all nodes, again whenever a node goes.
    options: dict[str, Any] = {"max_retries": -1, "retry_exceptions": [RaySystemError], "scheduling_strategy": "SPREAD"}
    options["num_cpus"] = ingest.read_cpus  # workers that wait for their next work hold all other CPUs
    if ingest.label_selector:
        options["label_selector"] = dict(ingest.label_selector)
    merged = _MergedParts(ray.remote(_merge_parts).options(**options))
    for parts in _counted(days, work, len(finish), options):
        merged.add(parts)
    reduced = ray.remote(_finish).options(**options)
    remaining = merged.remaining() or [()] * len(finish)
    results = collections.deque(reduced.remote(finish[part], *refs) for part, refs in enumerate(remaining))
    del merged
    while results:
        yield ray.get(results.popleft())


def _counted(
    days: Sequence[DayLog], work: Callable[[Unit], Counts | str], num_parts: int, options: Mapping[str, Any]
) -> Iterator[list[Any]]:
    """Yield references to the parts of each task's counts, in unit order."""
    count: Any = ray.remote(_count).options(num_returns=num_parts + 1, **options)
    shared = ray.put(work)
    tasks = (count.remote(shared, units, num_parts) for units in runs_of_units(days, MOST_TASKS))
    running = collections.deque(itertools.islice(tasks, MOST_RUNNING))
    try:
        while running:
            outcome, *parts = running[0]
            found = ray.get(outcome)
            if isinstance(found, DataError):
                raise found
            for error in found:
                logger.warning("not counted: %s", error)
            running.popleft()
            running.extend(itertools.islice(tasks, 1))
            yield parts
    finally:
        for outcome, *_ in running:  # after an error
            ray.cancel(outcome)


class _MergedParts:
    """Parts of many results in the object store, as the digits of a number to the base `FAN_IN`.

    Args:
        merge: Remote function of a part of several results.
    """

    def __init__(self, merge: Any) -> None:
        self._merge = merge
        self._levels: list[list[list[Any]]] = []
        self._running: list[Any] = []

    def add(self, parts: list[Any], level: int = 0) -> None:
        """Add references to the parts of a result."""
        if level == len(self._levels):
            self._levels.append([])
        self._levels[level].append(parts)
        if len(self._levels[level]) == FAN_IN:
            if self._running:  # merges that wait would keep what they merge
                ray.wait(self._running, num_returns=len(self._running), fetch_local=False)
            self._running = [self._merge.remote(*refs) for refs in zip(*self._levels[level], strict=True)]
            self._levels[level] = []
            self.add(self._running, level + 1)

    def remaining(self) -> list[tuple[Any, ...]]:
        """Return references to what is left to merge, by part."""
        return list(zip(*itertools.chain(*self._levels), strict=True))


@dataclass(frozen=True, slots=True)
class Part:
    """Counts of a part of the range of keys, as large as an object of the object store.

    Args:
        counts: The counts.
        filling: Bytes up to `STORED_BYTES`.
    """

    counts: Counts
    filling: np.ndarray

    @classmethod
    def of(cls, counts: Counts) -> "Part":
        """Return counts with their filling."""
        size = sum(keys.nbytes + numbers.nbytes for keys, numbers in counts.values())
        return cls(counts, np.zeros(max(STORED_BYTES - size, 0), np.uint8))


def _count(work: Callable[[Unit], Counts | str], units: Sequence[Unit], num_parts: int) -> tuple[Any, ...]:
    """Return the errors of units that are left out, or the error that ends the pass, and each part of the counts."""
    runs: MergedRuns[Counts] = MergedRuns(_merge, lambda counts: sum(len(keys) for keys, _ in counts.values()))
    errors: list[str] = []
    try:
        for unit in units:
            found = work(unit)
            if isinstance(found, str):
                errors.append(found)
            else:
                runs.add(found)
    except DataError as error:
        return error, *[error] * num_parts
    return errors, *map(Part.of, _parts(runs.total() or {}, num_parts))


def _parts(counts: Counts, num_parts: int) -> list[Counts]:
    places = {name: split_keys(keys, num_parts) for name, (keys, _) in counts.items()}
    return [
        {name: (keys[places[name][part]], numbers[places[name][part]]) for name, (keys, numbers) in counts.items()}
        for part in range(num_parts)
    ]


def _merge_parts(*parts: Part | DataError) -> Part:
    """Return the sum of parts.

    Raises:
        DataError: A count failed that Ray ran once more, since a node with its results was lost.
    """
    return Part.of(_sum(parts))


def _sum(parts: Sequence[Part | DataError]) -> Counts:
    for error in parts:
        if isinstance(error, DataError):
            raise error
    return _merge(*(part.counts for part in parts if isinstance(part, Part)))


def _merge(*counts: Counts) -> Counts:
    """Return the sum of counts; those of a task without a readable unit are empty."""
    found = [by_table for by_table in counts if by_table]
    names = next(iter(found), {})
    return {name: merge_counts(*(by_table[name] for by_table in found)) for name in names}


def _finish(apply: Callable[[Counts], Result], *parts: Part | DataError) -> Result:
    return apply(_sum(parts))
