"""Entire-space models: a task's probability composed of the outputs of several towers, trained over all impressions.

Sources: Ma et al., "Entire Space Multi-Task Model" (ESMM), SIGIR 2018; Wen et al., "Conversion Rate Prediction via
Post-Click Behaviour Modeling" (ESM2), 2019.
"""

from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from graphlib import CycleError, TopologicalSorter

import torch
import torch.nn.functional as F
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from features.declaration import Declaration, Name
from features.errors import ConfigError
from models.tasks import TaskHead

Logs = tuple[Float[Tensor, "batch 1"], Float[Tensor, "batch 1"]]
"""log p and log(1 - p)."""


class EntireSpace(nn.Module):
    """Composition of the towers' outputs to the tasks': a composed probability becomes a logit, like a tower's output.

    So the loss, the metrics and the predictions treat a composed task as any binary task. One rule composes:

        p = p_given p_then + (1 - p_given) p_otherwise        (law of total probability; without `otherwise` a product)

    ESMM: p_ctcvr = p_ctr p_cvr. ESM2: p_ctavr = y1 y2, p_cvr = y2 y3 + (1 - y2) y4, p_ctcvr = y1 p_cvr.

    Both log p and log(1 - p) are sums of positive terms: log(1 - p) is the same rule over 1 - p_then and 1 -
    p_otherwise. Nothing cancels, and unlike a product of sigmoids nothing underflows, since all terms are logs. The
    logit is log p - log(1 - p). Outputs without a rule are passed on bit by bit.

    Args:
        num_outputs: Number of outputs of each tower; 1 for towers that a rule reads.
        rules: (given, then, otherwise or None), as numbers: first the towers, then the preceding rules.
        tasks: Number of the tower or rule of each task.
    """

    def __init__(
        self, num_outputs: Sequence[int], rules: Sequence[tuple[int, int, int | None]], tasks: Sequence[int]
    ) -> None:
        super().__init__()
        self.num_outputs, self.rules, self.tasks = list(num_outputs), list(rules), list(tasks)

    def forward(self, outputs: Float[Tensor, "batch tower_output"]) -> Float[Tensor, "batch task_output"]:
        """Compose the outputs of all tasks, side by side in the tasks' order."""
        pieces = outputs.split(self.num_outputs, dim=1)
        nodes = [pieces[tower] for tower in range(len(self.num_outputs))]  # a traced tuple has no length
        read = {number for rule in self.rules for number in rule if number is not None}
        logs: dict[int, Logs] = {
            tower: (F.logsigmoid(nodes[tower]), F.logsigmoid(-nodes[tower]))
            for tower in sorted(read)
            if tower < len(self.num_outputs)
        }
        for given, then, otherwise in self.rules:
            yes, no = _compose(logs[given], logs[then], None if otherwise is None else logs[otherwise])
            logs[len(nodes)] = yes, no
            nodes.append(yes - no)
        return torch.cat([nodes[number] for number in self.tasks], dim=1)


def _compose(given: Logs, then: Logs, otherwise: Logs | None) -> Logs:
    if otherwise is None:
        return given[0] + then[0], torch.logaddexp(given[1], given[0] + then[1])
    yes, no = (torch.logaddexp(given[0] + then[side], given[1] + otherwise[side]) for side in (0, 1))
    return yes, no


class ProbabilityConfig(Declaration):
    """Rule of composition: p = p(given) p(then) + (1 - p(given)) p(otherwise).

    Args:
        given: Name of a tower's probability, or of another composed one.
        then: The probability if `given` occurs.
        otherwise: The probability if `given` does not occur; absent: 0, so that p is a product.
    """

    given: Name
    then: Name
    otherwise: Name | None = None

    @property
    def names(self) -> list[str]:
        """Names that the rule reads."""
        return [name for name in (self.given, self.then, self.otherwise) if name is not None]


class EntireSpaceConfig(Declaration):
    """Tasks whose probabilities are composed of the outputs of several towers, as in ESMM and ESM2.

    Every task has a tower of its own name, unless its probability is composed here.

    Args:
        towers: Further towers, without a task and so without a loss; the network treats them as binary tasks.
        probabilities: Rule by name, of a task or for use in others.
    """

    towers: list[Name] = []
    probabilities: dict[Name, ProbabilityConfig] = Field(min_length=1)

    def tower_heads(self, heads: Sequence[TaskHead]) -> list[TaskHead]:
        """Return the heads of the towers: those of tasks that are not composed, in order, then the further ones.

        Args:
            heads: The declared tasks.

        Raises:
            ConfigError: A further tower has a name twice, or that of a task.
        """
        taken = [head.name for head in heads] + [*self.probabilities]
        for index, name in enumerate(self.towers):
            if name in taken + self.towers[:index]:
                raise ConfigError(f"entire_space.towers: {name!r} is a task, a probability or a tower already: rename")
        further = [TaskHead(name=name, kind="binary") for name in self.towers]
        return [head for head in heads if head.name not in self.probabilities] + further

    def build(self, heads: Sequence[TaskHead]) -> EntireSpace:
        """Build the module for tasks in this order.

        Raises:
            ConfigError: A name is unknown, or is read or composed where it cannot be.
        """
        towers = self.tower_heads(heads)
        self._check(towers, heads)
        order = [name for name in self._ordered() if name in self.probabilities]
        numbers = {name: number for number, name in enumerate([*(tower.name for tower in towers), *order])}
        rules = [_numbered(self.probabilities[name], numbers) for name in order]
        return EntireSpace([t.num_outputs for t in towers], rules, [numbers[head.name] for head in heads])

    def _ordered(self) -> list[str]:
        """Return the names, each after those that it reads."""
        graph = {name: probability.names for name, probability in self.probabilities.items()}
        try:
            return list(TopologicalSorter(graph).static_order())
        except CycleError as error:
            circle = " reads ".join(repr(name) for name in reversed(error.args[1]))
            raise ConfigError(f"entire_space.probabilities: {circle}: no probability can be part of itself") from error

    def _check(self, towers: Sequence[TaskHead], heads: Sequence[TaskHead]) -> None:
        kinds = {head.name: head.kind for head in (*heads, *towers)} | dict.fromkeys(self.towers, "binary")
        known = [*kinds, *(name for name in self.probabilities if name not in kinds)]
        read = [name for probability in self.probabilities.values() for name in probability.names]
        for name in read:
            if name not in known:
                near = get_close_matches(name, known, n=1)
                hint = f"did you mean {near[0]!r}?" if near else f"there are {known}: declare it in towers"
                raise ConfigError(f"entire_space.probabilities: there is no task or tower {name!r}: {hint}")
        for name in (*read, *self.probabilities):
            if kinds.get(name, "binary") != "binary":
                raise ConfigError(f"entire_space.probabilities: task {name!r} is {kinds[name]}, it has no probability")
        for name in (*self.towers, *self.probabilities):
            if name not in read and name not in {head.name for head in heads}:
                raise ConfigError(f"entire_space: {name!r} is no task, and no probability reads it: it has no effect")


def _numbered(probability: ProbabilityConfig, numbers: Mapping[str, int]) -> tuple[int, int, int | None]:
    otherwise = None if probability.otherwise is None else numbers[probability.otherwise]
    return numbers[probability.given], numbers[probability.then], otherwise
