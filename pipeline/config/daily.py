"""Daily job: preflight, gate, catch-up and notification."""

from typing import Self

from pydantic import Field, model_validator

from features.declaration import Declaration


def _refuse_never(min_entries: int, window: int) -> None:
    if min_entries > window:
        raise ValueError(f"min_entries {min_entries} is above window {window}: nothing would ever be compared")


class PreflightConfig(Declaration):
    """Limits for a day's log, relative to the median of the newest entries of the ledger.

    A figure is refused only if it is beyond its own limit, beyond its spread over the window, and, for shares and mean
    labels, beyond chance.

    Args:
        success_marker: True if the day's folder must hold a file `_SUCCESS`.
        window: Number of the newest entries that count.
        min_entries: Number of entries below which only the hard checks hold: the day exists, is readable, has the
            declared columns, and a row in every task's space.
        spread: Number of spreads within which a figure is usual. A spread is 1.4826 times the median absolute deviation
            of the figure over the window. 0: the limits below alone.
        noise: Number of standard errors, from the usual figure and the rows, within which a share or a mean label is
            usual.
        rows_ratio: Largest ratio of the number of rows to the median, and of the median to it.
        rows_ratio_most: Largest ratio of the number of rows to the median that the spread excuses. It excuses no fewer
            rows, so that half a day is refused on any log.
        nulls: Largest difference between a column's share of null rows and the median.
        label_ratio: Largest ratio of a task's mean label to the median, and of the median to it.
        unseen_ids: Largest excess over the median of the share of rows whose id was on none of the window's days.
    """

    success_marker: bool = False
    window: int = Field(default=7, ge=1, le=90)
    min_entries: int = Field(default=3, ge=1)
    spread: float = Field(default=4.0, ge=0)
    noise: float = Field(default=4.0, ge=0)
    rows_ratio: float = Field(default=1.5, gt=1)
    rows_ratio_most: float = Field(default=1.8, gt=1)
    nulls: float = Field(default=0.05, gt=0, le=1)
    label_ratio: float = Field(default=1.5, gt=1)
    unseen_ids: float = Field(default=0.2, gt=0, le=1)

    @model_validator(mode="after")
    def _check(self) -> Self:
        _refuse_never(self.min_entries, self.window)
        return self


class GateConfig(Declaration):
    """Limits for a new model; the quality of a task is its AUC, R2 or accuracy: higher is better.

    A limit is widened by the spread of its figure over the newest entries, and figures count beyond a standard error:
    drops beyond that of the quality, ratios beyond that of the mean label on the same rows. The hold-out is measured
    only if a task has enough rows there.

    Args:
        window: Number of the newest entries that count.
        min_entries: Number of entries below which the metrics of yesterday's model on today's log are not compared, and
            spreads are 0.
        spread: Number of spreads that a limit is at least. A spread is 1.4826 times the median absolute deviation of
            the figure over the window. 0: the limits below alone.
        noise: Number of standard errors beyond which a figure counts.
        before_drop: Largest drop of yesterday's model, on today's log, below the median of its predecessors on their
            next day.
        drop: Largest drop of the new model below its parent on the hold-out.
        calibration_ratio: The new model's calibration on the hold-out (sum of predictions over sum of labels) is within
            this ratio of 1, or nearer to 1 than its parent's.
        shift_ratio: The mean prediction on the hold-out is within this ratio of the parent's.
        min_positives: Number of positive rows, and of negative ones (or of rows, for tasks that are not binary), below
            which a task is not judged.
        tasks: Other limits by task name.
        slices: Limits of slices by their name in `evaluation.by`: each task is judged on each value too. An absent
            limit is the task's. Slices that are not named here are not judged.
    """

    window: int = Field(default=7, ge=1, le=90)
    min_entries: int = Field(default=3, ge=1)
    spread: float = Field(default=4.0, ge=0)
    noise: float = Field(default=1.0, ge=0)
    before_drop: float = Field(default=0.1, gt=0)
    drop: float = Field(default=0.02, gt=0)
    calibration_ratio: float = Field(default=1.5, gt=1)
    shift_ratio: float = Field(default=1.5, gt=1)
    min_positives: int = Field(default=50, ge=1)
    tasks: dict[str, "TaskGateConfig"] = {}
    slices: dict[str, "TaskGateConfig"] = {}

    @model_validator(mode="after")
    def _check(self) -> Self:
        _refuse_never(self.min_entries, self.window)
        return self

    def limit(self, task: str, key: str) -> float:
        """Return a limit for a task: its own, else the common one."""
        own = getattr(self.tasks.get(task), key, None)
        return getattr(self, key) if own is None else own

    def of_slice(self, name: str, task: str, value: str) -> Self:
        """Return the limits of one slice, under the name `value` for a task."""
        limits = self.slices[name].model_dump(exclude_none=True)
        of_task = self.tasks[task].model_dump(exclude_none=True) if task in self.tasks else {}
        return self.model_copy(update={"tasks": {value: TaskGateConfig(**of_task | limits)}})


class TaskGateConfig(Declaration):
    """Limits of one task; an absent limit is the common one.

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
    """Notification when a day is refused; its own failure is logged only.

    Args:
        webhook: A url that receives a JSON object by POST: project, line, day, step, text. The url is a secret, so no
            checkpoint or entry holds it. Absent: the environment variable COUNTERPOISE_WEBHOOK.
    """

    webhook: str | None = Field(default=None, exclude=True, repr=False, pattern=r"^https?://")


class DailyConfig(Declaration):
    """The daily job.

    Args:
        preflight: Checks of a day's log before it is trained.
        gate: Checks of a new checkpoint before it is published.
        max_catch_up: Maximum number of missing days before the requested one that are trained first.
        lease_s: Time in seconds without a renewal after which the job that holds the line counts as dead; a job renews
            its lease three times as often.
        on_refusal: Notification of refusals.
    """

    preflight: PreflightConfig = PreflightConfig()
    gate: GateConfig = GateConfig()
    max_catch_up: int = Field(default=7, ge=0)
    lease_s: float = Field(default=60.0, gt=0)
    on_refusal: OnRefusalConfig = OnRefusalConfig()
