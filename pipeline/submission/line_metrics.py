"""Metrics of a line for Prometheus, read from the root whenever they are asked for."""

import logging
from collections.abc import Iterator
from datetime import UTC, date, datetime

from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from pipeline.config.project import Config
from pipeline.lineage.ledger import Ledger
from pipeline.lineage.line import Line
from pipeline.submission.schedule import due_day

logger = logging.getLogger(__name__)


class LineMetrics(Collector):
    """Lag of a line, and whether the root answers.

    A line on which nothing is published has no lag. A root that does not answer leaves the metrics out, so that an
    alert sees their absence, and not the last value.

    Args:
        config: The project's configuration.
        time_zone: IANA name of the zone in which the log's days end.
    """

    def __init__(self, config: Config, time_zone: str) -> None:
        self._line, self._time_zone = Line.of(config.root, config.line), time_zone
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
