"""Results of a comparison: metrics with their spread, MTL gain (Eq. 11 of PLE), and the use of experts."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import TypeAdapter

from models.experts import Gates
from models.network import NetworkConfig, build_network
from pipeline.evaluation.table import metric_of
from pipeline.studies.candidates import SINGLE
from pipeline.studies.comparison import Outcome

LESS_IS_BETTER = ("mse",)
_COLLAPSED, _COLLAPSED_SHARE = 0.01, 0.1


@dataclass(frozen=True, slots=True)
class Spread:
    """Mean and standard deviation over seeds; the deviation is None for one seed.

    Args:
        mean: None if the metric is undefined for all seeds.
        deviation: Standard deviation of the sample.
        values: Values by seed, in order; None for an undefined one.
    """

    mean: float | None
    deviation: float | None
    values: tuple[float | None, ...]

    @classmethod
    def of(cls, values: Sequence[float | None]) -> "Spread":
        """Return the spread of values."""
        known = [value for value in values if value is not None]
        mean = statistics.mean(known) if known else None
        return cls(mean, statistics.stdev(known) if len(known) > 1 else None, tuple(values))

    def __str__(self) -> str:
        """Four digits, and the spread if known."""
        if self.mean is None:
            return "undefined"
        return f"{self.mean:.4f}" + ("" if self.deviation is None else f" ± {self.deviation:.4f}")


@dataclass(frozen=True, slots=True)
class ModelRow:
    """One model over all seeds.

    Args:
        model: Name of the model.
        parameters: Number of parameters of network and towers.
        setting: The network, as a config file has it.
        rows_per_s: Median over seeds.
        metrics: Main metric by task.
        gains: MTL gain by task: M - M_single, or M_single - M if less is better, with the same seed. None without a
            single-task model, and for that model.
    """

    model: str
    parameters: int
    setting: dict[str, Any]
    rows_per_s: float
    metrics: dict[str, Spread]
    gains: dict[str, Spread] | None


def model_rows(outcomes: Sequence[Outcome]) -> list[ModelRow]:
    """Summarise outcomes by model, in the requested order of models."""
    by_model: dict[str, list[Outcome]] = {}
    for outcome in outcomes:
        by_model.setdefault(outcome.model, []).append(outcome)
    single = by_model.get(SINGLE)
    return [_model_row(found, None if name == SINGLE else single) for name, found in by_model.items()]


def _model_row(outcomes: Sequence[Outcome], single: Sequence[Outcome] | None) -> ModelRow:
    names = [task["task"] for task in outcomes[0].tasks]
    values = {name: [metric(outcome, name) for outcome in outcomes] for name in names}
    gains = None
    if single is not None:
        alone = {outcome.seed: outcome for outcome in single}
        gains = {
            name: Spread.of([_gain_of(outcome, alone[outcome.seed], name) for outcome in outcomes]) for name in names
        }
    first = outcomes[0]
    return ModelRow(
        model=first.model,
        parameters=first.parameters,
        setting=first.setting,
        rows_per_s=statistics.median(outcome.rows_per_s for outcome in outcomes),
        metrics={name: Spread.of(found) for name, found in values.items()},
        gains=gains,
    )


def metric(outcome: Outcome, name: str) -> float | None:
    """Return a task's main metric in the papers: AUC, MSE or accuracy, in its own sample space."""
    (task,) = [task for task in outcome.tasks if task["task"] == name]
    return task["model"].get(metric_of(task["kind"]))


def _gain_of(outcome: Outcome, single: Outcome, name: str) -> float | None:
    (task,) = [task for task in outcome.tasks if task["task"] == name]
    return gain(metric(outcome, name), metric(single, name), metric_of(task["kind"]))


def gain(value: float | None, alone: float | None, name: str) -> float | None:
    """Return the gain of a model over a single-task model; None if a metric is undefined.

    Args:
        value: Metric of the model.
        alone: Metric of the single-task model.
        name: Name of the metric.
    """
    if value is None or alone is None:
        return None
    return alone - value if name in LESS_IS_BETTER else value - alone


def is_collapsed(mean: float, num_experts: int) -> bool:
    """Return True if a gate may use an expert and does not.

    Args:
        mean: Mean weight of the expert.
        num_experts: Number of experts that the gate may choose. Each of very many has a small share of its own, so the
            limit of 1 % is at most a tenth of an equal share.
    """
    return num_experts > 1 and mean < min(_COLLAPSED, _COLLAPSED_SHARE / num_experts)


@dataclass(frozen=True, slots=True)
class UsedExperts:
    """Use of the experts that a gate may choose.

    Args:
        gate: Name of the gate, such as `gate of task ctr, level 1`.
        experts: Names of its experts, such as `shared expert 0`, of the gate's level.
        means: Mean weight of each.
        deviations: Standard deviation of each weight over the rows.
    """

    gate: str
    experts: tuple[str, ...]
    means: tuple[float, ...]
    deviations: tuple[float, ...]


def gate_use(outcome: Outcome) -> list[UsedExperts]:
    """Return the use of experts by every gate, with the names that the network gives to its parameters."""
    found = []
    for module, use in outcome.expert_use.items():
        for row, (gate, experts, chosen) in enumerate(named_gates(outcome.setting, outcome.towers, module)):
            means, deviations = use["mean"][row], use["deviation"][row]
            of_experts = (tuple(means[column] for column in chosen), tuple(deviations[column] for column in chosen))
            found.append(UsedExperts(gate, experts, *of_experts))
    return found


def named_gates(
    setting: dict[str, Any], towers: Sequence[str], module: str
) -> list[tuple[str, tuple[str, ...], list[int]]]:
    """Return name, names of experts and their columns for each gate of a module of gates.

    Args:
        setting: The network, as a config file has it.
        towers: Names of the towers, in the order of their gates.
        module: Name of the module within the network, or a longer name that ends in it.
    """
    config: NetworkConfig = TypeAdapter(NetworkConfig).validate_python(setting)
    network = build_network(config, 1, towers)
    parts = network.parts((("input", "0"),), towers).parts
    gates = next(part for name, part in network.named_modules() if isinstance(part, Gates) and module.endswith(name))
    named = [part for part in parts if part.parameter is gates.logits.weight]
    return [
        (part.owner, tuple(expert.rpartition(", level ")[0] for expert, _ in part.axes[0]), chosen)
        for part, chosen in zip(named, gates.chosen_experts(), strict=True)
    ]
