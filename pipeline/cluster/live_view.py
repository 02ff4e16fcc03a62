"""Live view of a command's runs: points of the progress board and of the ledger, handed to the trackers."""

import contextlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, date, datetime
from typing import Self

from features.errors import DataError
from pipeline.cluster.progress import Progress
from pipeline.cluster.run_points import RunPoints
from pipeline.config.project import Config
from pipeline.lineage.ledger import Ledger
from pipeline.lineage.ledger_entry import LedgerEntry
from pipeline.lineage.ledger_figures import ledger_figures
from pipeline.lineage.line import Line
from pipeline.tracking.background import CLOSE_S
from pipeline.tracking.tracker import RunKey
from pipeline.tracking.trackers import open_trackers

_EPOCH = date(1970, 1, 1)


class LiveView:
    """Writer of the points of some lines, as a context manager; it never raises and never waits but at its end.

    Args:
        config: Configuration with the root and the tracker.
        lines: The lines.
    """

    def __init__(self, config: Config, *lines: Line) -> None:
        self._every_s = config.tracking.every_s
        self._lines = {line.name: line for line in lines}
        self._newest_days: dict[str, str] = {}
        for name, line in self._lines.items():
            with contextlib.suppress(OSError, DataError):  # without the lag, then
                latest = line.latest()
                self._newest_days |= {name: latest.day} if latest else {}
        self._runs: dict[RunKey, RunPoints] = {}
        self._trackers = open_trackers(config.tracking, config.root, config.name, self._named)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        ends_at = time.monotonic() + CLOSE_S
        for tracker in self._trackers:
            tracker.close(max(0.0, ends_at - time.monotonic()))

    def see(self, progress: Progress) -> None:
        """Write a point of a training, unless the last one is recent."""
        figures = progress.training
        if figures is None or figures.line not in self._lines:
            return
        run = RunKey(figures.line, figures.day, figures.attempt)
        points = self._runs.setdefault(run, RunPoints(self._every_s))
        if values := points.values(progress, figures, time.monotonic()):
            self._put(run, values | self._lag(run.line), points.rows, time.time())

    def published(self, line: Line, entry: LedgerEntry) -> None:
        """Write the figures of an entry: into the run of its attempt, and into the line's run of the ledger."""
        self._newest_days[line.name] = entry.day
        values, now = ledger_figures(entry) | self._lag(line.name), time.time()
        if entry.attempt is not None:
            rows = (entry.rows or 0) + sum(late.rows for late in entry.late.values())
            passes = (entry.pass_index or 0) + 1
            self._put(RunKey(line.name, entry.day, entry.attempt, entry.generation), values, passes * rows, now)
        self._put(RunKey(line.name), values, (date.fromisoformat(entry.day) - _EPOCH).days, now)

    def _put(self, run: RunKey, values: Mapping[str, float], step: int, at: float) -> None:
        for tracker in self._trackers:
            tracker.put(run, values, step, at)

    def _lag(self, line: str) -> dict[str, float]:
        day = self._newest_days.get(line)
        return {"ledger_lag_days": (datetime.now(UTC).date() - date.fromisoformat(day)).days} if day else {}

    def _named(self, run: RunKey) -> RunKey:
        """Return a run with its generation, which a day in training has not in the ledger yet."""
        if run.generation is not None or not run.day:
            return run
        known = Ledger(self._lines[run.line]).generations(run.day)
        return replace(run, generation=known[-1].generation + 1 if known else 1)


def show_entries(config: Config, line: Line, entries: Sequence[LedgerEntry]) -> None:
    """Write the figures of entries that have just been published; a tracker that hangs costs the command 5 s once.

    Args:
        config: Configuration with the root and the tracker.
        line: The line.
        entries: Its new entries, the first day first.
    """
    with LiveView(config, line) as view:
        for entry in entries:
            view.published(line, entry)
