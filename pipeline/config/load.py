"""Loading and checking of a configuration from one YAML file."""

import difflib
import types
import typing
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from features.errors import ConfigError
from pipeline.config.project import Config
from pipeline.config.ranking import check_ranking
from pipeline.config.sharding import check_sharding
from pipeline.config.urls import resolve_url
from pipeline.config.yaml_text import read_yaml, read_yaml_file

_MESSAGES = {"bool_type": "expected true or false"}  # where pydantic's own does not say what to write


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Read and check a configuration.

    Args:
        path: A YAML file.
        overrides: `dotted.key=value` settings, the value in YAML, that replace those of the file.

    Raises:
        ConfigError: One line for each error, with its dotted path.
    """
    data = read_yaml_file(path, "config")
    for override in overrides:
        _override(data, override)
    return parse_config(data, str(path))


def parse_config(data: dict[str, Any], source: str) -> Config:
    """Check a configuration that was read.

    Raises:
        ConfigError: One line for each error, with its dotted path.
    """
    try:
        config = Config.model_validate(data)
    except ValidationError as error:
        raise ConfigError("; ".join(f"{source}: {line}" for line in _explain(error))) from error
    for key, url in (("root", config.root), ("logs.path", config.logs.path)):
        try:
            resolve_url(url)
        except ConfigError as error:
            raise ConfigError(f"{source}: {key}: {error}") from error
    check_sharding(config.sharding, config.optimizer.tables, config.log_schema, config.workers.most)
    if config.sharding.uvm_caching and config.workers.device != "cuda":
        raise ConfigError("sharding.uvm_caching is for GPUs: set workers.device to cuda, or leave it out")
    config.loss_weights.schedule(config.log_schema.task_names)
    _check_inputs(config)
    _check_cluster(config)
    _check_evaluation(config)
    if config.ranking is not None:
        columns = list(dict.fromkeys([*config.predictions.keys, *config.log_schema.columns()]))
        check_ranking(config.ranking, config.log_schema, columns)
    _check_gate(config)
    return config


def _check_gate(config: Config) -> None:
    """Check that the gate's limits are of tasks and slices that are declared."""
    gate, slices = config.daily.gate, [one.name for one in config.evaluation.by]
    for key, given, kind, declared in (
        ("tasks", gate.tasks, "task", config.log_schema.task_names),
        ("slices", gate.slices, "entry of evaluation.by", slices),
    ):
        unknown = sorted(set(given) - set(declared))
        if unknown:
            raise ConfigError(f"daily.gate.{key}: there is no {kind} {unknown[0]!r}, declared are {declared}")


def _check_inputs(config: Config) -> None:
    """Check that no feature tells the model its answer; an old checkpoint may have been trained so, and is read."""
    schema = config.log_schema
    for column, (feature, task) in schema.outcome_columns().items():
        raise ConfigError(
            f"schema.features: {feature!r} reads column {column!r}, which the label of task {task!r} reads: if it is "
            "an outcome, remove the feature; if it is known before the outcome, say why with allow_outcome: REASON"
        )


def check_beginning(config: Config) -> None:
    """Check what no new line should have; a line that was trained with it goes on.

    Raises:
        ConfigError: The slot is an input beside its bias.
    """
    schema = config.log_schema
    slots = [feature.name for feature in schema.features if feature.source == schema.slot]
    if config.model.slot_bias is not None and slots:
        raise ConfigError(
            f"model.slot_bias with the slot among the inputs (feature {slots[0]!r} reads column {schema.slot!r}): the "
            "network would learn the bias that slot_bias is to take out; remove one of the two"
        )


def _check_cluster(config: Config) -> None:
    workers, ray = config.workers, config.ray
    if ray.address == "local" and workers.fewest * workers.cpus > ray.num_cpus - 1:
        raise ConfigError(
            f"{workers.fewest} workers of {workers.cpus:g} CPUs leave none of ray.num_cpus = {ray.num_cpus} for "
            "reading: use fewer workers, lower workers.cpus, or raise ray.num_cpus"
        )
    if workers.precision == "tf32" and workers.device == "cpu":
        raise ConfigError("workers.precision is tf32 on cpu: it exists on CUDA only, use float32 or bfloat16")


def _check_evaluation(config: Config) -> None:
    evaluation = config.evaluation
    ids = [feature.name for feature in config.log_schema.features if feature.kind == "id"]
    named = {"popularity": evaluation.popularity, "bootstrap.by": evaluation.bootstrap and evaluation.bootstrap.by}
    for key, name in named.items():
        if name is not None and name not in ids:
            raise ConfigError(f"evaluation.{key} is {name!r}, which is no id feature; those are {ids}")


def _override(data: dict[str, Any], text: str) -> None:
    key, separator, value = text.partition("=")
    if not separator:
        raise ConfigError(f"override {text!r}: expected dotted.key=value")
    *folders, last = key.split(".")
    for folder in folders:
        data = data.setdefault(folder, {})
        if not isinstance(data, dict):
            raise ConfigError(f"override {text!r}: {folder} is not a section")
    data[last] = read_yaml(value, f"override {text!r}")


def _explain(error: ValidationError) -> Iterator[str]:
    for problem in error.errors():
        path, models = _walk(problem["loc"])
        dotted = ".".join(path)
        if problem["type"] == "extra_forbidden":
            names = {field.alias or name for model in models for name, field in model.model_fields.items()}
            close = difflib.get_close_matches(path[-1], names, n=1, cutoff=0.5)
            hint = f"did you mean {close[0]!r}?" if close else f"known here: {', '.join(sorted(names))}"
            yield f"unknown key {dotted}: {hint}"
        elif problem["type"] == "missing":
            yield f"{dotted} is missing"
        else:
            message = _MESSAGES.get(problem["type"], problem["msg"].removeprefix("Value error, "))
            got = "" if isinstance(problem["input"], dict | list) else f", got {problem['input']!r}"
            yield f"{dotted or 'config'}: {message}{got}"


def _walk(location: Sequence[int | str]) -> tuple[list[str], set[type[BaseModel]]]:
    """Return the dotted path of an error as the file shows it, and the config classes of its innermost section.

    Pydantic's own path also has the tags of unions, which are not levels of the file.
    """
    models: set[type[BaseModel]] = {Config}
    path = []
    for part in location:
        fields = [f for m in models for name, f in m.model_fields.items() if part in (f.alias or name, name)]
        inner = {found for field in fields for found in _models_in(field.annotation)}
        tagged = {model for model in models if part in _tags(model)}
        if not fields and tagged:
            models = tagged
            continue
        path.append(str(part))
        if inner:
            models = inner
    return path, models


def _tags(model: type[BaseModel]) -> tuple[Any, ...]:
    kind = model.model_fields.get("kind")
    return typing.get_args(kind.annotation) if kind is not None else ()


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    elif isinstance(annotation, types.UnionType) or typing.get_origin(annotation) is not None:
        for argument in typing.get_args(annotation):
            yield from _models_in(argument)
