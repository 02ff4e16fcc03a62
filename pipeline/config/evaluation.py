"""Baselines and intervals of evaluations."""

from typing import Any, Literal

from pydantic import Field, model_validator

from features.declaration import Declaration, Name
from features.measured_columns import MeasuredColumns, SliceConfig


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


class GroupedConfig(Declaration):
    """Metrics within each user or request: GAUC, NDCG and hit rate of the binary tasks.

    Args:
        by: Column of the log with the ids of users or requests. Rows without an id are left out.
        weighting: Weight of a group in GAUC: the weight of its `rows`, or `equal` for all groups.
        at: Places k of NDCG@k and of the hit rate@k.
    """

    by: Name
    weighting: Literal["rows", "equal"] = "rows"
    at: list[int] = Field(default=[10], min_length=1, max_length=10)

    @model_validator(mode="after")
    def _check(self) -> "GroupedConfig":
        if min(self.at) < 1 or sorted(set(self.at)) != self.at:
            raise ValueError(f"at: {self.at} are not increasing numbers of at least 1")
        return self


class EvaluationConfig(Declaration):
    """Baselines and intervals of evaluations.

    Args:
        popularity: The id feature of the popularity baseline: the mean label per id, on the training days.
        prior_rows: Number of rows of the global mean that every id starts with.
        bootstrap: Resampling of users for intervals; absent: no intervals.
        least_gain: Smallest gain of a metric over a single-task model that a comparison's verdict counts.
        min_positives: Number of positive rows, and of negative ones (or of rows, for tasks that are not binary), below
            which a comparison shows the gains on a slice and does not judge them.
        grouped: Metrics within each user or request; absent: none.
        by: Columns or expressions whose values slice the rows; every metric is then given for each slice too.
        max_slices: Largest number of values of one entry of `by`; more end the evaluation.
        resident_mb: MB of checkpoints that a backfill holds in memory at once, on all workers together; at least one
            checkpoint. Each batch is read once for all of them.
    """

    popularity: str | None = None
    prior_rows: float = Field(default=20.0, gt=0)
    bootstrap: BootstrapConfig | None = None
    least_gain: float = Field(default=0.0005, ge=0)
    min_positives: int = Field(default=50, ge=1)
    grouped: GroupedConfig | None = None
    by: list[SliceConfig] = []
    max_slices: int = Field(default=50, ge=1, le=1000)
    resident_mb: int = Field(default=4096, ge=0)

    @model_validator(mode="after")
    def _check(self) -> "EvaluationConfig":
        names = [one.name for one in self.by]
        if len(set(names)) < len(names):
            raise ValueError(f"by: {names} has a name twice")
        return self

    @property
    def measured_columns(self) -> MeasuredColumns:
        """The columns that an evaluation reads beside the features."""
        return MeasuredColumns(
            users=self.bootstrap.by if self.bootstrap else None,
            groups=self.grouped.by if self.grouped else None,
            slices=tuple(self.by),
        )

    @property
    def asked(self) -> dict[str, Any]:
        """Groups, slices and resamples that are asked for; a measurement with others is another one."""
        found = {
            "bootstrap": self.bootstrap and self.bootstrap.model_dump(mode="json"),
            "grouped": self.grouped and self.grouped.model_dump(mode="json"),
            "by": [one.model_dump(mode="json") for one in self.by],
        }
        return {name: value for name, value in found.items() if value}
