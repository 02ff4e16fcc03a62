"""Jobs of single days that do not depend on one another, e.g. a backfill: one tick creates as many as may live."""

from collections.abc import Mapping, Sequence

from pipeline.submission.attempts import Tried, by_number
from pipeline.submission.job import Job
from pipeline.submission.place import Place
from pipeline.submission.schedule import Decision, submitted_day
from pipeline.submission.submit import records_of


def decide_each(
    tried: Mapping[str, Sequence[Tried]], at_most: int, submissions: int, *, again: bool = False
) -> list[Decision]:
    """Return the decision for each day, in the order of the days.

    Args:
        tried: Outcomes of the submissions of each day, in the order of their numbers.
        at_most: Most submissions that live at the same time.
        submissions: Most submissions of a day that may fail.
        again: True if a person wants stopped days to be submitted again.
    """
    living = sum(outcome.verdict == "living" for outcomes in tried.values() for outcome in outcomes)
    decisions = []
    for day, outcomes in sorted(tried.items()):
        decision = submitted_day(day, outcomes, submissions, again=again)
        if decision.what == "create":
            living += 1
            if living > at_most:
                decision = Decision("waiting", f"{at_most} submissions live already", day)
        decisions.append(decision)
    return decisions


def launch_each(
    place: Place, jobs: Mapping[str, Job], at_most: int, submissions: int, *, again: bool = False
) -> list[Decision]:
    """Make one tick for the jobs of several days; return the decision for each day.

    Args:
        place: Place that runs the jobs.
        jobs: The job of each day.
        at_most: Most submissions that live at the same time.
        submissions: Most submissions of a day that may fail.
        again: True if a person wants stopped days to be submitted again.
    """
    tried = {day: by_number(place.find(job.name), records_of(job.config.root, job.name)) for day, job in jobs.items()}
    decisions = decide_each(tried, at_most, submissions, again=again)
    for decision in decisions:
        if decision.what == "create" and decision.day is not None:
            place.start(jobs[decision.day], decision.number)
    return decisions
