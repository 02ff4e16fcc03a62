"""Task grouping on a project's own logs: each task and each pair is trained briefly; a config for every group."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from features.errors import ConfigError
from pipeline.cluster.session import ray_session
from pipeline.config.project import Config
from pipeline.config.yaml_text import to_yaml
from pipeline.studies.candidates import head_parameters, sized, with_network, with_tasks
from pipeline.studies.grouping import Group, Grouping, best_grouping, groups_to_measure, higher_order
from pipeline.studies.trainings import Trainings, Variant

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupingPlan:
    """Plan of a grouping.

    Args:
        name: Name of its folder below ROOT/groupings.
        model: Kind of the network of every group.
        train_days: ISO dates in order: few, as each pair of tasks is trained on them.
        test_days: ISO dates, measured together.
        budget: Maximum number of served models.
    """

    name: str
    model: str
    train_days: tuple[str, ...]
    test_days: tuple[str, ...]
    budget: int

    def check(self, config: Config) -> None:
        """Check that the plan can be carried out.

        Raises:
            ConfigError: The plan cannot be carried out; says why and what to do.
        """
        if self.budget < 1:
            raise ConfigError(f"a budget of {self.budget} models predicts nothing: ask for 1 or more")
        if set(self.test_days) & set(self.train_days):
            raise ConfigError(f"the test days {list(self.test_days)} are among those that are trained: choose others")
        if config.model.entire_space is not None:
            raise ConfigError("model.entire_space: tasks with composed probabilities cannot be trained apart")


def group_tasks(config: Config, plan: GroupingPlan) -> dict[str, Any]:
    """Measure every task and pair, choose the groups, and write a configuration for each.

    Returns:
        The figures of the command's JSON line.

    Raises:
        ConfigError: The plan cannot be carried out.
        DataError: The logs do not fit the configuration.
    """
    plan.check(config)
    tasks = tuple(config.log_schema.task_names)
    trainings = Trainings(config, f"groupings/{plan.name}", keep_checkpoints=False)
    size = head_parameters(config)
    groups = list(groups_to_measure(tasks))
    variants = [
        Variant("+".join(group), _of_group(config, plan.model, group, size), plan.train_days) for group in groups
    ]
    with ray_session(config):
        found = trainings.measured(variants, plan.test_days)
    losses = {
        group: {task["task"]: _loss(task) for task in result["tasks"]}
        for group, result in zip(groups, found, strict=True)
    }
    relative = relative_losses(losses)
    chosen = best_grouping(tasks, higher_order(tasks, relative), plan.budget)
    files = {}
    for group in chosen.groups:
        name = "+".join(group)
        trainings.storage.write(f"{name}.yaml", _as_yaml(_of_group(config, plan.model, group, size), name))
        files[name] = f"{trainings.storage.url}/{name}.yaml"
    return _figures(chosen, relative) | {"configs": files}


def _of_group(config: Config, model: str, group: Sequence[str], num_parameters: int) -> Config:
    """Return the configuration of a group's model, with the size of the declared model for all tasks."""
    of_group = with_tasks(config, group)
    return with_network(of_group, sized(model, of_group, num_parameters).network)


def _loss(task: dict[str, Any]) -> float:
    """Return a task's measured training loss."""
    loss = task["model"].get("mse" if task["kind"] == "regression" else "log_loss")
    if loss is None:
        raise ConfigError(f"task {task['task']} has no rows in its space on the test days: measure more of them")
    return float(loss)


def relative_losses(losses: dict[Group, dict[str, float]]) -> dict[Group, dict[str, float]]:
    """Return losses over those of the single-task models: under 1 for a task that gains."""
    return {group: {task: loss / losses[(task,)][task] for task, loss in of.items()} for group, of in losses.items()}


def _figures(chosen: Grouping, relative: dict[Group, dict[str, float]]) -> dict[str, Any]:
    return {
        "result": "grouped",
        "groups": [list(group) for group in chosen.groups],
        "serves": {task: "+".join(group) for task, group in chosen.serves.items()},
        "loss_over_alone": round(chosen.loss / len(chosen.serves), 6),
        "pairs": {
            "+".join(group): {task: round(loss, 6) for task, loss in of.items()}
            for group, of in relative.items()
            if len(group) == 2
        },
    }


def _as_yaml(config: Config, name: str) -> bytes:
    """Return a configuration that `jobs.train` accepts, on a line of the group's own."""
    named = config.model_copy(update={"name": f"{config.name}-{name}", "line": name.replace("+", "-")})
    return to_yaml(named.model_dump(mode="json", by_alias=True, exclude_defaults=True)).encode()
