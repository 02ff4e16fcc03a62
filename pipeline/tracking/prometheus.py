"""Metrics at Ray's own endpoint for Prometheus, set by the driver.

Ray puts `ray_` before each name: `ray_counterpoise_loss`. So they cannot be taken for those of `jobs.exporter`, whose
names begin with `counterpoise_`.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from ray.util.metrics import Gauge


@dataclass(frozen=True, slots=True)
class Metric:
    """Metric at Ray's endpoint.

    Args:
        name: Its name, without Ray's prefix.
        description: Its help text.
        ends: True if it is 0 as soon as no run trains.
    """

    name: str
    description: str
    ends: bool = False


# By the first part of a point's name; a second part is the task.
METRICS = {
    "rows_per_s": Metric("counterpoise_rows_per_second", "Rows trained per second", ends=True),
    "loss": Metric("counterpoise_loss", "Mean loss of the newest steps"),
    "rows_in_space": Metric("counterpoise_rows_in_space", "Rows of the day in a task's sample space"),
    "wait_share": Metric("counterpoise_wait_share", "Share of time that rank 0 waits for its batches", ends=True),
    "save_s": Metric("counterpoise_save_seconds", "Seconds of the newest save, from its begin to its manifest"),
    "save_stall_s": Metric("counterpoise_save_stall_seconds", "Seconds for which the newest save stopped training"),
    "ledger_lag_days": Metric("counterpoise_ledger_lag_days", "Days from the newest published day to today, in UTC"),
}
_WITH_TASK = ("loss", "rows_in_space")


class RayMetrics:
    """Metrics of a line; names that `METRICS` does not have are left out.

    Args:
        line: Name of the line.
    """

    def __init__(self, line: str) -> None:
        self._line = line
        self._gauges = {
            first: Gauge(metric.name, metric.description, ("line", "task") if first in _WITH_TASK else ("line",))
            for first, metric in METRICS.items()
        }

    def scalars(self, values: Mapping[str, float], step: int, at: float) -> None:
        """Set the gauges."""
        for name, value in values.items():
            first, _, task = name.partition("/")
            if first in METRICS and bool(task) == (first in _WITH_TASK):
                self._gauges[first].set(value, {"line": self._line} | ({"task": task} if task else {}))

    def close(self) -> None:
        """Set to 0 what ends with a run: Ray goes on showing the last value."""
        self.scalars({first: 0.0 for first, metric in METRICS.items() if metric.ends}, 0, 0.0)
