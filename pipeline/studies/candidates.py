"""Settings that a comparison tries for each network, all with about as many parameters as the declared one."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from pydantic import TypeAdapter

from features.errors import ConfigError
from models.assembly import build_ranker, task_heads
from models.balancing import SCHEDULE
from models.network import NetworkConfig
from models.network_base import num_parameters
from pipeline.config.project import Config

SINGLE = "single"
CLOSE = 0.1  # parameters within this ratio of each other count as equal
_WIDEST = 4096

Shape = Callable[[int, Sequence[str]], dict[str, Any]]
_NETWORK: TypeAdapter[Any] = TypeAdapter(NetworkConfig)


@dataclass(frozen=True, slots=True)
class Setting:
    """A network in one size.

    Args:
        network: A member of the union.
        num_parameters: Number of parameters of the network and its towers.
    """

    network: Any
    num_parameters: int


def settings_of(model: str, config: Config, trials: int) -> list[Setting]:
    """Return the settings to try for a model.

    The declared network is the first of its own kind. All others get the width that gives as many parameters. As widths
    are whole numbers, the number is seldom exact, so it is returned too.

    Args:
        model: A kind of network, or `single`: a model of one task, with as many parameters as each of the others.
        config: Configuration whose network sets the number of parameters, and whose towers all models share.
        trials: Number of settings.

    Raises:
        ConfigError: The model does not exist, or has fewer settings.
    """
    declared = Setting(config.model.network, head_parameters(config))
    own = [declared] if config.model.network.kind == model else []
    shapes = _SHAPES.get("hard_sharing" if model == SINGLE else model, ())
    if not own and not shapes:
        raise ConfigError(
            f"there is no model {model!r} to compare, those are {sorted([SINGLE, *_SHAPES])}, and the config's own kind"
        )
    if trials > len(own) + len(shapes):
        raise ConfigError(f"{trials} trials of {model}: it has {len(own) + len(shapes)} settings, ask for no more")
    subject = with_tasks(config, config.log_schema.task_names[:1]) if model == SINGLE else config
    return (own + [_sized(shape, subject, declared.num_parameters) for shape in shapes])[:trials]


def given(model: str, config: Config, network: Any) -> Setting:
    """Return a model in its given size; `single` is a model of one task."""
    subject = with_tasks(config, config.log_schema.task_names[:1]) if model == SINGLE else config
    return Setting(network, head_parameters(with_network(subject, network)))


def sized(model: str, config: Config, num_parameters: int) -> Setting:
    """Return a network's first shape, sized to about so many parameters for the tasks of a configuration.

    Raises:
        ConfigError: The model does not exist.
    """
    shapes = _SHAPES.get(model)
    if shapes is None:
        raise ConfigError(f"there is no model {model!r} whose size is known, those are {sorted(_SHAPES)}")
    return _sized(shapes[0], config, num_parameters)


def with_network(config: Config, network: Any) -> Config:
    """Return a configuration with another network."""
    return config.model_copy(update={"model": config.model.model_copy(update={"network": network})})


def with_tasks(config: Config, tasks: Sequence[str]) -> Config:
    """Return a configuration with some of the tasks, each with its own tower, their losses weighted by the schedule.

    A single task has weight 1. So has a task of weight 0 among several: it was trained through a composed probability,
    which it no longer is.

    Args:
        config: Configuration with all tasks.
        tasks: Names of the tasks, in the order of the declaration.
    """
    schema, bias, weights = config.log_schema, config.model.slot_bias, config.loss_weights
    kept = [name for name in (bias.tasks if bias else ()) if name in tasks]
    biased = bias.model_copy(update={"tasks": kept}) if bias and kept else None
    user = config.model.user
    towered = user.model_copy(update={"learning_to_rank": None, "alone": []}) if user else None
    of_tasks = {
        name: weight for name, weight in weights.tasks.items() if name in tasks and len(tasks) > 1 and weight.is_trained
    }
    return config.model_copy(
        update={
            "model": config.model.model_copy(update={"entire_space": None, "slot_bias": biased, "user": towered}),
            "log_schema": schema.model_copy(update={"tasks": [task for task in schema.tasks if task.name in tasks]}),
            "loss_weights": weights.model_copy(update={"tasks": of_tasks}),
            "loss_balancing": SCHEDULE,
            "kl_bounds": [],
        }
    )


def head_parameters(config: Config) -> int:
    """Return the number of parameters of the network and the towers; nothing is allocated."""
    model = config.model
    with torch.device("meta"):
        ranker = build_ranker(config.log_schema, model.network, model.towers, 0.0, None, around=model)
    return num_parameters(ranker.ranker.head)


def tower_names(config: Config) -> list[str]:
    """Return the names of a network's gates: the tasks with a tower, and further towers of composed probabilities."""
    return [tower.name for tower in config.model.tower_heads(task_heads(config.log_schema.tasks))]


def _sized(shape: Shape, config: Config, target: int) -> Setting:
    """Return the width of a shape that comes nearest to a number of parameters."""
    names = tower_names(config)

    def at(width: int) -> Setting:
        network = _NETWORK.validate_python(shape(width, names))
        return Setting(network, head_parameters(with_network(config, network)))

    low, high = 1, _WIDEST
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if at(middle).num_parameters <= target else (low, middle)
    return min((at(low), at(high)), key=lambda setting: abs(setting.num_parameters - target))


def _layers(kind: str, *ratios: int, **others: Any) -> Shape:
    return lambda width, tasks: {"kind": kind, "layers": [ratio * width for ratio in ratios]} | others


def _asymmetric(*ratios: int, fuse: str) -> Shape:
    """Return the shape in which the first task reads its own bottom, all others both: figure 1b of the PLE paper."""

    def shape(width: int, tasks: Sequence[str]) -> dict[str, Any]:
        reads = {task: [tasks[0], task] for task in tasks[1:]}
        layers = [ratio * width for ratio in ratios]
        return {"kind": "asymmetric_sharing", "layers": layers, "reads": reads, "fuse": fuse}

    return shape


def _sluice(num_layers: int, num_subspaces: int) -> Shape:
    return lambda width, tasks: {
        "kind": "sluice",
        "width": num_subspaces * width,
        "num_layers": num_layers,
        "num_subspaces": num_subspaces,
    }


def _experts(kind: str, num_experts: int, *ratios: int) -> Shape:
    return lambda width, tasks: {
        "kind": kind,
        "num_experts": num_experts,
        "expert_layers": [ratio * width for ratio in ratios],
    }


def _mran(num_heads: int) -> Shape:
    return lambda width, tasks: {"kind": "mran", "width": num_heads * width, "num_heads": num_heads}


def _ml_mmoe(num_experts: int) -> Shape:
    return lambda width, tasks: {
        "kind": "ml_mmoe",
        "levels": [{"num_experts": num_experts, "expert_layers": [ratio * width]} for ratio in (2, 1)],
    }


def _cgc(per_task: int, shared: int, *ratios: int) -> Shape:
    return lambda width, tasks: {"kind": "cgc"} | _level(per_task, shared, [ratio * width for ratio in ratios])


def _ple(per_task: int, shared: int, *ratios: int) -> Shape:
    return lambda width, tasks: {
        "kind": "ple",
        "levels": [_level(per_task, shared, [ratio * width]) for ratio in ratios],
    }


def _level(per_task: int, shared: int, layers: list[int]) -> dict[str, Any]:
    return {"expert_layers": layers, "num_experts_per_task": per_task, "num_shared_experts": shared}


# Each network at the depth of the paper's [256, 128] below the tower first; then other numbers of experts, or depths.
_SHAPES: dict[str, tuple[Shape, ...]] = {
    "hard_sharing": tuple(_layers("hard_sharing", *ratios) for ratios in ((2, 1), (1, 1), (2, 2, 1), (1,))),
    "asymmetric_sharing": (
        _asymmetric(2, 1, fuse="concat"),
        _asymmetric(2, 1, fuse="sum"),
        _asymmetric(1, 1, fuse="concat"),
        _asymmetric(2, 2, 1, fuse="concat"),
    ),
    "customized_sharing": tuple(_layers("customized_sharing", *ratios) for ratios in ((2, 1), (1, 1), (2, 2, 1), (1,))),
    "cross_stitch": tuple(_layers("cross_stitch", *ratios) for ratios in ((2, 1), (1, 1), (2, 2, 1), (1,))),
    "sluice": (_sluice(2, 2), _sluice(2, 1), _sluice(3, 2), _sluice(3, 1)),
    "omoe": tuple(_experts("omoe", count, 2, 1) for count in (6, 3, 12, 4)),
    "mmoe": tuple(_experts("mmoe", count, 2, 1) for count in (6, 3, 12, 4)),
    "mran": tuple(_mran(heads) for heads in (1, 2, 4, 3)),
    "ml_mmoe": tuple(_ml_mmoe(count) for count in (6, 3, 12, 4)),
    "cgc": (_cgc(1, 1, 2, 1), _cgc(1, 2, 2, 1), _cgc(2, 2, 2, 1), _cgc(1, 4, 2, 1)),
    "ple": (_ple(1, 1, 2, 1), _ple(1, 2, 2, 1), _ple(2, 2, 2, 1), _ple(1, 4, 2, 1)),
}
