"""Optimizers of tables and dense part, and their learning-rate schedule."""

from typing import Literal

from pydantic import Field

from features.declaration import Declaration


class TableOptimizerConfig(Declaration):
    """The tables' optimizer.

    Args:
        kind: `rowwise_adagrad` keeps one accumulator per row; `adagrad` one per element; `sgd` none.
        learning_rate: No default: it differs by orders of magnitude between models.
        eps: Term added to the root of the accumulator.
        keep_per_day: Factor of the accumulators at the start of each day but the line's first: Adagrad's rates only
            fall, so after months a frequent row would hardly move any more.
    """

    kind: Literal["rowwise_adagrad", "adagrad", "sgd"] = "rowwise_adagrad"
    learning_rate: float = Field(gt=0, allow_inf_nan=False)
    eps: float = Field(default=1e-8, gt=0, allow_inf_nan=False)
    keep_per_day: float = Field(default=1.0, gt=0, le=1)


class DenseOptimizerConfig(Declaration):
    """The dense part's optimizer.

    Args:
        kind: `adam` or `sgd`.
        learning_rate: No default: it differs by orders of magnitude between models.
        betas: Adam's decay rates.
        eps: Adam's epsilon.
        weight_decay: L2 on the dense parameters.
    """

    kind: Literal["adam", "sgd"] = "adam"
    learning_rate: float = Field(gt=0, allow_inf_nan=False)
    betas: tuple[float, float] = Field(default=(0.9, 0.999), strict=False)
    eps: float = Field(default=1e-8, gt=0)
    weight_decay: float = Field(default=0.0, ge=0)


class LearningRateConfig(Declaration):
    """Schedule of the learning rates over steps; the same factor for tables and dense part.

    Args:
        warmup_steps: Number of steps over which the factor grows linearly from 1 / warmup_steps to 1.
        decay: Decay after the warm-up: none, `inverse_sqrt`, or `exponential`.
        decay_steps: For inverse_sqrt: factor = sqrt(decay_steps / (decay_steps + t)); for exponential: the half-life.
        floor: Lower bound of the factor.
        day_warmup_steps: Number of steps over which the dense part's factor grows linearly to its full size at the
            start of each day but the line's first, since Adam's moments are yesterday's but the rows are today's.
    """

    warmup_steps: int = Field(default=0, ge=0)
    decay: Literal["none", "inverse_sqrt", "exponential"] = "none"
    decay_steps: int = Field(default=10_000, ge=1)
    floor: float = Field(default=0.0, ge=0, le=1)
    day_warmup_steps: int = Field(default=0, ge=0)

    def day_factor(self, steps_of_day: int) -> float:
        """Return the extra factor of the dense part, so many steps after a day began."""
        return min(1.0, (steps_of_day + 1) / self.day_warmup_steps) if self.day_warmup_steps else 1.0

    def factor(self, step: int) -> float:
        """Return the factor of a step, counted from 0 over the whole line."""
        if step < self.warmup_steps:
            return (step + 1) / self.warmup_steps
        after = step - self.warmup_steps
        if self.decay == "inverse_sqrt":
            return max(self.floor, (self.decay_steps / (self.decay_steps + after)) ** 0.5)
        if self.decay == "exponential":
            return max(self.floor, 0.5 ** (after / self.decay_steps))
        return 1.0


class OptimizerConfig(Declaration):
    """Optimizers and their schedule.

    Args:
        tables: The tables' optimizer.
        dense: The dense part's optimizer.
        schedule: Warm-up and decay.
        clip_norm: Largest norm of the dense gradient, which is scaled down to it; absent: unlimited.
    """

    tables: TableOptimizerConfig
    dense: DenseOptimizerConfig
    schedule: LearningRateConfig = LearningRateConfig()
    clip_norm: float | None = Field(default=None, gt=0)
