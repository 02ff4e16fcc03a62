"""What a comparison runs: every model in its sizes and seeds, on the same rows in the same order."""

import logging
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from features.errors import ConfigError
from models.network import NetworkConfig
from pipeline.comparison.candidates import SINGLE, Setting, given, settings_of, with_network, with_tasks
from pipeline.comparison.trainings import Trainings
from pipeline.config import Config
from pipeline.lineage.checks import quality
from pipeline.session import ray_session

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class ComparisonPlan:
    """What is compared.

    Args:
        name: Of its folder.
        models: Kinds of networks, and `single`.
        train_days: ISO dates in order, for the figures that are reported.
        test_days: ISO dates, measured together, once.
        choose_days: ISO dates, the last of the training days: sizes are chosen on them, trained on the days before.
        seeds: How many, from the config's seed on.
        trials: Sizes of each model to choose from; 1: nothing is chosen.
        keep_checkpoints: Otherwise a line's are removed once it has been measured.
        networks: By model, the network that it is compared as, whatever its size; others are made of one size.
    """

    name: str
    models: tuple[str, ...]
    train_days: tuple[str, ...]
    test_days: tuple[str, ...]
    choose_days: tuple[str, ...] = ()
    seeds: int = 1
    trials: int = 1
    keep_checkpoints: bool = False
    networks: Mapping[str, NetworkConfig] = field(default_factory=dict)

    def check(self) -> None:
        """Refuse what cannot be carried out.

        Raises:
            ConfigError: Says what, and what to do.
        """
        if self.seeds < 1 or self.trials < 1:
            raise ConfigError(f"{self.seeds} seeds and {self.trials} trials: ask for 1 of each, at least")
        if set(self.test_days) & set(self.train_days):
            raise ConfigError(f"the test days {list(self.test_days)} are among those that are trained: choose others")
        early = self.train_days[: len(self.train_days) - len(self.choose_days)]
        if self.trials > 1 and (not self.choose_days or not early):
            raise ConfigError("with several trials, sizes are chosen on the last training days: say how many of them")
        if self.choose_days and self.train_days[len(early) :] != self.choose_days:
            raise ConfigError(f"sizes are chosen on the last training days, and {list(self.choose_days)} are others")


@dataclass(frozen=True, slots=True)
class Outcome:
    """One model, trained with one seed.

    Args:
        model: As it was asked for.
        seed: Of all its randomness.
        setting: The network, as a config file has it.
        parameters: Of network and towers; of a single-task model, of one of them.
        tasks: What `evaluate` says of each task.
        rows_per_s: Rows trained per second of training, start-up left out; single-task models one after the other.
        expert_use: By module of gates, mean and deviation of each expert's weight, per gate.
    """

    model: str
    seed: int
    setting: dict[str, Any]
    parameters: int
    tasks: list[dict[str, Any]]
    rows_per_s: float
    expert_use: dict[str, dict[str, list[list[float]]]]


class Comparison:
    """Runs a plan.

    Args:
        config: Whose logs, schema, towers and optimizers all models share.
        plan: What is compared.
        folder: Below the root; absent: one of the plan's name among the comparisons.
    """

    def __init__(self, config: Config, plan: ComparisonPlan, folder: str | None = None) -> None:
        plan.check()
        self._config, self._plan = config, plan
        folder = folder or f"comparisons/{plan.name}"
        self._trainings = Trainings(config, folder, keep_checkpoints=plan.keep_checkpoints)
        self.storage = self._trainings.storage
        self._settings = {
            model: [given(model, config, plan.networks[model])]
            if model in plan.networks
            else settings_of(model, config, plan.trials)
            for model in plan.models
        }

    def run(self) -> list[Outcome]:
        """Run what is missing.

        Returns:
            All outcomes, seed by seed.

        Raises:
            DataError: The logs do not fit the configuration.
        """
        plan = self._plan
        with ray_session(self._config):
            chosen = {model: self._chosen(model) for model in plan.models}
            first = self._config.seed
            return [
                self._outcome(model, chosen[model], seed, plan.train_days, plan.test_days)
                for seed in range(first, first + plan.seeds)
                for model in plan.models
            ]

    def _chosen(self, model: str) -> Setting:
        """The setting that does best on the days to choose on: by the mean quality of the main tasks."""
        settings = self._settings[model]
        if len(settings) == 1:
            return settings[0]
        plan = self._plan
        days = plan.train_days[: -len(plan.choose_days)]
        found = [self._outcome(model, setting, self._config.seed, days, plan.choose_days) for setting in settings]
        best = max(range(len(settings)), key=lambda index: _mean_quality(found[index].tasks))
        logger.info("%s: setting %d of %d, %s", model, best + 1, len(settings), found[best].setting)
        return settings[best]

    def _outcome(
        self, model: str, setting: Setting, seed: int, days: Sequence[str], test_days: Sequence[str]
    ) -> Outcome:
        config = with_network(self._config, setting.network).model_copy(update={"seed": seed})
        names = config.log_schema.task_names if model == SINGLE else [""]
        parts = [
            self._trainings.measured(
                f"{model}-{name}".rstrip("-"), with_tasks(config, [name]) if name else config, days, test_days
            )
            for name in names
        ]
        network: NetworkConfig = setting.network
        return Outcome(
            model=model,
            seed=seed,
            setting=network.model_dump(mode="json"),
            parameters=setting.num_parameters,
            tasks=[task for part in parts for task in part["tasks"]],
            rows_per_s=parts[0]["rows"] / sum(part["seconds"] for part in parts),
            expert_use=parts[0]["expert_use"] if len(parts) == 1 else {},
        )


def _mean_quality(tasks: Sequence[dict[str, Any]]) -> float:
    known = [quality(task["model"] | {"kind": task["kind"]}) for task in tasks if task["role"] == "main"]
    return statistics.mean(value for value in known if value is not None)
