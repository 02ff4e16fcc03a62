"""Days that a line lacks up to a day, after a check that the logs of done days are those that were trained."""

import logging
from collections.abc import Sequence

from features.errors import DataError
from pipeline.daily.ray_work import Work
from pipeline.ingest.parts import before
from pipeline.lineage.ledger import Ledger
from pipeline.lineage.line import Line

logger = logging.getLogger(__name__)


def missing_days(line: Line, work: Work, days: Sequence[str], max_catch_up: int) -> list[str]:
    """Return the days to do, in order.

    Raises:
        DataError: The log of a done day has changed, a day lies before the line, or too many are missing.
    """
    ledger = Ledger(line)
    newest = ledger.newest()
    if newest is None:
        return list(days)
    for day in days:
        if day <= newest.day:
            _check_done(ledger, work, day)
    left = []
    day = before(newest.day, -1)
    while day <= days[-1]:
        left.append(day)
        day = before(day, -1)
    early = [day for day in left if day < days[0]]
    if len(early) > max_catch_up:
        raise DataError(
            f"line {line.name!r} is at {newest.day}, {len(early)} days before {days[0]} are missing, at most "
            f"{max_catch_up} are caught up: ask for an earlier day, or raise --max-catch-up"
        )
    return left


def _check_done(ledger: Ledger, work: Work, day: str) -> None:
    """Compare the log of a day that is not to be trained with the files that were trained."""
    entry, name = ledger.find(day), ledger.line.name
    if entry is None:
        newest = ledger.newest()
        raise DataError(
            f"line {name!r} is at {newest.day if newest else None} and has not trained {day}: days are not put in "
            f"between; train it on a line of its own with --branch NAME"
        )
    if entry.skipped is not None:
        return
    try:
        then, log = _files_read(ledger, day), work.logs(day)[day]
    except DataError as error:  # logs are not kept for ever
        logger.warning("the log of %s, which is done, cannot be compared any more: %s", day, error)
        return
    now = log.files
    changed = sorted(file for file in then.keys() | now.keys() if then.get(file) != now.get(file))
    if changed:
        shown = ", ".join(f"{file} ({_change(then.get(file), now.get(file))})" for file in changed[:3])
        shown += " (an earlier version treated some otherwise: docs/log.md)" if log.read_otherwise else ""
        raise DataError(
            f"{len(changed)} files of {day} have changed since line {name!r} trained it: {shown}: restore them, or "
            f"train the day again on a line of its own with --branch NAME"
        )


def _files_read(ledger: Ledger, day: str) -> dict[str, str]:
    """Return the files of a day's last read; with late labels a day is read twice, and may be written again between."""
    for entry in ledger.chain():
        late = entry.late.get(day)
        if late is not None:
            return late.logs
        if entry.day == day:
            return entry.logs
    return {}


def _change(then: str | None, now: str | None) -> str:
    if then is None or now is None:
        return "new" if then is None else "gone"
    return f"was {then}, is {now}"
