"""Metrics of a line for Prometheus, read from the root whenever they are asked for."""

import logging
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta

from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from pipeline.config.project import Config
from pipeline.lineage.ledger import Ledger
from pipeline.lineage.line import Line
from pipeline.submission.schedule import due_day

logger = logging.getLogger(__name__)


class LineMetrics(Collector):
    """Lag of a line, and whether the root answers.

    A day is overdue if it is due, and neither it nor a later day is published. A line on which nothing is published has
    no lag; with a first day, it has overdue days. A root that does not answer leaves the metrics out, so that an alert
    sees their absence, and not the last value.

    Args:
        config: The project's configuration.
        time_zone: IANA name of the zone in which the log's days end.
        lag_days: Days between a day and its training, as of the launcher.
        first_day: ISO date of the first day of a line on which nothing is published; None: not known.
    """

    def __init__(self, config: Config, time_zone: str, lag_days: int = 1, first_day: str | None = None) -> None:
        self._line, self._time_zone = Line.of(config.root, config.line), time_zone
        self._lag_days, self._first_day = lag_days, first_day
        due_day(datetime.now(UTC), time_zone, 0)

    def describe(self) -> list[GaugeMetricFamily]:
        """Return nothing, so that registering asks for no metric."""
        return []

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Yield the metrics of this moment."""
        up = GaugeMetricFamily("counterpoise_root_up", "1: the root answers", labels=["line"])
        try:
            newest = Ledger(self._line).newest()
        except Exception as error:  # noqa: BLE001 - whatever it is, the next request asks again
            logger.warning("the root does not answer: %s", error)
            up.add_metric([self._line.name], 0)
            yield up
            return
        up.add_metric([self._line.name], 1)
        yield up
        before_first = _day_before(self._first_day) if self._first_day else None
        done = newest.day if newest else before_first
        if done is not None:
            due = date.fromisoformat(due_day(datetime.now(UTC), self._time_zone, self._lag_days))
            days = max(0, (due - date.fromisoformat(done)).days)
            overdue = GaugeMetricFamily(
                "counterpoise_overdue_days", "Days that are due and not published", labels=["line"]
            )
            overdue.add_metric([self._line.name], days)
            yield overdue
        if newest is None:
            return
        today = date.fromisoformat(due_day(datetime.now(UTC), self._time_zone, 0))
        day = date.fromisoformat(newest.day)
        lag = GaugeMetricFamily(
            "counterpoise_ledger_lag_days", "Days from the newest published day to today", labels=["line"]
        )
        lag.add_metric([self._line.name], (today - day).days)
        yield lag
        rows = GaugeMetricFamily("counterpoise_published_rows", "Rows of the newest published day", labels=["line"])
        rows.add_metric([self._line.name], newest.rows or 0)
        yield rows


def _day_before(day: str) -> str:
    return (date.fromisoformat(day) - timedelta(days=1)).isoformat()
