"""Schedule of a line: the decision of one tick, from what the root and the place say; it does nothing itself."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from typing import Any, Literal
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from features.errors import ConfigError, DataError
from pipeline.submission.attempts import Tried


class LineStopped(DataError):  # noqa: N818 - it is what the command says
    """Refusal of a schedule to go on until a person acts.

    Args:
        text: The error.
        figures: Part of the command's JSON line.
    """

    def __init__(self, text: str, figures: dict[str, Any]) -> None:
        super().__init__(text)
        self.figures = figures


What = Literal["nothing", "waiting", "running", "create", "stopped", "failed"]


@dataclass(frozen=True, slots=True)
class Decision:
    """Decision of a tick.

    Args:
        what: `nothing`: all due days are published. `waiting`: for the log of a day, or for another job. `running`: a
            submission lives. `create`: the submission is to be created. `stopped`: a person has to act. `failed`: all
            submissions that are allowed have failed.
        text: Reason, for a person.
        day: ISO date; None: no day.
        number: Number of the submission that the decision is about; 0: none.
    """

    what: What
    text: str
    day: str | None = None
    number: int = 0


@dataclass(frozen=True, slots=True)
class Window:
    """Days that a schedule is responsible for.

    Args:
        first: ISO date of the first day of a line on which nothing is published.
        last: ISO date of the newest day that is due.
        submissions: Most submissions of a day that may fail.
    """

    first: str
    last: str
    submissions: int = 3


def due_day(now: datetime, time_zone: str, lag_days: int) -> str:
    """Return the newest day whose log should be there.

    Args:
        now: Moment, with its time zone.
        time_zone: IANA name of the zone in which the log's days end.
        lag_days: Days between a day and its training; 1: yesterday is due today.

    Raises:
        ConfigError: There is no such time zone.
    """
    try:
        zone = ZoneInfo(time_zone)
    except (ZoneInfoNotFoundError, ValueError, OSError) as error:
        raise ConfigError(f"--time-zone {time_zone!r} is no IANA time zone, e.g. Asia/Shanghai or Etc/UTC") from error
    return (now.astimezone(zone).date() - timedelta(days=lag_days)).isoformat()


def decide(
    window: Window,
    published: str | None,
    tried: Mapping[str, Sequence[Tried]],
    missing_input: Callable[[str], str | None],
    held_by: Callable[[], str | None],
    *,
    again: bool = False,
) -> Decision:
    """Return the next step of a line: at most one submission lives, oldest day first.

    Args:
        window: Days that the schedule is responsible for.
        published: ISO date of the newest published day; None: nothing is published.
        tried: Outcomes of the submissions of each day, in the order of their numbers.
        missing_input: Function that returns the reason for which a day's log is not complete; None: it is complete.
        held_by: Function that describes the living job that holds the line; None: no job.
        again: True if a person wants a stopped day to be submitted again.
    """
    for day, outcomes in sorted(tried.items()):
        living = [outcome for outcome in outcomes if outcome.verdict == "living"]
        if living:
            return Decision("running", living[-1].text, day, living[-1].number)
    day = window.first if published is None else after(published)
    if day > window.last:
        return Decision(
            "nothing", f"{published or 'nothing'} is published, {window.last} is the newest day that is due"
        )
    outcomes = tried.get(day, [])
    number = outcomes[-1].number + 1 if outcomes else 1
    stop = None if again else _stop(window.submissions, day, outcomes)
    if stop is not None:
        return stop
    for reason in (lambda: missing_input(day), held_by):
        if text := reason():
            return Decision("waiting", text, day)
    return Decision("create", _reason(outcomes), day, number)


def submitted_day(day: str, outcomes: Sequence[Tried], submissions: int, *, again: bool = False) -> Decision:
    """Return the decision about a day that depends on no other: `nothing` once it is done.

    Args:
        day: ISO date.
        outcomes: Outcomes of its submissions, in the order of their numbers.
        submissions: Most submissions that may fail.
        again: True if a person wants a stopped day to be submitted again.
    """
    living = [outcome for outcome in outcomes if outcome.verdict == "living"]
    if living:
        return Decision("running", living[-1].text, day, living[-1].number)
    if outcomes and outcomes[-1].verdict == "done":
        return Decision("nothing", "done", day, outcomes[-1].number)
    stop = None if again else _stop(submissions, day, outcomes)
    return stop or Decision("create", _reason(outcomes), day, outcomes[-1].number + 1 if outcomes else 1)


def after(day: str) -> str:
    """Return the ISO date of the day after."""
    return (date.fromisoformat(day) + timedelta(days=1)).isoformat()


def _stop(submissions: int, day: str, outcomes: Sequence[Tried]) -> Decision | None:
    """Return the decision not to submit a day again; None: it may be submitted."""
    if not outcomes:
        return None
    last = outcomes[-1]
    if last.verdict == "stopped":
        return Decision("stopped", last.text, day, last.number)
    if last.verdict == "done":
        text = "it was published and is not any more: a person has moved LATEST back, or discarded it"
        return Decision("stopped", text, day, last.number)
    failed = sum(outcome.counts for outcome in outcomes)
    if failed >= submissions:
        return Decision("failed", f"{failed} submissions have failed, the last: {last.text}", day, last.number)
    return None


def _reason(outcomes: Sequence[Tried]) -> str:
    if not outcomes:
        return "not submitted yet"
    return f"submission {outcomes[-1].number} ended: {outcomes[-1].text}"
