"""Statistics of the log and popularity of its ids, each in one Ray Data pass over units."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from features.encoding import Encoder
from features.errors import DataError
from features.schema import Schema
from features.statistics import Statistics, StatisticsAccumulator
from pipeline.config import Config
from pipeline.lineage.line import Line
from pipeline.lineage.seal import seal
from pipeline.session import ray_session
from pipeline.storage import Storage
from pipeline.train_group import STATISTICS
from pipeline.unit_pass import map_units
from pipeline.unit_work import ObserveUnit, SumLabels
from pipeline.units import DayLog, check_days

logger = logging.getLogger(__name__)


def fit_statistics(config: Config, days: Sequence[str]) -> dict[str, Any]:
    """Fit a line's statistics and store them; a line that has checkpoints keeps its own.

    Args:
        config: The project's configuration.
        days: ISO dates to read.

    Returns:
        The figures of the command's JSON line.

    Raises:
        DataError: The logs do not fit the schema, or the line has been trained with other statistics.
    """
    line, schema = Line.of(config.root, config.line), config.log_schema
    if line.newest() is not None:
        raise DataError(f"line {config.line!r} has checkpoints, its statistics are frozen: use a new line or root")
    logs, columns = Storage(config.logs.path), schema.columns()
    day_logs = check_days(logs, days, config.ingest.unit.max_rows, schema, columns)
    with ray_session(config):
        statistics = collect_statistics(logs, schema, columns, day_logs)
    line.storage.write(STATISTICS, seal(statistics.model_dump(mode="json")))
    return {
        "statistics": f"{line.storage.url}/{STATISTICS}",
        "days": list(days),
        "rows": statistics.rows,
        "distinct_ids": statistics.distinct_ids,
    }


def collect_statistics(logs: Storage, schema: Schema, columns: Sequence[str], days: Sequence[DayLog]) -> Statistics:
    """Statistics of a schema's features, within a running Ray session.

    Args:
        logs: Where the files are.
        schema: Whose features to observe.
        columns: Of the log, that are to be read: those of the features, at least.
        days: The days.

    Raises:
        DataError: A unit could not be read.
    """
    total = StatisticsAccumulator(schema)
    for part in map_units(days, ObserveUnit(logs, schema, tuple(columns))):
        total.merge(part)
    return total.finish([day.day for day in days])


@dataclass(frozen=True, slots=True)
class Popularity:
    """The mean label of every id on some days, shrunk to the global mean: what a model has to beat.

    Args:
        feature: The id feature.
        ids: Table rows that were seen, increasing, shape (N,).
        means: Mean label per id and task, shape (N, K).
        overall: Mean label per task, shape (K,), for ids that were not seen.
    """

    feature: str
    ids: np.ndarray
    means: np.ndarray
    overall: np.ndarray

    def scores(self, ids: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        """Scores of rows.

        Args:
            ids: Table rows of the feature's bags, one after the other.
            lengths: 0 or 1 per row, shape (B,).

        Returns:
            float64 of shape (B, K).
        """
        scores = np.tile(self.overall, (len(lengths), 1))
        if len(self.ids):
            place = np.minimum(np.searchsorted(self.ids, ids), len(self.ids) - 1)
            known = self.ids[place] == ids
            scores[np.flatnonzero(lengths)[known]] = self.means[place[known]]
        return scores


def fit_popularity(config: Config, encoder: Encoder, days: Sequence[DayLog], feature: str) -> Popularity:
    """Mean labels per id over days, within a running Ray session.

    Args:
        config: The project's configuration.
        encoder: Encodes the same rows that training sees.
        days: The days.
        feature: An id feature.
    """
    place = [sparse.name for sparse in config.log_schema.sparse_features].index(feature)
    parts = list(map_units(days, SumLabels(Storage(config.logs.path), encoder, place)))
    ids, inverse = np.unique(np.concatenate([part[0] for part in parts]), return_inverse=True)
    sums = np.zeros((len(ids), 2, len(config.log_schema.tasks)))
    np.add.at(sums, inverse, np.concatenate([part[1] for part in parts]))
    totals = sums.sum(0)
    overall = totals[0] / np.maximum(totals[1], 1)
    prior = config.evaluation.prior_rows
    means = (sums[:, 0] + prior * overall) / (sums[:, 1] + prior)
    return Popularity(feature, ids, means, overall)
