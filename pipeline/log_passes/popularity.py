"""Popularity baseline: the mean label of every id, in one pass over units."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from features.encoding import Encoder
from pipeline.config.project import Config
from pipeline.ingest.units import DayLog
from pipeline.log_passes.reduce_units import MergedRuns, reduce_units
from pipeline.log_passes.unit_work import SumLabels, merge_sums
from pipeline.storage.files import Storage


@dataclass(frozen=True, slots=True)
class Popularity:
    """Mean label of every id on some days, shrunk to the global mean: the baseline of a model.

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
        """Return the scores of rows.

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
    """Return mean labels per id over days, within a running Ray session.

    Args:
        config: The project's configuration.
        encoder: Encoder of the rows, as in training.
        days: The days.
        feature: An id feature.
    """
    place = [sparse.name for sparse in config.log_schema.sparse_features].index(feature)
    work = SumLabels(Storage(config.logs.path), encoder, place)
    runs = MergedRuns(merge_sums, lambda found: len(found[0]))
    for part in reduce_units(days, work, merge_sums, config.ingest):
        assert part.merged is not None
        runs.add(part.merged)
    found = runs.total()
    assert found is not None
    ids, sums = found
    totals = sums.sum(0)
    overall = totals[0] / np.maximum(totals[1], 1)
    prior = config.evaluation.prior_rows
    means = (sums[:, 0] + prior * overall) / (sums[:, 1] + prior)
    return Popularity(feature, ids, means, overall)
