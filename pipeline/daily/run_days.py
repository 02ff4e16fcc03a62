"""The daily job: the days that a line lacks, one after the other, by the one job that holds the line."""

import logging
from collections.abc import Sequence
from typing import Any

from features.errors import DataError
from pipeline.cluster.live_view import show_entries
from pipeline.config.project import Config
from pipeline.daily.accepted import Accepted
from pipeline.daily.day_job import DayJob
from pipeline.daily.gate import quality
from pipeline.daily.missing_days import missing_days
from pipeline.daily.ray_work import Work
from pipeline.daily.refusal import tell
from pipeline.lineage.lease import lease
from pipeline.lineage.ledger_entry import LedgerEntry
from pipeline.lineage.line import Line
from pipeline.tracking.mlflow import check_tracker

logger = logging.getLogger(__name__)


def run_days(
    config: Config, line: Line, work: Work, days: Sequence[str], max_catch_up: int, accepted: Accepted
) -> dict[str, Any]:
    """Bring a line up to a day.

    Args:
        config: The project's configuration.
        line: The line.
        work: Heavy parts of a day.
        days: ISO dates in order, without a gap.
        max_catch_up: Largest number of missing days before the first of them that may be done first.
        accepted: Acceptances for the requested days, not for missing ones before them.

    Returns:
        The figures of the command's JSON line.

    Raises:
        DataError: A check refused a day, the log of a trained day has changed, or another job holds the line.
    """
    if not missing_days(line, work, days, max_catch_up):
        latest = line.latest()
        return {"result": "nothing to do", "line": line.name, "latest": latest.day if latest else None}
    published = []
    check_tracker(config.tracking)
    with lease(line, f"jobs.daily {days[0]}..{days[-1]}", config.daily.lease_s) as run:
        for day in missing_days(line, work, days, max_catch_up):
            logger.info("%s begins, on line %s", day, line.name)
            one = DayJob(config, line, work, day, run, accepted if day in days else Accepted())
            try:
                published.append(one.publish())
                show_entries(config, line, published[-1:])
            except DataError as refusal:
                tell(config, line, day, refusal)
                raise
    if not published:  # another job has done them while this one waited for the lease
        return {"result": "nothing to do", "line": line.name, "latest": days[-1]}
    return {"result": "published", "line": line.name, "days": [summary(entry) for entry in published]}


def summary(entry: LedgerEntry) -> dict[str, Any]:
    """Return the summary of an entry for the JSON line of a command."""
    said = entry.model_dump(include={"day", "generation", "checkpoint", "rows", "skipped"}, exclude_none=True)
    advice = [line for verdict in (entry.preflight, entry.gate) if verdict for line in verdict.advice]
    said |= {"advice": advice} if advice else {}
    return said | {"before": {task: quality(metrics) for task, metrics in (entry.before or {}).items()}}
