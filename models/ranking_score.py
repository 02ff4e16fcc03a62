"""Ranking score: several tasks' predictions as one number to rank by, as a product of powers or in lexicographic order.

Both are computed in float64, row by row. A higher score ranks first. Rows of equal scores keep their order.
"""

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Annotated, Literal, Self

import torch
from jaxtyping import Float, Int
from pydantic import Field, model_validator
from torch import Tensor
from torch.nn import functional as F

from features.declaration import Declaration, Name

DurationFunction = Literal["log", "sigmoid"]
_MOST_BUCKETS = 2**20  # a bucket and the 32 bits of a float32 fit the 53 bits of a float64


class TopConfig(Declaration):
    """The rows that are ranked against each other, and the number that is kept.

    Args:
        by: The column of requests or users, one of the keys of the predictions; all rows of a day without a value are
            one group.
        k: Number of rows that are kept of each request or user and day; absent: all, with their rank.
    """

    by: str
    k: int | None = Field(default=None, ge=1)


class DurationConfig(Declaration):
    """The factor of the duration in Eq. 1, with u = (duration - offset) / scale.

    A duration that is null, NaN, infinite or below 0 counts as 0.

    Args:
        column: The column of durations, one of the keys of the predictions.
        function: `log`: log(1 + u), 0 where u is at most 0, and such a row ranks last. `sigmoid`: 1 / (1 + exp(-u)).
        scale: Unit of u, in the unit of the column.
        offset: The duration at which u is 0, in the unit of the column; below 0 it gives a duration of 0 a factor of
            `log` above 0.
    """

    column: str
    function: DurationFunction
    scale: float = Field(gt=0, allow_inf_nan=False)
    offset: float = Field(default=0.0, allow_inf_nan=False)


class ProductConfig(Declaration):
    """Product of powers of predictions (Tang et al., "Progressive Layered Extraction", RecSys 2020, Eq. 1).

    Args:
        kind: `product`.
        exponents: Exponent of each task's prediction, at least 0; 0 leaves the task out, whatever it predicts. Binary
            and regression tasks.
        duration: The factor of the duration; absent: none.
        top: The rows that are ranked against each other.
    """

    kind: Literal["product"]
    exponents: dict[Name, Annotated[float, Field(ge=0, allow_inf_nan=False)]] = Field(min_length=1)
    duration: DurationConfig | None = None
    top: TopConfig

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not any(self.exponents.values()):
            raise ValueError("every exponent is 0: no prediction is in the score")
        return self

    @property
    def tasks(self) -> list[str]:
        """Tasks whose predictions the score reads."""
        return [task for task, exponent in self.exponents.items() if exponent]


class LexicographicTask(Declaration):
    """A task of the lexicographic order.

    Args:
        task: A binary or regression task.
        boundaries: Rising lower bounds of all buckets but the lowest; a prediction at a bound is in the upper bucket.
        width: Width of equal buckets from 0 to 1, of a binary task; instead of `boundaries`.
    """

    task: Name
    boundaries: list[Annotated[float, Field(allow_inf_nan=False)]] | None = Field(default=None, min_length=1)
    width: float | None = Field(default=None, ge=0.0001, lt=1)

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.boundaries is not None and self.width is not None:
            raise ValueError(f"task {self.task!r} has boundaries and a width: declare one of them")
        if any(later <= earlier for earlier, later in pairwise(self.boundaries or [])):
            raise ValueError(f"boundaries of task {self.task!r} do not rise: {self.boundaries}")
        return self

    @property
    def bounds(self) -> list[float]:
        """Lower bounds of the buckets; none: each prediction is a bucket of its own."""
        if self.width is None:
            return self.boundaries or []
        return [number * self.width for number in range(1, math.ceil(1 / self.width - 1e-9))]


class LexicographicConfig(Declaration):
    """The first task's bucket decides, within it the next task's, at last the last task's prediction.

    Source: Meitu, "Multi-task NFwFM", 2019, which ranks by click rate first and then by follow rate. The buckets are
    our reading, since no two predictions would be equal without them.

    Args:
        kind: `lexicographic`.
        tasks: The tasks in the order in which they decide; all but the last have buckets.
        top: The rows that are ranked against each other.
    """

    kind: Literal["lexicographic"]
    tasks: list[LexicographicTask] = Field(min_length=1)
    top: TopConfig

    @model_validator(mode="after")
    def _check(self) -> Self:
        names = [entry.task for entry in self.tasks]
        if len(set(names)) < len(names):
            raise ValueError(f"a task decides twice: {names}")
        for place, entry in enumerate(self.tasks):
            if bool(entry.bounds) == (place == len(names) - 1):
                raise ValueError(f"task {entry.task!r}: all tasks but the last need boundaries or a width, it has none")
        num_buckets = 1
        for entry in self.tasks:
            num_buckets *= len(entry.bounds) + 1
        if num_buckets > _MOST_BUCKETS:
            raise ValueError(f"{num_buckets:,} buckets in all: declare at most {_MOST_BUCKETS:,}")
        return self


RankingConfig = Annotated[ProductConfig | LexicographicConfig, Field(discriminator="kind")]


def ranking_score(
    config: ProductConfig | LexicographicConfig,
    predictions: Mapping[str, Float[Tensor, " batch"]],
    duration: Float[Tensor, " batch"] | None = None,
) -> Float[Tensor, " batch"]:
    """Return the score that a configuration declares.

    Args:
        config: The declared score.
        predictions: Predictions of each task, at least those that the score reads.
        duration: Durations in the unit of their column; only read where the configuration declares it.

    Returns:
        float64 of shape (B,); NaN where a prediction that the score reads is not finite.
    """
    if isinstance(config, LexicographicConfig):
        ordered = [predictions[entry.task] for entry in config.tasks]
        return lexicographic(ordered, [entry.bounds for entry in config.tasks[:-1]])
    declared, factor = config.duration, None
    if declared is not None and duration is not None:
        factor = log_duration_factor(duration, declared.function, scale=declared.scale, offset=declared.offset)
    return log_product(predictions, config.exponents, factor)


def log_product(
    predictions: Mapping[str, Float[Tensor, " batch"]],
    exponents: Mapping[str, float],
    log_factor: Float[Tensor, " batch"] | None = None,
) -> Float[Tensor, " batch"]:
    """Return the logarithm of Eq. 1: sum_k w_k log p_k + log f(duration).

    A prediction of 0, or of a regression below 0, gives minus infinity: the row ranks last. An exponent of 0 leaves its
    task out, also where the prediction is 0 or NaN.

    Args:
        predictions: Probabilities of binary tasks, means of regressions, by task.
        exponents: w_k of at least 0, by task; one at least is above 0.
        log_factor: log f(duration); absent: 0.

    Returns:
        float64 of shape (B,); NaN where a prediction with an exponent above 0 is not finite.
    """
    parts = [exponent * _log(predictions[task]) for task, exponent in exponents.items() if exponent]
    score = torch.stack(parts).sum(0)
    return score if log_factor is None else score + log_factor


def _log(values: Tensor) -> Tensor:
    """Return the logarithm, minus infinity for 0 and below, NaN for what is not finite."""
    return _finite_or_nan(values.to(torch.float64)).clamp(min=0).log()


def _finite_or_nan(values: Tensor) -> Tensor:
    return torch.where(values.isfinite(), values, torch.nan)


def log_duration_factor(
    duration: Float[Tensor, " batch"], function: DurationFunction, *, scale: float, offset: float = 0.0
) -> Float[Tensor, " batch"]:
    """Return log f(duration) of Eq. 1, which names "such as sigmoid or log"; scale and offset are our reading.

    Args:
        duration: Durations; one that is NaN, infinite or below 0 counts as 0.
        function: With u = (duration - offset) / scale, `log` is f = log(1 + max(u, 0)), `sigmoid` is 1 / (1 + exp(-u)).
        scale: Unit of u.
        offset: Duration at which u is 0.

    Returns:
        float64 of shape (B,); minus infinity where f is 0.
    """
    known = duration.to(torch.float64)
    known = torch.where(known.isfinite(), known, 0.0).clamp(min=0)
    u = (known - offset) / scale
    return F.logsigmoid(u) if function == "sigmoid" else u.clamp(min=0).log1p().log()


def lexicographic(
    predictions: Sequence[Float[Tensor, " batch"]], bounds: Sequence[Sequence[float]]
) -> Float[Tensor, " batch"]:
    """Return scores in the lexicographic order of the tasks' buckets, and of the last task's prediction within them.

    The whole part of a score numbers the bucket of all tasks but the last. Its fraction is the place of the last task's
    prediction among all float32, so that two different predictions never tie.

    Args:
        predictions: Predictions of the tasks, the first one decides first.
        bounds: Lower bounds of the buckets of each task but the last, compared as float32.

    Returns:
        float64 of shape (B,); NaN where a prediction is not finite.
    """
    *first, last = (values.to(torch.float32) for values in predictions)
    buckets = torch.zeros(last.shape, dtype=torch.int64, device=last.device)
    for values, lower in zip(first, bounds, strict=True):
        edges = torch.tensor(lower, dtype=torch.float32, device=values.device)
        buckets = buckets * (len(lower) + 1) + torch.bucketize(values, edges, right=True)
    score = buckets.to(torch.float64) + _order(last).to(torch.float64) / 2.0**32
    finite = torch.stack([values.isfinite() for values in [*first, last]]).all(0)
    return torch.where(finite, score, torch.nan)


def _order(values: Float[Tensor, " batch"]) -> Int[Tensor, " batch"]:
    """Return the place of each value among all float32, within 0 and 2^32 - 1; -0 and 0 have one place."""
    bits = (values + 0.0).view(torch.int32).to(torch.int64)
    return torch.where(bits >= 0, bits + 2**31, 2**31 - 1 - (bits & 0x7FFFFFFF))
