"""Parts of a day's training: its own rows, and those of earlier days whose late labels are final by now."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, timedelta

from features.schema import Schema
from pipeline.ingest.units import DayLog


@dataclass(frozen=True, slots=True)
class Part:
    """Rows read in one go: a day's log for all tasks, or an earlier day's for tasks with late labels.

    Args:
        day: ISO date of the day that is being trained.
        log: Log of the rows' day.
        tasks: The tasks whose labels are read; None: all.
        encoders: Indices of the plan's encoders; the rows of every unit come once per encoder, one after the other.
    """

    day: str
    log: DayLog
    tasks: frozenset[str] | None = None
    encoders: tuple[int, ...] = (0,)

    @property
    def key(self) -> tuple[str, str]:
        """Identity of the part within a run."""
        return self.day, self.log.day

    @property
    def is_last(self) -> bool:
        """True for the day's own rows, which come after the late labels of earlier days and finish the day."""
        return self.log.day == self.day

    @property
    def suffix(self) -> str:
        """Suffix of the name of the part's final checkpoint."""
        return "-day" if self.is_last else f"-{self.log.day}"


def whole_days(logs: Iterable[DayLog]) -> tuple[Part, ...]:
    """Return every day's own rows, for all tasks."""
    return tuple(Part(log.day, log) for log in logs)


def before(day: str, num_days: int) -> str:
    """Return the ISO date so many days earlier."""
    return (date.fromisoformat(day) - timedelta(days=num_days)).isoformat()


def late_days(schema: Schema, days: Sequence[str]) -> list[str]:
    """Return the earlier days with task labels that are trained with these days, in order."""
    delays = {task.delay_days for task in schema.tasks if task.delay_days}
    return sorted({before(day, delay) for day in days for delay in delays})


def parts_of(schema: Schema, days: Sequence[str], logs: Mapping[str, DayLog]) -> tuple[Part, ...]:
    """Return the parts of days, in training order: for each day the late labels first, oldest rows first.

    A task whose labels mature after n days is outside its space on a day's own rows, and is trained on them once, n
    days later, alone.

    Args:
        schema: Schema with each task's delay of labels in days.
        days: ISO dates in order.
        logs: Logs by ISO date: of the days, and of the earlier days whose late labels are trained.
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
