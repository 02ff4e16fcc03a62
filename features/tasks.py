"""Tasks as a config declares them: label, sample space, loss, and the sampling of the log."""

from typing import Literal, Self

from pydantic import Field, model_validator

from features.declaration import Declaration, Name
from features.expressions import Expression, parse_expression


class Sampling(Declaration):
    """Sampling of the log before it was written, and its correction.

    Metrics always weigh a row by one over the probability with which it was kept, so that calibration refers to the
    rate of the whole log.

    Args:
        rate: Rows with label 0 were kept with this probability; rows with label 1 all were.
        column: The log's column with the probability with which each row was kept; instead of `rate`.
        correction: `weight`: a row counts one over its probability times in the loss. `log_odds`: the loss sees the
            logit plus ln(1 / rate), the effect of sampling on the odds (King and Zeng, "Logistic Regression in Rare
            Events Data", 2001, equation 7), so the model itself predicts for the whole log; with `rate` only.
            `log_odds` has less variance than weights, and needs a model that can be right.
    """

    rate: float | None = Field(default=None, gt=0, le=1)
    column: str | None = None
    correction: Literal["weight", "log_odds"] = "weight"

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.rate is None) == (self.column is None):
            raise ValueError("sampling needs either rate or column")
        if self.correction == "log_odds" and self.rate is None:
            raise ValueError("sampling.correction log_odds needs rate: a column is for correction weight")
        return self


class TaskConfig(Declaration):
    """One objective and the sample space on which it is defined.

    Args:
        name: The task's name.
        kind: `binary`, `regression` or `multiclass`.
        label: A column or an expression; a null label is outside the space.
        space: Expression of the task's sample space, true on its rows; absent: all rows.
        loss: For regression: `mse`, `huber` or `poisson`.
        huber_delta: The absolute error at which huber turns from square to linear.
        link: For mse and huber: the tower's output as it is, or through a sigmoid (targets within 0 and 1).
        log1p_target: The regression learns log(1 + label); predictions are in the label's own unit.
        num_classes: For multiclass: labels are 0 .. num_classes - 1.
        role: An auxiliary task trains, and is in no score or export.
        objective: Name of the group of tasks in the reports.
        weight: Expression of a row's weight in this task's loss and metrics; absent: 1.
        truth: The column of the row's true probability or mean in synthetic logs; only evaluations read it.
        matures_after: Delay in whole days, as in `3d`, after which the label is final; absent: at once. An immature
            label counts as null, whatever the log says; training day D then also trains the task on the rows of D - 3.
        sampling: Sampling of the log; absent: none.
    """

    name: Name
    kind: Literal["binary", "regression", "multiclass"] = "binary"
    label: str
    space: str | None = None
    loss: Literal["mse", "huber", "poisson"] = "mse"
    huber_delta: float = Field(default=1.0, gt=0)
    link: Literal["identity", "sigmoid"] = "identity"
    log1p_target: bool = False
    num_classes: int | None = Field(default=None, ge=2)
    role: Literal["main", "auxiliary"] = "main"
    objective: Literal["engagement", "satisfaction"] = "engagement"
    weight: str | None = None
    truth: str | None = None
    matures_after: str | None = Field(default=None, pattern=r"^[1-9][0-9]{0,2}d$")
    sampling: Sampling | None = None

    @property
    def delay_days(self) -> int:
        """Number of days after which the label is final."""
        return int(self.matures_after[:-1]) if self.matures_after else 0

    @model_validator(mode="after")
    def _check(self) -> Self:
        for text in self.expressions():
            parse_expression(text)
        if self.sampling is not None and self.sampling.rate is not None and self.kind != "binary":
            raise ValueError(
                f"task {self.name!r}: sampling.rate thins out label 0 of binary tasks, this is {self.kind}"
            )
        if (self.num_classes is None) == (self.kind == "multiclass"):
            raise ValueError(f"task {self.name!r}: num_classes is for multiclass tasks, and they need it")
        # Not model_fields_set: a schema that was written out with all defaults must be readable again.
        regression = ("loss", "huber_delta", "link", "log1p_target")
        given = [name for name in regression if getattr(self, name) != type(self).model_fields[name].default]
        if self.kind != "regression" and given:
            raise ValueError(f"task {self.name!r}: {given} are for regression tasks, this one is {self.kind}")
        if self.loss == "poisson" and (self.log1p_target or self.link == "sigmoid"):
            raise ValueError(f"task {self.name!r}: poisson has a logarithmic link of its own: no log1p_target or link")
        if self.log1p_target and self.link == "sigmoid":
            raise ValueError(
                f"task {self.name!r}: no log1p_target with a sigmoid link, whose targets are within 0 and 1"
            )
        return self

    def expressions(self, *, with_truth: bool = True) -> list[str]:
        """Return the declared expressions, the label first."""
        kept = self.sampling.column if self.sampling else None
        texts = (self.label, self.space, self.weight, kept, self.truth if with_truth else None)
        return [text for text in texts if text is not None]

    @property
    def label_expression(self) -> Expression:
        """Parsed label."""
        return parse_expression(self.label)
