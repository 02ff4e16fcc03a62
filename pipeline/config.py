"""The whole configuration of a project, from one YAML file; a wrong key fails before a cluster is asked for."""

import difflib
import types
import typing
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
import yaml
from pydantic import BaseModel, Field, ValidationError, model_validator

from features.declaration import Declaration
from features.errors import ConfigError
from features.holdout import HoldoutConfig
from features.schema import Schema
from models.around import AroundConfig
from models.assembly import build_ranker
from models.balancing import SCHEDULE, LossBalancingConfig
from models.joint import JointLoss
from models.kl_bound import KLBoundConfig
from models.loss import LossWeightConfig
from models.network import NetworkConfig
from models.sizes import Width
from pipeline.checkpoint import CheckpointConfig
from pipeline.evaluation.bootstrap import BootstrapConfig
from pipeline.ingest import IngestConfig
from pipeline.lineage.checks import GateConfig, OnRefusalConfig, PreflightConfig
from pipeline.optimizer import OptimizerConfig
from pipeline.sharding import ShardingConfig, check_sharding
from pipeline.storage import check_url

LINE_NAME = r"^[A-Za-z0-9_-][A-Za-z0-9_.-]*$"


class ModelConfig(AroundConfig):
    """The dense part of the model.

    Args:
        entire_space: Tasks whose probabilities are composed of several towers', as in ESMM and ESM2; absent: each task
            has its own tower's.
        slot_bias: A logit for the slot, added to tasks' own in training; absent: none.
        interaction: Products of every two sparse features' embeddings, before the network; absent: none.
        user: The user's side, computed once for a user and scored against many items, as in DUPN; absent: none.
        network: The multi-task network over pooled embeddings and dense values.
        towers: Widths of the hidden layers of every task's tower.
        dropout: Within the towers, in training.
    """

    network: NetworkConfig
    towers: list[Width] = Field(default=[64])
    dropout: float = Field(default=0.0, ge=0, lt=1)


class WorkersConfig(Declaration):
    """The workers that train.

    Args:
        num: How many.
        min: Instead of `num`, with `max`: go on with as few as this when nodes are lost, and with more when they come.
        max: As many as this, where the cluster has room.
        resize_every_s: How often a run with `min` and `max` looks for room.
        device: `cpu` with gloo, or `cuda` with NCCL.
        cpus: Logical CPUs of Ray that each of them takes.
        threads: Threads of a worker's matrix products, on the CPU.
        max_failures: How often the group is restarted from its newest checkpoint after a worker died.
        timeout_s: After how many seconds without an answer a collective operation fails.
        precision: Matrix products of the dense part: `float32`, `tf32` (CUDA only) or `bfloat16`.
        deterministic: The same run gives the same bits. On the CPU that is so anyway, for a fixed number of threads;
            on CUDA it makes kernels add in a fixed order and fail where they have none.
    """

    num: int = Field(default=2, ge=1)
    min: int | None = Field(default=None, ge=1)
    max: int | None = Field(default=None, ge=1)
    resize_every_s: float = Field(default=60.0, gt=0)
    device: Literal["cpu", "cuda"] = "cpu"
    cpus: float = Field(default=1.0, gt=0)
    threads: int = Field(default=1, ge=1)
    max_failures: int = Field(default=3, ge=0)
    timeout_s: int = Field(default=300, ge=10)
    precision: Literal["float32", "tf32", "bfloat16"] = "float32"
    deterministic: bool = True

    @model_validator(mode="after")
    def _check_bounds(self) -> "WorkersConfig":
        if (self.min is None) != (self.max is None):
            raise ValueError("min and max belong together: give both, or num")
        # Not model_fields_set: what was written out, defaults and all, must be readable again.
        num_given = self.num != type(self).model_fields["num"].default
        if self.min is not None and self.max is not None and (num_given or self.min > self.max):
            raise ValueError(f"min {self.min} and max {self.max}: min must not be above max, and num not be given too")
        return self

    @property
    def fewest(self) -> int:
        """Workers without which the run does not start."""
        return self.min or self.num

    @property
    def most(self) -> int:
        """Workers that the run uses if it can have them."""
        return self.max or self.num


class RayConfig(Declaration):
    """The Ray that runs it.

    Args:
        address: `local` starts one in this process; `auto` or an address joins an existing cluster.
        num_cpus: Logical CPUs of a local Ray: the workers' and at least one for the data tasks.
        object_store_mb: Object store of a local Ray, in MiB.
    """

    address: str = "local"
    num_cpus: int = Field(default=4, ge=2)
    object_store_mb: int = Field(default=1024, ge=80)


class EvaluationConfig(Declaration):
    """What evaluations compare with.

    Args:
        popularity: An id feature whose mean label per id, on the training days, is the popularity baseline.
        prior_rows: How many rows of the global mean every id starts with.
        bootstrap: How intervals are drawn, of users; absent: there are none.
    """

    popularity: str | None = None
    prior_rows: float = Field(default=20.0, gt=0)
    bootstrap: BootstrapConfig | None = None


class DailyConfig(Declaration):
    """The daily job.

    Args:
        preflight: What a day's log is held against before it is trained.
        gate: What a new checkpoint is held against before it is published.
        max_catch_up: Days before the asked one that are missing and may be trained first.
        lease_s: After how many seconds of silence a job that holds the line is taken for dead; it renews its lease
            three times as often.
        on_refusal: Whom to tell.
    """

    preflight: PreflightConfig = PreflightConfig()
    gate: GateConfig = GateConfig()
    max_catch_up: int = Field(default=7, ge=0)
    lease_s: float = Field(default=60.0, gt=0)
    on_refusal: OnRefusalConfig = OnRefusalConfig()


class LogsConfig(Declaration):
    """Where the logs are.

    Args:
        path: A directory or s3:// prefix with folders `dt=YYYY-MM-DD` of Parquet files.
    """

    path: str


class Config(Declaration):
    """A project.

    Args:
        name: What reports call it.
        root: Directory or s3:// prefix for checkpoints, ledger and reports.
        line: The chain of days to train.
        seed: All randomness is drawn from it.
        logs: The logs.
        log_schema: What a log line means; the key in the file is `schema`.
        model: The dense part of the model.
        loss_weights: w_k(t) of each task.
        loss_balancing: How the tasks' losses are balanced beyond that.
        kl_bounds: What is added to hold p(click) p(convert) to p(order).
        optimizer: Optimizers of tables and dense part.
        sharding: How tables are laid over the workers.
        ingest: How the log is read.
        holdout: Which rows are never trained; absent: all are.
        checkpoint: When checkpoints are written.
        evaluation: What evaluations compare with.
        daily: The daily job.
        workers: The workers that train.
        ray: The Ray that runs it.
    """

    name: str
    root: str
    line: str = Field(default="main", pattern=LINE_NAME)
    seed: int = Field(default=0, ge=0)
    logs: LogsConfig
    log_schema: Schema = Field(alias="schema")
    model: ModelConfig
    loss_weights: LossWeightConfig = LossWeightConfig()
    loss_balancing: LossBalancingConfig = SCHEDULE
    kl_bounds: list[KLBoundConfig] = []
    optimizer: OptimizerConfig
    sharding: ShardingConfig = ShardingConfig()
    ingest: IngestConfig = IngestConfig()
    holdout: HoldoutConfig | None = None
    checkpoint: CheckpointConfig = CheckpointConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    daily: DailyConfig = DailyConfig()
    workers: WorkersConfig = WorkersConfig()
    ray: RayConfig = RayConfig()

    @property
    def joint_loss(self) -> JointLoss:
        """How the tasks' losses become one, beyond w_k(t)."""
        return JointLoss(balancing=self.loss_balancing, bounds=self.kl_bounds)


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Read and check a configuration.

    Args:
        path: A YAML file.
        overrides: `dotted.key=value` settings, the value in YAML, that replace those of the file.

    Raises:
        ConfigError: One line for each thing that is wrong, with its dotted path.
    """
    try:
        data = yaml.safe_load(Path(path).read_text())
    except FileNotFoundError as error:
        raise ConfigError(f"config {path} is missing") from error
    except OSError as error:
        raise ConfigError(f"config {path} cannot be read: {error}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"config {path} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(data, dict):
        raise ConfigError(f"config {path} holds {type(data).__name__}, expected keys and values")
    for override in overrides:
        _override(data, override)
    return parse_config(data, str(path))


def parse_config(data: dict[str, Any], source: str) -> Config:
    """Check a configuration that was read.

    Raises:
        ConfigError: One line for each thing that is wrong, with its dotted path.
    """
    try:
        config = Config.model_validate(data)
    except ValidationError as error:
        raise ConfigError("; ".join(f"{source}: {line}" for line in _explain(error))) from error
    for key, url in (("root", config.root), ("logs.path", config.logs.path)):
        try:
            check_url(url)
        except ConfigError as error:
            raise ConfigError(f"{source}: {key}: {error}") from error
    check_sharding(config.sharding, config.optimizer.tables, config.log_schema, config.workers.most)
    _check_model(config)
    _check_cluster(config)
    _check_evaluation(config)
    unknown = sorted(set(config.daily.gate.tasks) - set(config.log_schema.task_names))
    if unknown:
        raise ConfigError(
            f"daily.gate.tasks: there is no task {unknown[0]!r}, declared are {config.log_schema.task_names}"
        )
    return config


def _check_model(config: Config) -> None:
    """Assemble the model without its memory: what does not fit together fails here."""
    model, schema = config.model, config.log_schema
    config.loss_weights.schedule(schema.task_names)
    with torch.device("meta"):
        build_ranker(schema, model.network, model.towers, model.dropout, None, config.joint_loss, around=model)


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
    try:
        data[last] = yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise ConfigError(f"override {text!r}: the value is not YAML") from error


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
            got = "" if isinstance(problem["input"], dict | list) else f", got {problem['input']!r}"
            yield f"{dotted or 'config'}: {problem['msg'].removeprefix('Value error, ')}{got}"


def _walk(location: Sequence[int | str]) -> tuple[list[str], set[type[BaseModel]]]:
    """The dotted path of an error as the file shows it, and the config classes of its innermost section.

    Pydantic's own path also has the tags of unions, which are no level of the file.
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
