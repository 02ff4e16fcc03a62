"""Baselines and intervals of evaluations."""

from pydantic import Field

from features.declaration import Declaration, Name


class BootstrapConfig(Declaration):
    """Intervals of the metric that each task is judged by.

    Args:
        by: An id feature: the users. Those who share a row of its table count as one, as do all rows without an id.
        resamples: How many are drawn.
        level: Share of the resamples within the interval.
    """

    by: Name
    resamples: int = Field(default=200, ge=20, le=10_000)
    level: float = Field(default=0.95, gt=0, lt=1)


class EvaluationConfig(Declaration):
    """What evaluations compare with.

    Args:
        popularity: An id feature whose mean label per id, on the training days, is the popularity baseline.
        prior_rows: How many rows of the global mean every id starts with.
        bootstrap: How intervals are drawn, of users; absent: there are none.
    """

    popularity: str | None = None
    prior_rows: float = Field(default=20.0, gt=0)
    bootstrap: BootstrapConfig | None = None
