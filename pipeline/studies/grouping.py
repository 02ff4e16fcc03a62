"""Choice of tasks to train together: groups under a budget of models, from briefly trained pairs.

Source: Standley et al., "Which Tasks Should Be Learned Together in Multi-task Learning?", ICML 2020. Decisions, [R]
each: a loss is divided by the single-task model's, since losses of different kinds are added up. Every model costs 1, a
single-task model too, since the cost is that of a served model with its tables. Groups of three and more are not
trained but predicted from pairs (the higher-order approximation). The authors' search prunes without a bound; this one
has a bound, and finds the optimum.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

Group = tuple[str, ...]
Losses = Mapping[Group, Mapping[str, float]]

_COST = 1.0


@dataclass(frozen=True, slots=True)
class Grouping:
    """Models that together predict every task.

    Args:
        groups: Tasks of each model.
        serves: For each task the group that predicts it best.
        loss: Sum over tasks of the loss over the single-task model's: the number of tasks without any gain.
    """

    groups: tuple[Group, ...]
    serves: dict[str, Group]
    loss: float


def higher_order(tasks: Sequence[str], measured: Losses) -> dict[Group, dict[str, float]]:
    """Return losses of every group: as measured for one and two tasks, predicted for more.

    L(G, t) = mean over u in G without t of L({t, u}, t).

    Args:
        tasks: Names in the order of the declaration, also that of every group.
        measured: Losses of each task alone and of each pair.
    """
    found = {group: dict(losses) for group, losses in measured.items()}
    for size in range(3, len(tasks) + 1):
        for group in combinations(tasks, size):
            found[group] = {task: _mean_of_pairs(group, task, measured) for task in group}
    return found


def _mean_of_pairs(group: Group, task: str, measured: Losses) -> float:
    pairs = [tuple(name for name in group if name in (task, other)) for other in group if other != task]
    return sum(measured[pair][task] for pair in pairs) / len(pairs)


def best_grouping(tasks: Sequence[str], losses: Losses, budget: float) -> Grouping:
    """Return the groups of least total loss within a budget, found by branch and bound.

    A branch is left if even its bound is no better than the best so far: the sum over tasks of the least loss among the
    branch's groups and all candidates that it can still afford. This lower bound is valid, so the result is the
    optimum; among equal ones the first in the order of the candidates, smaller groups first.

    Args:
        tasks: Names of all tasks.
        losses: Losses of each task in every candidate group.
        budget: Number of models, at least 1.

    Raises:
        ValueError: No candidates within the budget predict all tasks.
    """
    search = Search(tuple(tasks), sorted(losses.items(), key=lambda pair: (len(pair[0]), pair[0])))
    search.extend((), dict.fromkeys(tasks, float("inf")), 0, budget)
    if search.best is None:
        raise ValueError(f"no groups within a budget of {budget:g} models predict all of {list(tasks)}")
    return search.best


class Search:
    """Branch and bound over candidate groups.

    Args:
        tasks: Names of all tasks.
        candidates: Groups with the loss of each of their tasks, in the order in which they are tried.
    """

    def __init__(self, tasks: Group, candidates: Sequence[tuple[Group, Mapping[str, float]]]) -> None:
        self._tasks, self._candidates = tasks, candidates
        self.best: Grouping | None = None

    def extend(self, chosen: tuple[Group, ...], least: dict[str, float], first: int, left: float) -> None:
        """Try all candidates from an index on as additions to the chosen ones."""
        total = sum(least.values())
        if self.best is None or total < self.best.loss:
            self._keep(chosen, total)
        affordable = self._candidates[first:] if left >= _COST else ()
        if self.best is not None and self.bound(least, affordable) >= self.best.loss:
            return
        for index, (group, losses) in enumerate(affordable, start=first):
            better = {task: min(least[task], losses.get(task, least[task])) for task in self._tasks}
            if better != least:
                self.extend((*chosen, group), better, index + 1, left - _COST)

    def bound(self, least: dict[str, float], affordable: Sequence[tuple[Group, Mapping[str, float]]]) -> float:
        """Return the least loss that further groups can lead to."""
        return sum(
            min(least[task], min((losses[task] for _, losses in affordable if task in losses), default=float("inf")))
            for task in self._tasks
        )

    def _keep(self, chosen: tuple[Group, ...], total: float) -> None:
        if total == float("inf"):
            return
        by_group = dict(self._candidates)
        serves = {
            task: min((group for group in chosen if task in group), key=lambda group: by_group[group][task])
            for task in self._tasks
        }
        serving = tuple(group for group in chosen if group in serves.values())
        self.best = Grouping(serving, serves, total)


def groups_to_measure(tasks: Sequence[str]) -> Iterator[Group]:
    """Yield each task alone, then each pair."""
    for size in (1, 2):
        yield from combinations(tasks, size)
