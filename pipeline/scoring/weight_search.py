"""Search for the exponents of Eq. 1 on predictions of past days; nothing is trained.

Optuna's TPE sampler proposes exponents, towards the Pareto front of the objectives under the constraints (Bergstra et
al., "Algorithms for Hyper-Parameter Optimization", NIPS 2011; Ozaki et al., "Multiobjective Tree-Structured Parzen
Estimator", JAIR 2022). The first trials are the present exponents, and each task alone.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from features.errors import ConfigError
from models.ranking_score import ProductConfig
from pipeline.config.project import Config
from pipeline.scoring.objectives import Constraint, Objective, PastDays, check_objective, read_past_days
from pipeline.scoring.prediction_files import Predictions, check_columns, read_predictions
from pipeline.storage.files import Storage

if TYPE_CHECKING:  # optuna takes a second to import
    import optuna

_DIGITS = 4  # exponents are measured as they are written


@dataclass(frozen=True, slots=True)
class Trial:
    """Exponents and the values that they reach.

    Args:
        exponents: Exponent of each task.
        values: Value of each objective, in their order.
        feasible: True if every constraint holds.
    """

    exponents: dict[str, float]
    values: tuple[float, ...]
    feasible: bool = True

    def gain(self, other: "Trial") -> float:
        """Return the mean difference of the objectives to another trial's."""
        return sum(self._differences(other)) / len(self.values)

    def falls_short_of(self, other: "Trial") -> bool:
        """Return True if an objective is below another trial's."""
        return any(difference < 0 for difference in self._differences(other))

    def dominates(self, other: "Trial") -> bool:
        """Return True if no objective is below another trial's and one is above."""
        return not self.falls_short_of(other) and self.values != other.values

    def _differences(self, other: "Trial") -> list[float]:
        return [one - two for one, two in zip(self.values, other.values, strict=True)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Search:
    """Finished search.

    Args:
        ranking: The present ranking.
        objectives: The objectives, in order.
        start: The present exponents.
        trials: All trials, in order.
        front: The trials that hold the constraints and that no such trial dominates, in order.
        chosen: The chosen point, which is `start` if no trial is better.
        before: All measured metrics under the present exponents.
        after: The same under the chosen ones.
        num_rows: Number of rows in memory.
        share: Share of requests or users among them.
    """

    ranking: ProductConfig
    objectives: tuple[Objective, ...]
    start: Trial
    trials: tuple[Trial, ...]
    front: tuple[Trial, ...]
    chosen: Trial
    before: dict[Objective, float]
    after: dict[Objective, float]
    num_rows: int
    share: float

    @property
    def chosen_ranking(self) -> ProductConfig:
        """The ranking with the chosen exponents."""
        return with_exponents(self.ranking, self.chosen.exponents)


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchPlan:
    """Objectives, constraints and limits of a search.

    Args:
        objectives: Metrics that are to rise; empty: GAUC of every binary task with an exponent.
        constraints: Bounds of metrics that must not fall.
        trials: Number of trials.
        seed: Seed of the sampler.
        most: Largest exponent; None: twice the largest present one.
        most_rows: Number of rows that are held in memory, about.
    """

    objectives: tuple[Objective, ...] = ()
    constraints: tuple[Constraint, ...] = ()
    trials: int = 200
    seed: int = 0
    most: float | None = None
    most_rows: int = 1_000_000


def with_exponents(ranking: ProductConfig, exponents: Mapping[str, float]) -> ProductConfig:
    """Return a ranking with other exponents."""
    return ranking.model_copy(update={"exponents": dict(exponents)})


def search_weights(config: Config, predictions: str, days: Sequence[str], plan: SearchPlan) -> Search:
    """Search exponents on the predictions of past days.

    The chosen point is the feasible trial with the largest mean gain of the objectives, among those in which no
    objective falls below its present value; the first of equal ones. Without one, the present exponents stay.

    Raises:
        ConfigError: The ranking is no product, or an objective, a constraint or a number has no meaning.
        DataError: The predictions do not fit.
    """
    ranking = _product(config)
    storage = Storage(predictions)
    found = read_predictions(storage)
    check_columns(found, ranking, list(ranking.exponents), storage.url)
    plan = _checked(plan, ranking, found)
    tasks = [task for task in ranking.exponents if found.tasks[task] == "binary"]
    bounded = [constraint.objective for constraint in plan.constraints]
    shown = list(dict.fromkeys([*plan.objectives, *bounded, *(Objective(task) for task in tasks)]))
    measured = list(dict.fromkeys([*plan.objectives, *bounded]))
    read = with_exponents(ranking, dict.fromkeys(ranking.exponents, 1.0))  # an exponent of 0 may become another
    past = read_past_days(storage, found, read, days, list({one.task: None for one in shown}), plan.most_rows)
    shown = [one for one in shown if one in measured or past.tasks[one.task].has_both]
    before = past.measure(ranking, shown)
    start = Trial(ranking.exponents, tuple(before[one] for one in plan.objectives))
    trials = _trials(past, ranking, plan, before)
    feasible = [trial for trial in trials if trial.feasible]
    front = [trial for trial in feasible if not any(other.dominates(trial) for other in feasible)]
    better = [trial for trial in feasible if trial.dominates(start)]
    chosen = max(better, key=lambda trial: trial.gain(start), default=start)
    return Search(
        ranking=ranking,
        objectives=plan.objectives,
        start=start,
        trials=tuple(trials),
        front=tuple(front),
        chosen=chosen,
        before=before,
        after=past.measure(with_exponents(ranking, chosen.exponents), shown),
        num_rows=past.num_rows,
        share=past.share,
    )


def _product(config: Config) -> ProductConfig:
    if not isinstance(config.ranking, ProductConfig):
        found = "no section ranking" if config.ranking is None else f"ranking.kind {config.ranking.kind}"
        raise ConfigError(f"the config has {found}: exponents are searched for kind product, see docs/ranking.md")
    return config.ranking


def _checked(plan: SearchPlan, ranking: ProductConfig, predictions: Predictions) -> SearchPlan:
    """Return the plan with its objectives and its largest exponent."""
    binary = [Objective(task) for task in ranking.exponents if predictions.tasks[task] == "binary"]
    objectives = plan.objectives or tuple(binary)
    for objective in [*objectives, *(constraint.objective for constraint in plan.constraints)]:
        check_objective(objective, predictions)
    if not objectives or len(set(objectives)) < len(objectives):
        raise ConfigError(f"objectives {[str(one) for one in objectives]}: expected one or more, each once")
    largest = max(ranking.exponents.values())
    most = 2 * largest if plan.most is None else plan.most
    if plan.trials < 1 or plan.most_rows < 1 or plan.seed < 0 or not largest <= most < float("inf"):
        raise ConfigError(
            f"{plan.trials} trials, seed {plan.seed}, {plan.most_rows} rows, exponents of at most {most:g}: expected "
            f"at least 1, 0, 1, and the largest present exponent, {largest:g}"
        )
    return replace(plan, objectives=objectives, most=most)


def _trials(past: PastDays, ranking: ProductConfig, plan: SearchPlan, before: Mapping[Objective, float]) -> list[Trial]:
    """Return the trials that have a score: exponents of 0 throughout have none."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    most, tasks = plan.most or 0.0, list(ranking.exponents)
    sampler = optuna.samplers.TPESampler(seed=plan.seed)
    study = optuna.create_study(
        directions=[optuna.study.StudyDirection.MAXIMIZE for _ in plan.objectives], sampler=sampler
    )
    study.enqueue_trial(dict(ranking.exponents))
    for alone in tasks if len(tasks) > 1 else []:
        study.enqueue_trial({task: most / 2 if task == alone else 0.0 for task in tasks})
    bounded = [constraint.objective for constraint in plan.constraints]
    needed = list(dict.fromkeys([*plan.objectives, *bounded]))
    trials = []
    for _ in range(plan.trials):
        asked = study.ask()
        exponents = {task: round(asked.suggest_float(task, 0.0, most), _DIGITS) for task in tasks}
        if not any(exponents.values()):
            study.tell(asked, state=optuna.trial.TrialState.PRUNED)
            continue
        found = past.measure(with_exponents(ranking, exponents), needed)
        feasible = _constrain(asked, plan.constraints, found, before)
        trial = Trial(exponents, tuple(found[one] for one in plan.objectives), feasible)
        study.tell(asked, list(trial.values))
        trials.append(trial)
    return trials


def _constrain(
    asked: "optuna.trial.Trial",
    constraints: Sequence[Constraint],
    found: Mapping[Objective, float],
    before: Mapping[Objective, float],
) -> bool:
    """Tell the sampler how far each constraint is violated; return True if none is."""
    violations = {one: before[one.objective] - one.allowed - found[one.objective] for one in constraints}
    for number, violation in enumerate(violations.values()):
        asked.set_constraint(str(number), violation)
    return all(violation <= 0 for violation in violations.values())
