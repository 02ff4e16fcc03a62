"""Submission of a job: start it or attach to the living one, follow it, and return how it ended."""

import logging
from collections.abc import Callable
from typing import Any

from features.errors import DataError
from pipeline.storage.files import Storage
from pipeline.submission.job import FOLDER, Job, parse_submission
from pipeline.submission.job_record import JobRecord, read_record
from pipeline.submission.place import Place, Submission

logger = logging.getLogger(__name__)

_LOOK_S = 5.0
_FAILED = 1


def start_or_attach(place: Place, job: Job) -> tuple[str, str]:
    """Start a job, unless a submission of it lives.

    Returns:
        Name of the submission, and `submitted` or `attached`.

    Raises:
        ConfigError: The place cannot take the job.
        DataError: A submission with another configuration lives, or the name is taken by something else.
    """
    taken: set[int] = set()
    while True:
        found = place.find(job.name)
        living = [submission for submission in found if submission.phase != "ended"]
        if living:
            _check_same(living[-1], job)
            return living[-1].name, "attached"
        number = 1 + max(
            [submission.number for submission in found] + list(records_of(job.config.root, job.name)), default=0
        )
        if number in taken:
            raise DataError(
                f"{job.submission(number)} is there, and is no submission of this program (its labels are missing): "
                "delete it, or submit another job"
            )
        if place.start(job, number):
            return job.submission(number), "submitted"
        taken.add(number)
        logger.info("%s was submitted at the same time: looking again", job.submission(number))


def records_of(root: str, job_name: str) -> dict[int, JobRecord]:
    """Return the records of a job's submissions, by number."""
    names = Storage(root).under(FOLDER).names()
    found = [parse_submission(name.removesuffix(".json")) for name in names if name.startswith(f"{job_name}-r")]
    numbers = [parsed[1] for parsed in found if parsed is not None and parsed[0] == job_name]
    records = {number: read_record(root, f"{job_name}-r{number}") for number in numbers}
    return {number: record for number, record in records.items() if record is not None}


def follow(place: Place, submission: str, show: Callable[[str], None]) -> None:
    """Show the states and the log of a submission until it has ended."""
    said, shown = "", 0
    while True:
        seen = place.look(submission)
        if seen is None:
            logger.warning("%s is not there any more: it was deleted", submission)
            return
        if seen.text != said:
            said = seen.text
            logger.info("%s: %s", submission, said)
        text = place.log(submission)
        if text is not None:
            shown = 0 if len(text) < shown else shown  # a log that began anew
            show(text[shown:])
            shown = len(text)
        if seen.phase == "ended":
            return
        place.wait(submission, _LOOK_S)


def ended(root: str, submission: str) -> dict[str, Any]:
    """Return how a submission ended, from its record: `exit_code`, and the command's JSON line as `line`."""
    record = read_record(root, submission)
    if record is None or record.exit_code is None:
        why = "its command never began" if record is None else f"its command on {record.host} recorded no end"
        logger.error("%s has failed: %s; the same command submits it again", submission, why)
        return {"exit_code": _FAILED, "error": f"{submission} has failed: {why}"}
    return {"exit_code": record.exit_code, "line": record.line}


def _check_same(living: Submission, job: Job) -> None:
    if living.digest not in {None, job.digest}:
        raise DataError(
            f"{living.name} runs with other arguments or another configuration ({living.digest}, this one is "
            f"{job.digest}): wait for its end, or stop it"
        )
