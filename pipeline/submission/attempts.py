"""Outcome of a submission: the place's state and the record that the command left, as one verdict."""

from dataclasses import dataclass
from typing import Literal

from pipeline.submission.job_record import JobRecord
from pipeline.submission.place import Submission

Verdict = Literal["living", "done", "retry", "stopped"]
_RETRY, _DONE = 1, 0
_BY_HAND = ("--accept-anomaly", "--accept-gate", "--skip-day")  # only a person can give the reason again


@dataclass(frozen=True, slots=True)
class Tried:
    """Outcome of a submission.

    Args:
        number: Number of the submission, from 1.
        verdict: `living`: it may still write. `retry`: it failed in a way that a retry can help. `stopped`: a person
            has to act first.
        text: Reason, for a person.
        counts: True if it counts towards the limit of submissions.
    """

    number: int
    verdict: Verdict
    text: str
    counts: bool = True


def judge(submission: Submission | None, record: JobRecord | None, number: int, since: str = "") -> Tried:
    """Return the outcome of a submission.

    The record decides, since a RayJob's status has no exit code: 0 is done, 1 or no record may be retried, 2 and 3
    wait for a person. The state of the place decides whether the submission lives, and alone where there is no record.

    Args:
        submission: State in the place; None: the place does not know it any more.
        record: Record of the command; None: it has not begun.
        number: Number of the submission.
        since: Moment of the newest publication, ISO 8601. A day that was done before it and is not published was taken
            back by a person, who has let the line go on since.
    """
    tried = _judge(submission, record, number, since)
    command = record.command if record else (submission.command if submission else "")
    reasons = [option for option in _BY_HAND if option in command.split()]
    if tried.verdict == "retry" and tried.counts and reasons:
        text = f"{tried.text}; it was submitted by hand with {reasons[0]}, so submit it by hand again"
        return Tried(number, "stopped", text)
    return tried


def _judge(submission: Submission | None, record: JobRecord | None, number: int, since: str) -> Tried:
    if submission is not None and submission.phase != "ended":
        return Tried(number, "living", submission.text)
    code, line = (record.exit_code, record.line or {}) if record else (None, {})
    if code == _DONE:
        if record is not None and (record.ended or "") < since:
            return Tried(number, "retry", "it was taken back", counts=False)
        return Tried(number, "done", "exit code 0")
    if code is not None and code != _RETRY:
        if "held_by" in line:  # by a job of another person, or by what is left of an earlier submission
            return Tried(number, "retry", f"the line was held by {line['held_by']}", counts=False)
        if "other_code" in line:
            return Tried(number, "retry", line["error"])
        return Tried(number, "stopped", f"exit code {code}: {line.get('error', 'no reason')}")
    if code == _RETRY:
        return Tried(number, "retry", f"exit code 1: {line.get('error', 'no reason')}")
    if submission is None:
        return Tried(number, "retry", "its RayJob was deleted before it ended")
    if submission.is_refused:
        return Tried(number, "stopped", submission.text)
    return Tried(number, "retry", f"{submission.text}; its command recorded no end")


def by_number(submissions: list[Submission], records: dict[int, JobRecord], since: str = "") -> list[Tried]:
    """Return the outcomes of a job's submissions, in the order of their numbers.

    Args:
        submissions: States in the place.
        records: Records by number of the submission.
        since: As `judge` takes it.
    """
    states = {submission.number: submission for submission in submissions}
    numbers = sorted(states.keys() | records.keys())
    return [judge(states.get(number), records.get(number), number, since) for number in numbers]
