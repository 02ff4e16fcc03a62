"""Days that a command is asked for: as one text, and without those that have no log."""

from collections.abc import Sequence
from datetime import date

from features.errors import DataError
from pipeline.ingest.day_files import has_log
from pipeline.storage.files import Storage


def span(days: Sequence[str]) -> str:
    """Return days as `--days` takes them, e.g. `2026-11-01..2026-11-05,2026-11-07`.

    Args:
        days: ISO dates in order, at least one.
    """
    numbers = [date.fromisoformat(day).toordinal() for day in days]
    firsts = [place for place in range(len(days)) if not place or numbers[place] - numbers[place - 1] > 1]
    lasts = [place - 1 for place in [*firsts[1:], len(days)]]
    runs = zip(firsts, lasts, strict=True)
    return ",".join(days[first] if first == last else f"{days[first]}..{days[last]}" for first, last in runs)


def without_missing(logs: Storage, days: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the days that have a log, and those that have none.

    A day without a folder has no log, nor has a day whose files are all hidden.

    Args:
        logs: Prefix with folders `dt=YYYY-MM-DD`.
        days: ISO dates in order, at least one.

    Raises:
        DataError: No day has a log.
    """
    kept = [day for day in days if has_log(logs, day)]
    if not kept:
        raise DataError(f"{logs.url} has no log of {span(days)}: write the logs, or correct logs.path or the days")
    return kept, [day for day in days if day not in set(kept)]
