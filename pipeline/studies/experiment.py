"""Experiment: several comparisons on one base, declared in a file, so that a page's figures can be reproduced."""

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated

from pydantic import BeforeValidator, Field, ValidationError, model_validator

from features.declaration import Declaration
from features.errors import ConfigError
from models.network import NetworkConfig
from pipeline.cluster.session import ray_session
from pipeline.config.load import load_config
from pipeline.config.project import Config
from pipeline.config.yaml_text import read_yaml_file
from pipeline.ingest.units import parse_days
from pipeline.lineage.manifest import declared
from pipeline.storage.files import Storage
from pipeline.studies.candidates import with_tasks
from pipeline.studies.comparison import Comparison, ComparisonPlan, Outcome
from pipeline.studies.gains import ModelRow, Spread, model_rows
from pipeline.studies.trainings import Trainings
from pipeline.trainer.model_check import check_model
from pipeline.trainer.train_days import OF_ROWS

logger = logging.getLogger(__name__)

Days = Annotated[str, BeforeValidator(str)]  # YAML makes a date of a single day


class CaseConfig(Declaration):
    """One comparison of an experiment.

    Args:
        name: Name of the case, and of its folder.
        set: Settings that replace those of the base: dotted.key=value.
        tasks: Names of the only tasks of the base to keep; absent: all. Losses are then weighted by the schedule alone,
            and every task has a tower of its own.
        models: Models instead of the experiment's.
        seeds: Number of seeds instead of the experiment's.
    """

    name: str = Field(pattern=r"^[A-Za-z0-9_.+-]+$")
    set: list[str] = []
    tasks: list[str] | None = None
    models: list[str] | None = None
    seeds: int | None = Field(default=None, ge=1)


class ExperimentConfig(Declaration):
    """An experiment.

    Args:
        name: Name of its folder below ROOT/experiments.
        config: File of the base, relative to the project's root.
        set: Settings that replace those of the file in all cases, in the form of `--set`.
        models: Kinds of networks, and `single`.
        networks: Network of a model by name, in any size; others are sized like the base's network.
        train_days: A day, or a first and a last one.
        test_days: Days that are measured together.
        passes: Number of passes over the training days.
        choose_days: The last of the training days, on which sizes are chosen if there are several trials.
        seeds: Number of seeds, from the base's on.
        trials: Number of sizes of each model to choose from.
        cases: The comparisons.
    """

    name: str = Field(pattern=r"^[A-Za-z0-9_.-]+$")
    config: str
    set: list[str] = []
    models: list[str] = Field(min_length=1)
    networks: dict[str, NetworkConfig] = {}
    train_days: Days
    test_days: Days
    choose_days: Days | None = None
    passes: int = Field(default=1, ge=1)
    seeds: int = Field(default=1, ge=1)
    trials: int = Field(default=1, ge=1)
    cases: list[CaseConfig] = Field(min_length=1)

    @model_validator(mode="after")
    def _check_names(self) -> "ExperimentConfig":
        names = [case.name for case in self.cases]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise ValueError(f"two cases are called {twice!r}: the second would overwrite the first's page")
        return self


@dataclass(frozen=True, slots=True)
class Case:
    """One comparison, ready to be run.

    Args:
        name: Name of the case.
        config: The base with the case's settings and tasks.
        differs: Settings and tasks by which the case differs from the base, in the form of `--set`.
        plan: Plan of the comparison.
        read: The same with all of the base's tasks: the configuration that reads rows for this case and others.
    """

    name: str
    config: Config
    differs: tuple[str, ...]
    plan: ComparisonPlan
    read: Config

    @property
    def rows(self) -> str:
        """Key of the rows: cases with the same key are trained and measured together."""
        sections = declared(self.read)
        return json.dumps([sections[name] for name in (*OF_ROWS, "schema", "evaluation")], sort_keys=True)


@dataclass(frozen=True, slots=True)
class CaseResult:
    """Result of a case.

    Args:
        case: The case.
        storage: The experiment's folder.
        outcomes: Outcomes by model and seed.
        rows: The models.
    """

    case: Case
    storage: Storage
    outcomes: list[Outcome]
    rows: list[ModelRow]


def load_experiment(path: str) -> ExperimentConfig:
    """Read an experiment.

    Raises:
        ConfigError: The file is missing, or not an experiment.
    """
    data = read_yaml_file(path, "experiment")
    try:
        return ExperimentConfig.model_validate(data)
    except ValidationError as error:
        wrong = [": ".join(filter(None, (".".join(map(str, one["loc"])), _said(one["msg"])))) for one in error.errors()]
        raise ConfigError(f"experiment {path}: {'; '.join(wrong)}") from error


def _said(message: str) -> str:
    return message.removeprefix("Value error, ")


def cases_of(experiment: ExperimentConfig, overrides: Sequence[str] = (), names: Sequence[str] = ()) -> list[Case]:
    """Prepare an experiment's cases.

    Args:
        experiment: The declared experiment.
        overrides: Settings for all of its cases, stronger than theirs.
        names: Names of the only cases to run; none: all.

    Raises:
        ConfigError: A configuration is wrong, or a case does not exist.
    """
    known = [case.name for case in experiment.cases]
    unknown = [name for name in names if name not in known]
    if unknown:
        raise ConfigError(f"experiment {experiment.name} has no case {unknown[0]!r}, it has {known}")
    plan = ComparisonPlan(
        name=experiment.name,
        models=tuple(experiment.models),
        train_days=tuple(parse_days(experiment.train_days)),
        test_days=tuple(parse_days(experiment.test_days)),
        choose_days=tuple(parse_days(experiment.choose_days)) if experiment.choose_days else (),
        passes=experiment.passes,
        seeds=experiment.seeds,
        trials=experiment.trials,
        networks=experiment.networks,
    )
    wanted = [case for case in experiment.cases if not names or case.name in names]
    return [_case(experiment, case, plan, overrides) for case in wanted]


def _case(experiment: ExperimentConfig, case: CaseConfig, plan: ComparisonPlan, overrides: Sequence[str]) -> Case:
    config = read = check_model(load_config(experiment.config, [*experiment.set, *case.set, *overrides]))
    if case.tasks is not None:
        unknown = sorted(set(case.tasks) - set(config.log_schema.task_names))
        if unknown:
            raise ConfigError(
                f"case {case.name}: there is no task {unknown[0]!r}, declared are {config.log_schema.task_names}"
            )
        config = with_tasks(config, case.tasks)
    models = tuple(case.models) if case.models else plan.models
    networks = {model: network for model, network in plan.networks.items() if model in models}
    differs = (*case.set, *([f"tasks: {', '.join(case.tasks)}"] if case.tasks is not None else []))
    plan = replace(
        plan,
        models=models,
        networks=networks,
        seeds=case.seeds or plan.seeds,
        least_gain=config.evaluation.least_gain,
        min_positives=config.evaluation.min_positives,
    )
    return Case(case.name, config, differs, plan, read)


def run_cases(cases: Sequence[Case]) -> list[CaseResult]:
    """Run the missing trainings of cases, which share those that are the same.

    Raises:
        ConfigError: A case cannot be carried out; nothing has been trained.
        DataError: The logs do not fit the configuration.
    """
    comparisons = [Comparison(case.config, case.plan, folder=_folder(case)) for case in cases]
    results = []
    with ray_session(cases[0].config):
        _run_together(list(zip(cases, comparisons, strict=True)))
        for case, comparison in zip(cases, comparisons, strict=True):
            logger.info("case %s: %s", case.name, ", ".join(case.plan.models))
            outcomes = comparison.run()
            results.append(CaseResult(case, comparison.storage, outcomes, model_rows(outcomes)))
    return results


def _run_together(cases: Sequence[tuple[Case, Comparison]]) -> None:
    """Train and measure the needs of cases with the same rows, seed by seed; each case then finds its own results."""
    groups: dict[tuple[str, int], list[tuple[Case, Comparison]]] = {}
    for case, comparison in cases:
        for seed in comparison.seeds if case.plan.trials == 1 else ():
            groups.setdefault((case.rows, seed), []).append((case, comparison))
    for (_, seed), members in groups.items():
        first = members[0][0]
        logger.info("seed %d: cases %s", seed, ", ".join(case.name for case, _ in members))
        variants = [variant for _, comparison in members for variant in comparison.variants(seed)]
        Trainings(first.read, _folder(first), keep_checkpoints=False).measured(variants, first.plan.test_days)


def _folder(case: Case) -> str:
    return f"experiments/{case.plan.name}"


def mean_gains(results: Sequence[CaseResult]) -> dict[str, dict[str, Spread]]:
    """Return gains by model and task: for each seed the mean over cases, then mean and deviation over seeds.

    Args:
        results: Results of cases with the same tasks, seeds and models with gains; otherwise the result is empty.
    """
    alike = {
        (tuple(result.rows[0].metrics), result.case.plan.seeds, tuple(row.model for row in result.rows if row.gains))
        for result in results
    }
    if len(results) < 2 or len(alike) > 1:
        return {}
    gains: dict[str, dict[str, list[tuple[float | None, ...]]]] = {}
    for row in (row for result in results for row in result.rows if row.gains):
        assert row.gains is not None
        for task, spread in row.gains.items():
            gains.setdefault(row.model, {}).setdefault(task, []).append(spread.values)
    return {
        model: {task: Spread.of([_mean(seed) for seed in zip(*values, strict=True)]) for task, values in found.items()}
        for model, found in gains.items()
    }


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if len(known) == len(values) else None
