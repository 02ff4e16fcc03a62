"""Answer of a report to "is everything all right?": one sentence for each thing that a person would look at."""

from collections.abc import Iterator, Sequence
from datetime import date, datetime

from features.figure import figure
from pipeline.lineage.ledger_entry import LedgerEntry, Verdict
from pipeline.lineage.records import Attempt
from pipeline.report.expert_use import ExpertUse
from pipeline.report.line_records import LineRecords
from pipeline.report.page import Statement, listed, plural
from pipeline.report.task_days import TaskDay

_USUAL_LAG = 2  # days: yesterday's log ends today, and is trained today or tomorrow
_ENDS = {
    "done": "done",
    "restarted": "restarted on fewer or other workers",
    "interrupted": "interrupted by SIGTERM, and saved",
    "refused": "refused",
    "failed": "failed",
}


def health(records: LineRecords, tasks: Sequence[TaskDay], use: ExpertUse, now: datetime) -> list[Statement]:
    """Return the sentences of a line, those for everybody first.

    Args:
        records: The line's records.
        tasks: Figures of its tasks.
        use: Use of its experts.
        now: Present moment, with its zone.
    """
    shown, newest = records.entries[-1], records.newest
    said = [_newest_day(newest, now.date())]
    if shown.day != newest.day:
        said.append(Statement("look", f"This page ends with {shown.day}: what follows is said of that day."))
    said.append(_last_attempt(records.attempts, shown.day))
    said += [*_verdicts(shown), *_quality(tasks, shown.day), *_experts(use)]
    if shown.quarantined:
        units = plural(len(shown.quarantined), "unit")
        said.append(Statement("look", f"{units} of {shown.day} could not be read, and stayed out of the training."))
    return said


def verdict_of(statements: Sequence[Statement]) -> Statement:
    """Return the answer in one sentence."""
    alarms = sum(one.level == "alarm" for one in statements)
    looks = sum(one.level == "look" for one in statements)
    if alarms:
        also = f", and {plural(looks, 'thing')} to look at" if looks else ""
        return Statement("alarm", f"Not everything is all right: {plural(alarms, 'alarm')}{also}.")
    if looks:
        return Statement("look", f"No alarm, and {plural(looks, 'thing')} to look at.")
    return Statement("good", "Everything is all right.")


def attempt_end(attempt: Attempt) -> str:
    """Return how an attempt ended, in words."""
    return _ENDS[attempt.result] if attempt.result else "still running, or killed"


def outcome_of(verdict: Verdict | None) -> str:
    """Return the outcome of a check in a word."""
    if verdict is None:
        return "not made"
    return "accepted by a person" if verdict.problems else "passed"


def _newest_day(entry: LedgerEntry, today: date) -> Statement:
    lag = (today - date.fromisoformat(entry.day)).days
    text = f"The newest published day is {entry.day}, {plural(lag, 'day')} before today (UTC)"
    if lag > _USUAL_LAG:
        return Statement("alarm", f"{text}; more than {_USUAL_LAG} is late. Run jobs.daily, and read its last error.")
    if entry.skipped is not None:
        return Statement("look", f"{text}. It was left out by {entry.by or 'a person'}: {entry.skipped}")
    return Statement("good", f"{text}.")


def _last_attempt(attempts: Sequence[Attempt], shown: str) -> Statement:
    if not attempts:
        return Statement("look", "No attempt at these days is recorded on this line.")
    last = attempts[-1]
    days = last.days[0] if len(last.days) == 1 else f"{last.days[0]}..{last.days[-1]}"
    text = f"The last attempt ({last.attempt:04d}, at {days}) ended: {attempt_end(last)}"
    if last.result in ("failed", "refused"):
        return Statement("alarm", f"{text}: {last.reason or 'no reason is recorded'}")
    if last.result is None or last.result in ("restarted", "interrupted"):
        return Statement("look", f"{text}.")
    if last.days[-1] > shown:
        waits = f"{last.days[-1]} is trained and not published: it waits for the gate, or a check refused it"
        return Statement("look", f"{text}. {waits}. jobs.daily says which.")
    return Statement("good", f"{text}.")


def _verdicts(entry: LedgerEntry) -> Iterator[Statement]:
    if entry.skipped is not None:
        return
    for name, verdict in (("preflight", entry.preflight), ("gate", entry.gate)):
        if verdict is None:
            text = f"No {name} was made for {entry.day}: it was published by jobs.{entry.kind}."
            yield Statement("look" if entry.kind == "train" else "good", text)
        elif verdict.problems:
            who = f"{verdict.by or 'a person'} accepted it: {verdict.accepted or 'no reason is recorded'}"
            found = listed(verdict.problems, most=2)
            yield Statement("look", f"The {name} of {entry.day} found {found}; {who}")
        else:
            yield Statement("good", f"The {name} of {entry.day} passed.")
        yield from (Statement("look", line) for line in (verdict.advice if verdict else ()))


def _quality(tasks: Sequence[TaskDay], shown: str) -> Iterator[Statement]:
    judged = [
        (one.task, one.quality, one.least, one.is_low)
        for one in tasks
        if one.day == shown and one.quality is not None and one.least is not None
    ]
    for task, quality, least, is_low in judged:
        if is_low:
            text = f"Yesterday's model reaches {figure(quality)} on {shown} for task {task}"
            yield Statement("alarm", f"{text}, less than the gate's limit {figure(least)}.")
    if judged and not any(is_low for *_, is_low in judged):
        text = f"Yesterday's model is within the gate's limits on {shown} for {plural(len(judged), 'task')}."
        yield Statement("good", text)


def _experts(use: ExpertUse) -> Iterator[Statement]:
    found = [f"the {one.expert} in the {one.gate} (weight {one.mean:.4f})" for one in use.collapsed]
    if found:
        text = f"{plural(len(found), 'expert has', 'experts have')} collapsed: {listed(found)}."
        yield Statement("alarm", text)
    elif use.shares:
        yield Statement("good", "No expert has collapsed.")
