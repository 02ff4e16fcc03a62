"""Pass over units in Ray Data tasks, for computations on a log beside training."""

import pickle
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ray.data

from features.errors import DataError
from pipeline.ingest.units import DayLog, Unit


def map_units(days: Sequence[DayLog], work: Callable[[Unit], Any], label_selector: Mapping[str, str]) -> Iterator[Any]:
    """Apply a function to every unit in data tasks.

    Args:
        days: Days of the units.
        work: Picklable function of a unit.
        label_selector: Labels of the Ray nodes on which the tasks run (`ingest.label_selector`); empty: all nodes.

    Yields:
        Its results, in unit order; a consumer that takes one at a time does not hold them all.

    Raises:
        DataError: The function raised it for a unit.
    """
    context = ray.data.DataContext.get_current().copy()  # the process's own stays as it is
    context.enable_progress_bars = False
    context.execution_options.preserve_order = True
    context.execution_options.label_selector = dict(label_selector) or None
    rows = [{"unit": pickle.dumps(unit)} for day in days for unit in day.units]
    with ray.data.DataContext.current(context):
        found = ray.data.from_items(rows, override_num_blocks=len(rows)).map(_Apply(work))
    for row in found.iter_rows():
        result = pickle.loads(row["result"])
        if isinstance(result, DataError):
            raise result
        yield result


@dataclass(frozen=True, slots=True)
class _Apply:
    work: Callable[[Unit], Any]

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        try:
            result = self.work(pickle.loads(row["unit"]))
        except DataError as error:
            result = error
        return {"result": pickle.dumps(result)}
