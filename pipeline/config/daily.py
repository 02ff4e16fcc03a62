"""The daily job: preflight, gate, catch-up and whom to tell."""

from typing import Self

from pydantic import Field, model_validator

from features.declaration import Declaration


def _refuse_never(min_entries: int, window: int) -> None:
    if min_entries > window:
        raise ValueError(f"min_entries {min_entries} is above window {window}: nothing would ever be compared")


class PreflightConfig(Declaration):
    """What a day's log is held against: the median of the newest entries of the ledger.

    Args:
        success_marker: The day's folder has to hold a file `_SUCCESS`.
        window: How many of the newest entries are looked at.
        min_entries: With fewer than this, only the hard checks hold: the day is there, readable, of the declared
            columns, and has a row in every task's space.
        rows_ratio: The number of rows is at most this many times the median, and at least one over it.
        nulls: The share of rows in which a column is null differs from the median by at most this.
        label_ratio: A task's mean label is at most this many times the median, and at least one over it, beyond what
            four standard errors explain.
        unseen_ids: The share of rows whose id was on none of the days of the window is at most this much above the
            median.
    """

    success_marker: bool = False
    window: int = Field(default=7, ge=1, le=90)
    min_entries: int = Field(default=3, ge=1)
    rows_ratio: float = Field(default=1.5, gt=1)
    nulls: float = Field(default=0.05, gt=0, le=1)
    label_ratio: float = Field(default=1.5, gt=1)
    unseen_ids: float = Field(default=0.2, gt=0, le=1)

    @model_validator(mode="after")
    def _check(self) -> Self:
        _refuse_never(self.min_entries, self.window)
        return self


class GateConfig(Declaration):
    """What a new model is held against; the quality of a task is its AUC, R2 or accuracy: higher is better.

    Drops count beyond one standard error of the quality, which follows from the number of rows.

    Args:
        window: How many of the newest entries are looked at.
        min_entries: With fewer, what yesterday's model reached on today's log is not compared with them.
        before_drop: Yesterday's model, on today's log, is at most this much worse than the median of what its
            predecessors reached on their next day.
        drop: The new model is at most this much worse than its parent on the hold-out.
        calibration_ratio: The new model's calibration on the hold-out (sum of predictions over sum of labels) is
            within this ratio of 1, or nearer to 1 than its parent's.
        shift_ratio: The mean prediction on the hold-out is within this ratio of the parent's.
        min_positives: A task with fewer positive, or fewer negative, rows (or rows, if it is no binary task) is not
            judged.
        tasks: By task name: other limits for that task.
    """

    window: int = Field(default=7, ge=1, le=90)
    min_entries: int = Field(default=3, ge=1)
    before_drop: float = Field(default=0.1, gt=0)
    drop: float = Field(default=0.02, gt=0)
    calibration_ratio: float = Field(default=1.5, gt=1)
    shift_ratio: float = Field(default=1.5, gt=1)
    min_positives: int = Field(default=50, ge=1)
    tasks: dict[str, "TaskGateConfig"] = {}

    @model_validator(mode="after")
    def _check(self) -> Self:
        _refuse_never(self.min_entries, self.window)
        return self

    def limit(self, task: str, key: str) -> float:
        """A limit, as it holds for a task."""
        own = getattr(self.tasks.get(task), key, None)
        return getattr(self, key) if own is None else own


class TaskGateConfig(Declaration):
    """A task's own limits; what is absent is as for all.

    Args:
        before_drop: As in `daily.gate`.
        drop: As in `daily.gate`.
        calibration_ratio: As in `daily.gate`.
        shift_ratio: As in `daily.gate`.
        min_positives: As in `daily.gate`.
    """

    before_drop: float | None = Field(default=None, gt=0)
    drop: float | None = Field(default=None, gt=0)
    calibration_ratio: float | None = Field(default=None, gt=1)
    shift_ratio: float | None = Field(default=None, gt=1)
    min_positives: int | None = Field(default=None, ge=1)


class OnRefusalConfig(Declaration):
    """Whom to tell when a day is refused; trying is all that is done, and is logged.

    Args:
        webhook: A url that is sent a JSON object by POST: project, line, day, step, text. It is in no checkpoint or
            entry, since such urls are secrets.
    """

    webhook: str | None = Field(default=None, exclude=True, repr=False, pattern=r"^https?://")


class DailyConfig(Declaration):
    """The daily job.

    Args:
        preflight: What a day's log is held against before it is trained.
        gate: What a new checkpoint is held against before it is published.
        max_catch_up: Days before the asked one that are missing and may be trained first.
        lease_s: After how many seconds of silence a job that holds the line is taken for dead; it renews its lease
            three times as often.
        on_refusal: Whom to tell.
    """

    preflight: PreflightConfig = PreflightConfig()
    gate: GateConfig = GateConfig()
    max_catch_up: int = Field(default=7, ge=0)
    lease_s: float = Field(default=60.0, gt=0)
    on_refusal: OnRefusalConfig = OnRefusalConfig()
