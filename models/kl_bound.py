"""KL bound: ties the tasks' separate probabilities of one event to the product rule.

Source: Meituan's ranking blog, "Guess you like", 2018: p(click) p(convert) = p(order) for three heads, by adding
KL(p || q) + KL(q || p) to the loss.
"""

from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import Literal

import torch
from jaxtyping import Bool, Float
from pydantic import Field
from torch import Tensor, nn

from features.declaration import Declaration
from features.errors import ConfigError
from models.entire_space import EntireSpace, ProbabilityConfig
from models.tasks import TaskHead

Stopped = Literal["none", "order", "product"]


class KLBound(nn.Module):
    """L += weight sum_b d_b w_b (a_b - b_b) log(a_b (1 - b_b) / (b_b (1 - a_b))) / denominator.

    a = p(order) and b = p(click) p(convert), and the term of a row is KL(a || b) + KL(b || a) of two Bernoulli
    distributions. With the logits x of a and y of b it is

        (x - y) tanh((x - y) / 2) (s(x) s(-y) + s(y) s(-x)),       s the sigmoid,

    whose factors are formed without a difference of probabilities: nothing cancels, nothing is 0 / 0, and at x = y
    value and gradient are 0. y is composed from logs, as in `models.entire_space`.

    Our reading where the source is silent: the rows are those of the order task's space, with the row weights, d and
    denominator (over all ranks) of its own loss. In a sampled log, probabilities are those of the whole log. The weight
    is constant, and neither w_k(t) nor `loss_balancing` changes the term.

    Args:
        columns: Output columns of order, click and convert.
        task: The number of the order task.
        weight: Weight of the term.
        stop_gradient: Side that does not learn from the term: the order task's, the product's, or none.
    """

    columns: Tensor

    def __init__(self, columns: Sequence[int], task: int, *, weight: float, stop_gradient: Stopped = "none") -> None:
        super().__init__()
        self.task, self.weight, self.stop_gradient = task, weight, stop_gradient
        self.register_buffer("columns", torch.tensor(columns), persistent=False)
        self.product = EntireSpace([1, 1], [(0, 1, None)], [2])

    def forward(
        self,
        outputs: Float[Tensor, "batch output"],
        in_space: Bool[Tensor, "batch task"],
        weight: Float[Tensor, "batch task"],
        denominators: Float[Tensor, " task"],
    ) -> Float[Tensor, ""]:
        """Compute the term to add to the loss.

        Args:
            outputs: Outputs of all tasks, side by side; arbitrary in rows outside the order task's space.
            in_space: Mask of the rows in each task's space.
            weight: Weight of each row in each task; arbitrary outside the space.
            denominators: Divisor of each task's sum; 0 gives 0.
        """
        inside = in_space[:, self.task : self.task + 1]
        zero = weight.new_zeros(1)
        logits = torch.where(inside, outputs.index_select(1, self.columns), zero)
        order, product = logits[:, :1], self.product(logits[:, 1:])
        if self.stop_gradient == "order":
            order = order.detach()
        if self.stop_gradient == "product":
            product = product.detach()
        weights = torch.where(inside, weight[:, self.task : self.task + 1], zero)
        denominator = denominators[self.task]
        is_empty = denominator == 0
        mean = (weights * symmetric_kl(order, product)).sum() / torch.where(is_empty, 1.0, denominator)
        return self.weight * torch.where(is_empty, 0.0, mean)


def symmetric_kl(x: Float[Tensor, "*any"], y: Float[Tensor, "*any"]) -> Float[Tensor, "*any"]:
    """Compute KL(a || b) + KL(b || a) of Bernoulli distributions from the logits x of a and y of b."""
    apart = x - y
    spread = x.sigmoid() * (-y).sigmoid() + y.sigmoid() * (-x).sigmoid()
    return apart * (apart / 2).tanh() * spread


class KLBoundConfig(Declaration):
    """Bound that ties p(click) p(convert) to p(order), for three tasks that learn them separately.

    Args:
        order: The task of the whole event; the bound covers the rows of its space.
        click: The task of the event's first half.
        convert: The task of the event's second half, given the first.
        weight: Weight of the bound in the loss.
        stop_gradient: Side that does not learn from the bound: `order`, the `product`, or `none`.
    """

    order: str
    click: str
    convert: str
    weight: float = Field(gt=0, allow_inf_nan=False)
    stop_gradient: Stopped = "none"

    def build(self, heads: Sequence[TaskHead], composed: Mapping[str, ProbabilityConfig]) -> KLBound:
        """Build the bound for tasks in this order.

        Args:
            heads: The declared tasks.
            composed: Rules of the probabilities that are composed, by name.

        Raises:
            ConfigError: A task is unknown, has no probability or is named twice, or the bound can only be 0.
        """
        names = (self.order, self.click, self.convert)
        self._check(names, {head.name: head.kind for head in heads})
        rule = composed.get(self.order)
        if rule is not None and rule.otherwise is None and {rule.given, rule.then} == {self.click, self.convert}:
            raise ConfigError(
                f"kl_bounds: entire_space composes {self.order!r} of {self.click!r} and {self.convert!r}, so the bound "
                "is always 0: leave one of the two out"
            )
        starts = {head.name: sum(h.num_outputs for h in heads[:index]) for index, head in enumerate(heads)}
        order = [head.name for head in heads].index(self.order)
        columns = [starts[name] for name in names]
        return KLBound(columns, order, weight=self.weight, stop_gradient=self.stop_gradient)

    @staticmethod
    def _check(names: Sequence[str], kinds: Mapping[str, str]) -> None:
        for index, name in enumerate(names):
            if name not in kinds:
                near = get_close_matches(name, kinds, n=1)
                hint = f"did you mean {near[0]!r}?" if near else f"declared are {list(kinds)}"
                raise ConfigError(f"kl_bounds: there is no task {name!r}: {hint}")
            if kinds[name] != "binary":
                raise ConfigError(f"kl_bounds: task {name!r} is {kinds[name]}, expected a binary one: name another")
            if name in names[:index]:
                raise ConfigError(f"kl_bounds: task {name!r} is named twice, expected three tasks: name each once")
