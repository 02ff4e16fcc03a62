"""Comparison: every model in its sizes and seeds, on the same rows in the same order."""

import logging
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from features.errors import ConfigError
from models.network import NetworkConfig
from pipeline.cluster.session import ray_session
from pipeline.config.project import Config
from pipeline.daily.gate import quality
from pipeline.studies.candidates import SINGLE, Setting, given, settings_of, tower_names, with_network, with_tasks
from pipeline.studies.trainings import Trainings, Variant

logger = logging.getLogger(__name__)

_Entrant = tuple[str, Setting]


@dataclass(frozen=True, slots=True, kw_only=True)
class ComparisonPlan:
    """Plan of a comparison.

    Args:
        name: Name of its folder.
        models: Kinds of networks, and `single`.
        train_days: ISO dates in order, for the figures that are reported.
        test_days: ISO dates, measured together, once.
        choose_days: ISO dates, the last of the training days: sizes are chosen on them, after training on the days
            before.
        passes: Number of passes over the training days.
        seeds: Number of seeds, from the config's seed on.
        trials: Number of sizes of each model to choose from; 1: no choice.
        keep_checkpoints: True to keep a line after it has been measured.
        networks: Network of a model by name, in any size; others are built to one size.
        least_gain: Smallest gain over a single-task model that a verdict counts.
        min_positives: Number of positive and of negative rows below which a slice is not judged.
    """

    name: str
    models: tuple[str, ...]
    train_days: tuple[str, ...]
    test_days: tuple[str, ...]
    choose_days: tuple[str, ...] = ()
    passes: int = 1
    seeds: int = 1
    trials: int = 1
    keep_checkpoints: bool = False
    networks: Mapping[str, NetworkConfig] = field(default_factory=dict)
    least_gain: float = 0.0005
    min_positives: int = 50

    def check(self) -> None:
        """Check that the plan can be carried out.

        Raises:
            ConfigError: The plan cannot be carried out; says why and what to do.
        """
        if min(self.seeds, self.trials, self.passes) < 1:
            asked = f"{self.seeds} seeds, {self.trials} trials and {self.passes} passes"
            raise ConfigError(f"{asked}: ask for 1 of each, at least")
        if set(self.test_days) & set(self.train_days):
            raise ConfigError(f"the test days {list(self.test_days)} are among those that are trained: choose others")
        early = self.train_days[: len(self.train_days) - len(self.choose_days)]
        if self.trials > 1 and (not self.choose_days or not early):
            raise ConfigError("with several trials, sizes are chosen on the last training days: say how many of them")
        if self.choose_days and self.train_days[len(early) :] != self.choose_days:
            raise ConfigError(f"sizes are chosen on the last training days, and {list(self.choose_days)} are not")


@dataclass(frozen=True, slots=True)
class Outcome:
    """One model, trained with one seed.

    Args:
        model: Name of the model as requested.
        seed: Seed of all its randomness.
        setting: The network, as a config file has it.
        parameters: Number of parameters of network and towers; for single-task models, of one of them.
        tasks: Result of `evaluate` for each task.
        rows_per_s: Rows trained per second of training, start-up left out; single-task models are trained in turn.
        expert_use: Mean and deviation of each expert's weight, per gate, by module of gates.
        towers: Names of the towers, in the order of their gates.
    """

    model: str
    seed: int
    setting: dict[str, Any]
    parameters: int
    tasks: list[dict[str, Any]]
    rows_per_s: float
    expert_use: dict[str, dict[str, list[list[float]]]]
    towers: tuple[str, ...]


class Comparison:
    """Runner of a plan.

    Args:
        config: Configuration whose logs, schema, towers and optimizers all models share.
        plan: Plan of the comparison.
        folder: Folder below the root; absent: one of the plan's name among the comparisons.
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

    @property
    def seeds(self) -> range:
        """Seeds of the plan."""
        return range(self._config.seed, self._config.seed + self._plan.seeds)

    def variants(self, seed: int) -> list[Variant]:
        """Return all variants to train with a seed, if every model has one setting."""
        days = self._plan.train_days
        entrants = [(model, setting) for model, (setting,) in self._settings.items()]
        return [part for model, setting in entrants for part in self._variants(model, setting, seed, days)]

    def run(self) -> list[Outcome]:
        """Run the missing trainings.

        Returns:
            All outcomes, seed by seed.

        Raises:
            DataError: The logs do not fit the configuration.
        """
        plan = self._plan
        with ray_session(self._config):
            chosen = self.chosen()
            return [
                outcome
                for seed in self.seeds
                for outcome in self.outcomes(chosen, seed, plan.train_days, plan.test_days)
            ]

    def chosen(self) -> list[_Entrant]:
        """Return each model in its best setting on the days to choose on, by the mean quality of the main tasks."""
        plan = self._plan
        tried = [(model, setting) for model, settings in self._settings.items() for setting in settings]
        if len(tried) == len(self._settings):
            return tried
        found = self.outcomes(tried, self._config.seed, plan.train_days[: -len(plan.choose_days)], plan.choose_days)
        quality = [_mean_quality(outcome.tasks) for outcome in found]
        best = []
        for model in self._settings:
            _, index = max((quality[index], -index) for index, (name, _) in enumerate(tried) if name == model)
            logger.info("%s: %s", model, found[-index].setting)
            best.append(tried[-index])
        return best

    def outcomes(
        self, entrants: Sequence[_Entrant], seed: int, days: Sequence[str], test_days: Sequence[str]
    ) -> list[Outcome]:
        """Train models with one seed, and measure them together."""
        variants = [self._variants(model, setting, seed, days) for model, setting in entrants]
        found = iter(self._trainings.measured([part for parts in variants for part in parts], test_days))
        outcomes = []
        for (model, setting), parts in zip(entrants, variants, strict=True):
            results = [next(found) for _ in parts]
            network: NetworkConfig = setting.network
            outcome = Outcome(
                model=model,
                seed=seed,
                setting=network.model_dump(mode="json"),
                parameters=setting.num_parameters,
                tasks=[task for result in results for task in result["tasks"]],
                rows_per_s=results[0]["rows"] / sum(result["seconds"] for result in results),
                expert_use=results[0]["expert_use"] if len(results) == 1 else {},
                towers=tuple(tower_names(self._config)),
            )
            outcomes.append(outcome)
        return outcomes

    def _variants(self, model: str, setting: Setting, seed: int, days: Sequence[str]) -> list[Variant]:
        """Return the variants of a model: one, or one per task."""
        config = with_network(self._config, setting.network).model_copy(update={"seed": seed})
        if model != SINGLE:
            return [Variant(model, config, tuple(days), self._plan.passes)]
        names = config.log_schema.task_names
        alone = {name: with_tasks(config, [name]) for name in names}
        return [Variant(f"{model}-{name}", own, tuple(days), self._plan.passes) for name, own in alone.items()]


def _mean_quality(tasks: Sequence[dict[str, Any]]) -> float:
    found = [quality(task["model"] | {"kind": task["kind"]}) for task in tasks if task["role"] == "main"]
    known = [value for value in found if value is not None]
    if not known:
        raise ConfigError(
            "no main task has a metric on the days to choose on, as none has labels of both kinds there: choose on "
            "more days; what is trained is kept"
        )
    return statistics.mean(known)
