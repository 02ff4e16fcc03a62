"""Which parts a day is trained in: its own rows, and those of earlier days whose late labels have come by now."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, timedelta

from features.schema import Schema
from pipeline.ingest.units import DayLog


@dataclass(frozen=True, slots=True)
class Part:
    """What is read in one go: a day's log, for all tasks, or an earlier day's for those whose labels come late.

    Args:
        day: ISO date of the day that is being trained.
        log: The day whose rows are read.
        tasks: The tasks whose labels are read; None: all.
    """

    day: str
    log: DayLog
    tasks: frozenset[str] | None = None

    @property
    def key(self) -> tuple[str, str]:
        """What tells a part from the others of a run."""
        return self.day, self.log.day

    @property
    def is_last(self) -> bool:
        """Whether the day is done with it: late labels of earlier days come before the day's own rows."""
        return self.log.day == self.day

    @property
    def suffix(self) -> str:
        """What the name of its finished checkpoint ends with."""
        return "-day" if self.is_last else f"-{self.log.day}"


def whole_days(logs: Iterable[DayLog]) -> tuple[Part, ...]:
    """Every day's own rows, for all tasks."""
    return tuple(Part(log.day, log) for log in logs)


def before(day: str, num_days: int) -> str:
    """The ISO date so many days earlier."""
    return (date.fromisoformat(day) - timedelta(days=num_days)).isoformat()


def late_days(schema: Schema, days: Sequence[str]) -> list[str]:
    """Earlier days of which some task's labels are trained with these days, in order."""
    delays = {task.delay_days for task in schema.tasks if task.delay_days}
    return sorted({before(day, delay) for day in days for delay in delays})


def parts_of(schema: Schema, days: Sequence[str], logs: Mapping[str, DayLog]) -> tuple[Part, ...]:
    """The parts of days, in the order in which they are trained: of each day the late labels first, oldest rows first.

    A task whose labels mature after n days is outside its space on a day's own rows, and is trained on them once, n
    days later, alone.

    Args:
        schema: Says after how many days each task's labels are there.
        days: ISO dates in order.
        logs: By ISO date: the logs of the days, and of those earlier ones whose late labels are to be trained.
    """
    by_delay: dict[int, set[str]] = {}
    for task in schema.tasks:
        by_delay.setdefault(task.delay_days, set()).add(task.name)
    at_once = frozenset(by_delay.pop(0, set()))
    parts = []
    for day in days:
        for delay in sorted(by_delay, reverse=True):
            if before(day, delay) in logs:
                parts.append(Part(day, logs[before(day, delay)], frozenset(by_delay[delay])))
        parts.append(Part(day, logs[day], at_once if by_delay else None))
    return tuple(parts)
