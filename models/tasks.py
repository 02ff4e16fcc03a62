"""Task heads: the number of a task's outputs, and their conversion to values in the label's own unit."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskHead:
    """Head of one task in plain values.

    Args:
        name: The task's name.
        kind: `binary`, `regression` or `multiclass`.
        loss: For regression: `mse`, `huber`, or `poisson`, with the logarithm of the mean as output.
        huber_delta: Absolute error at which huber turns from square to linear, in the unit of the target.
        link: For mse and huber: the output as it is, or through a sigmoid.
        log1p_target: For mse and huber: the target is log(1 + label).
        num_classes: For multiclass: labels are 0 .. num_classes - 1.
        sampled_rate: For binary: the log keeps each row of label 0 with this probability, and the loss corrects it by
            adding ln(1 / rate) to the output.
    """

    name: str
    kind: Literal["binary", "regression", "multiclass"]
    loss: Literal["mse", "huber", "poisson"] = "mse"
    huber_delta: float = 1.0
    link: Literal["identity", "sigmoid"] = "identity"
    log1p_target: bool = False
    num_classes: int | None = None
    sampled_rate: float = 1.0

    def __post_init__(self) -> None:
        """Check that the head has a loss."""
        if (self.kind == "multiclass") != (self.num_classes is not None and self.num_classes >= 2):
            raise ValueError(
                f"task {self.name!r} is {self.kind} with num_classes {self.num_classes}: it is for multiclass tasks, "
                "which need 2 or more"
            )
        if self.loss == "poisson" and (self.link != "identity" or self.log1p_target):
            raise ValueError(f"task {self.name!r}: poisson has a link of its own: no sigmoid link, no log1p_target")
        if self.huber_delta <= 0:
            raise ValueError(f"task {self.name!r}: huber_delta must be positive, got {self.huber_delta}")

    @property
    def num_outputs(self) -> int:
        """Number of outputs of the task's tower."""
        return 1 if self.num_classes is None else self.num_classes


def predictions_of(heads: Sequence[TaskHead], outputs: Float[Tensor, "batch output"]) -> dict[str, Tensor]:
    """Convert the towers' outputs to predictions in each label's own unit.

    Args:
        heads: The tasks, in the order of the outputs.
        outputs: Outputs of all tasks side by side.

    Returns:
        By task name: the probability of a binary task or the mean of a regression, of shape (B,); the probabilities of
        a multiclass task's classes, of shape (B, C).
    """
    parts = outputs.split([head.num_outputs for head in heads], dim=1)
    return {head.name: _prediction(head, part) for head, part in zip(heads, parts, strict=True)}


def _prediction(head: TaskHead, outputs: Float[Tensor, "batch class"]) -> Tensor:
    if head.kind == "multiclass":
        return outputs.softmax(1)
    output = outputs.squeeze(1)
    if head.kind == "binary":
        return output.sigmoid()
    if head.loss == "poisson":
        return output.exp()
    target = output.sigmoid() if head.link == "sigmoid" else output
    return torch.expm1(target) if head.log1p_target else target
