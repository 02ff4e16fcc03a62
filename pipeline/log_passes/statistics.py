"""Statistics of the log and popularity of its ids, each in one Ray Data pass over units."""

import logging
from collections.abc import Sequence
from typing import Any

from features.errors import DataError
from features.schema import Schema
from features.statistics import Statistics, StatisticsAccumulator
from pipeline.cluster.progress import Progress, ProgressDisplay
from pipeline.cluster.session import ray_session
from pipeline.config.ingest import IngestConfig
from pipeline.config.project import Config
from pipeline.ingest.units import DayLog, check_days
from pipeline.lineage.frozen_statistics import STATISTICS
from pipeline.lineage.line import Line
from pipeline.log_passes.reduce_units import reduce_units
from pipeline.log_passes.unit_work import ObserveUnit, merge_into
from pipeline.storage.files import Storage
from pipeline.storage.sealed_json import seal

logger = logging.getLogger(__name__)


def fit_statistics(config: Config, days: Sequence[str]) -> dict[str, Any]:
    """Fit a line's statistics and store them; a line that has checkpoints keeps its own.

    Args:
        config: The project's configuration.
        days: ISO dates to read.

    Returns:
        The figures of the command's JSON line.

    Raises:
        ConfigError: The root cannot be written.
        DataError: The logs do not fit the schema, or the line has been trained with other statistics.
    """
    line, schema = Line.of(config.root, config.line), config.log_schema
    line.storage.check_writable()  # before the pass, which may take hours
    if line.newest() is not None:
        raise DataError(f"line {config.line!r} has checkpoints, its statistics are frozen: use a new line or root")
    logs, columns = Storage(config.logs.path), schema.columns()
    day_logs = check_days(logs, days, config.ingest.unit.max_rows, schema, columns)
    logger.info("fitting statistics on %s", ", ".join(days))
    with ray_session(config):
        statistics = collect_statistics(logs, schema, columns, day_logs, config.ingest)
    line.storage.write(STATISTICS, seal(statistics.model_dump(mode="json")))
    return {
        "statistics": f"{line.storage.url}/{STATISTICS}",
        "days": list(days),
        "rows": statistics.rows,
        "distinct_ids": statistics.distinct_ids,
    }


def collect_statistics(
    logs: Storage, schema: Schema, columns: Sequence[str], days: Sequence[DayLog], ingest: IngestConfig
) -> Statistics:
    """Return the statistics of a schema's features, within a running Ray session.

    Args:
        logs: Storage of the files.
        schema: Schema of the observed features.
        columns: Columns of the log to read: those of the features, at least.
        days: The days.
        ingest: CPUs of a data task, and the nodes on which data tasks run.

    Raises:
        DataError: A unit could not be read.
    """
    total, display = StatisticsAccumulator(schema), ProgressDisplay()
    num_rows, done = sum(day.num_rows for day in days), 0
    work = ObserveUnit(logs, schema, tuple(columns))
    for part in reduce_units(days, work, merge_into, ingest):
        assert part.merged is not None
        total.merge(part.merged)
        done += part.rows
        display.show(Progress("fit statistics", done, num_rows))
    display.close()
    return total.finish([day.day for day in days])
