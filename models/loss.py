"""Union-space loss: each task is trained on its own sample space, in one pass over the union of all spaces.

Source: Tang et al., "Progressive Layered Extraction (PLE)", RecSys 2020, equations 8 to 10.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from difflib import get_close_matches
from itertools import accumulate
from typing import Literal, Self

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from pydantic import Field, model_validator
from torch import Tensor, nn

from features.declaration import Declaration
from features.errors import ConfigError
from models.tasks import TaskHead

ScheduleUnit = Literal["step", "day", "epoch"]


class UnionSpaceLoss(nn.Module):
    """L_k = sum_b d_kb w_kb loss_k(b) / denominator_k (Eq. 9), and L = sum_k w_k(t) L_k (Eq. 8).

    d_kb is 1 if row b is in task k's sample space. The paper's denominator is sum_b d_kb; here it is an argument,
    sum_b d_kb w_kb over the batches of all ranks, which no rank knows alone. Our reading of an empty space: the loss is
    0.

    Values outside a space are replaced by 0 before the loss is computed. A mask after the loss would leave a NaN in the
    value or in the gradient, because NaN * 0 is NaN.

    Tasks with equal declarations, apart from their names, are computed by the same kernels.

    Args:
        heads: The tasks, in the order of outputs and labels.
    """

    tasks: Tensor
    columns: Tensor
    column_tasks: Tensor
    places: Tensor

    def __init__(self, heads: Sequence[TaskHead]) -> None:
        super().__init__()
        alike: dict[TaskHead, list[int]] = {}
        for index, head in enumerate(heads):
            alike.setdefault(replace(head, name=""), []).append(index)
        self.kinds = [(head, len(members)) for head, members in alike.items()]
        tasks = [index for members in alike.values() for index in members]
        starts = list(accumulate((head.num_outputs for head in heads), initial=0))
        columns = [(task, column) for task in tasks for column in range(starts[task], starts[task + 1])]
        self.register_buffer("tasks", torch.tensor(tasks), persistent=False)
        self.register_buffer("columns", torch.tensor([column for _, column in columns]), persistent=False)
        self.register_buffer("column_tasks", torch.tensor([task for task, _ in columns]), persistent=False)
        self.register_buffer("places", torch.tensor(tasks).argsort(), persistent=False)

    def forward(
        self,
        outputs: Float[Tensor, "batch output"],
        labels: Float[Tensor, "batch task"],
        in_space: Bool[Tensor, "batch task"],
        weight: Float[Tensor, "batch task"],
        denominators: Float[Tensor, " task"],
        loss_weights: Float[Tensor, " task"],
    ) -> tuple[Float[Tensor, ""], Float[Tensor, " task"]]:
        """Compute the weighted loss, and every task's loss.

        Args:
            outputs: The towers' outputs, side by side.
            labels: In the label's own unit, the class for multiclass tasks; arbitrary outside the space.
            in_space: Mask of the rows in each task's space.
            weight: Weight of each row in each task; arbitrary outside the space.
            denominators: Divisor of each task's sum; 0 gives a loss of 0.
            loss_weights: w_k(t).

        Returns:
            L, and L_k of every task.
        """
        # Shape (1,) instead of a number, so that bfloat16 outputs become as wide as the labels.
        zero = labels.new_zeros(1)
        labels = torch.where(in_space, labels, zero).index_select(1, self.tasks)
        outputs = outputs.index_select(1, self.columns)
        outputs = torch.where(in_space.index_select(1, self.column_tasks), outputs, zero)
        row_losses = self._by_kind(outputs, labels).index_select(1, self.places)
        sums = (torch.where(in_space, weight, zero) * row_losses).sum(0)
        is_empty = denominators == 0
        losses = torch.where(is_empty, zero, sums / torch.where(is_empty, 1.0, denominators))
        return (loss_weights * losses).sum(), losses

    def _by_kind(
        self, outputs: Float[Tensor, "batch output"], labels: Float[Tensor, "batch task"]
    ) -> Float[Tensor, "batch task"]:
        losses = []
        column = task = 0
        for head, count in self.kinds:
            width = count * head.num_outputs
            losses.append(_row_losses(head, outputs[:, column : column + width], labels[:, task : task + count]))
            column, task = column + width, task + count
        return torch.cat(losses, dim=1)


def _row_losses(
    head: TaskHead, outputs: Float[Tensor, "batch output"], labels: Float[Tensor, "batch task"]
) -> Float[Tensor, "batch task"]:
    """Compute loss_k of each row for tasks that are all declared like `head`.

    For a sampled log, binary tasks see its odds: odds / rate. Squared error has no factor 1/2; Poisson's loss is
    exp(output) - label * output, without the label's factorial.
    """
    if head.kind == "binary":
        sampled = outputs if head.sampled_rate == 1 else outputs - math.log(head.sampled_rate)
        return F.binary_cross_entropy_with_logits(sampled, labels, reduction="none")
    if head.kind == "multiclass":
        log_probabilities = outputs.unflatten(1, (-1, head.num_outputs)).log_softmax(-1)
        return -log_probabilities.gather(-1, labels.long().unsqueeze(-1)).squeeze(-1)
    if head.loss == "poisson":
        return F.poisson_nll_loss(outputs, labels, log_input=True, reduction="none")
    prediction = outputs.sigmoid() if head.link == "sigmoid" else outputs
    target = torch.log1p(labels) if head.log1p_target else labels
    if head.loss == "huber":
        return F.huber_loss(prediction, target, reduction="none", delta=head.huber_delta)
    return F.mse_loss(prediction, target, reduction="none")


class LossWeightSchedule:
    """w_k(t) = max(floor_k, w_k0 gamma_k^t): Eq. 10 of the paper, with a floor.

    The paper updates the weights "after each step" and calls t "the training epoch"; so the unit of t is a choice.

    Args:
        unit: ScheduleUnit of t.
        initial: w_k0 of each task.
        gamma: Factor of each task per unit.
        floor: Lower bound of each task's weight.
    """

    def __init__(
        self, unit: ScheduleUnit, initial: Sequence[float], gamma: Sequence[float], floor: Sequence[float]
    ) -> None:
        for index, values in enumerate(zip(gamma, floor, strict=True)):
            _refuse_vanishing(f"task {index}", unit, *values)
        self.unit: ScheduleUnit = unit
        self._initial = torch.tensor(initial, dtype=torch.float64)
        self._gamma = torch.tensor(gamma, dtype=torch.float64)
        self._floor = torch.tensor(floor, dtype=torch.float64)

    def at(self, t: float) -> Float[Tensor, " task"]:
        """Compute the weights after t units, in float32."""
        return torch.maximum(self._floor, self._initial * self._gamma**t).float()

    def weights(self, *, step: int, day: int, epoch: int) -> Float[Tensor, " task"]:
        """Compute the weights after so many steps, days and epochs; the unit selects one of them."""
        return self.at({"step": step, "day": day, "epoch": epoch}[self.unit])


class TaskWeightConfig(Declaration):
    """Weight of one task: w_k(t) = max(floor, initial * gamma^t).

    Args:
        initial: The weight at the start.
        gamma: Factor per step, day or epoch.
        floor: Lower bound of the weight.
    """

    initial: float = Field(default=1.0, ge=0, allow_inf_nan=False)
    gamma: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    floor: float = Field(default=0.0, ge=0, allow_inf_nan=False)

    @property
    def is_trained(self) -> bool:
        """False if the weight is 0 at all times."""
        return self.initial > 0 or self.floor > 0


class LossWeightConfig(Declaration):
    """Weights of the tasks in the loss; an unnamed task keeps weight 1.

    Args:
        unit: ScheduleUnit of t: `step`, `day` or `epoch`.
        tasks: Weights by task name.
    """

    unit: ScheduleUnit = "step"
    tasks: dict[str, TaskWeightConfig] = {}

    @model_validator(mode="after")
    def _check(self) -> Self:
        for name, weight in self.tasks.items():
            _refuse_vanishing(f"task {name!r}", self.unit, weight.gamma, weight.floor)
        return self

    def schedule(self, task_names: Sequence[str]) -> LossWeightSchedule:
        """Build the schedule for tasks in this order.

        Raises:
            ConfigError: A weighted task does not exist, or all tasks have weight 0.
        """
        for name in [name for name in self.tasks if name not in task_names]:
            near = get_close_matches(name, task_names, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"declared are {list(task_names)}"
            raise ConfigError(f"loss_weights.tasks: there is no task {name!r}: {hint}")
        weights = [self.tasks.get(name, TaskWeightConfig()) for name in task_names]
        if not any(weight.is_trained for weight in weights):
            raise ConfigError("loss_weights.tasks: every task has weight 0, so nothing would be trained: raise one")
        return LossWeightSchedule(
            self.unit, [w.initial for w in weights], [w.gamma for w in weights], [w.floor for w in weights]
        )


def _refuse_vanishing(task: str, unit: ScheduleUnit, gamma: float, floor: float) -> None:
    if unit == "step" and gamma < 1 and floor <= 0:
        raise ValueError(
            f"loss weight of {task}: gamma {gamma:g} is applied at every step and there is no floor, so over months of "
            "steps the weight reaches 0 and the task is no longer trained: set a floor above 0, or count in days"
        )
