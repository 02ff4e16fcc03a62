"""Baselines and intervals of evaluations."""

from pydantic import Field

from features.declaration import Declaration, Name


class BootstrapConfig(Declaration):
    """Intervals of each task's main metric.

    Args:
        by: The id feature of users. All rows without an id count as one user.
        resamples: Number of resamples.
        level: Share of the resamples within the interval.
    """

    by: Name
    resamples: int = Field(default=200, ge=20, le=10_000)
    level: float = Field(default=0.95, gt=0, lt=1)


class EvaluationConfig(Declaration):
    """Baselines and intervals of evaluations.

    Args:
        popularity: The id feature of the popularity baseline: the mean label per id, on the training days.
        prior_rows: Number of rows of the global mean that every id starts with.
        bootstrap: Resampling of users for intervals; absent: no intervals.
        least_gain: Smallest gain of a metric over a single-task model that a comparison's verdict counts.
        resident_mb: MB of checkpoints that a backfill holds in memory at once, on all workers together; at least one
            checkpoint. Each batch is read once for all of them.
    """

    popularity: str | None = None
    prior_rows: float = Field(default=20.0, gt=0)
    bootstrap: BootstrapConfig | None = None
    least_gain: float = Field(default=0.0005, ge=0)
    resident_mb: int = Field(default=4096, ge=0)
