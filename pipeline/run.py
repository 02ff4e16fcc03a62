"""A run as the command sees it: check all that can be checked, start Ray, train or evaluate, say what came out."""

import contextlib
import functools
import itertools
import json
import logging
import os
import uuid
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import ray
import ray.data
import ray.train
import ray.train.torch
from pydantic import ValidationError
from ray.train import FailureConfig, RunConfig, ScalingConfig, TrainingFailedError
from ray.train.torch import TorchConfig, TorchTrainer

from features.encoding import Encoder
from features.errors import ConfigError, DataError, Interrupted
from features.statistics import Statistics
from pipeline.config import Config, ModelConfig
from pipeline.failures import RunFailed, run_failed
from pipeline.lineage.line import Line, Manifest
from pipeline.lineage.seal import unseal
from pipeline.progress import ProgressBoard, ProgressWatcher
from pipeline.signals import stop_on_sigterm
from pipeline.storage import Storage
from pipeline.stream import SHARD, LaneConfig, RunPlan, Start
from pipeline.train import TrainJob, train_worker
from pipeline.units import check_days

logger = logging.getLogger(__name__)

STATISTICS = "statistics.json"
_RAY_ENVIRONMENT = {"RAY_DATA_LOG_LEVEL": "ERROR"}


@contextlib.contextmanager
def ray_session(config: Config) -> Iterator[None]:
    """A Ray for the duration of a command: one of its own, or the cluster that the config names.

    A Ray that the process is connected to already is used as it is, and left running.

    Raises:
        ConfigError: The cluster has fewer logical CPUs than workers and one data task need.
    """
    owned = not ray.is_initialized()
    if owned:
        for name, value in _RAY_ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        logging.getLogger("ray.data").setLevel(logging.WARNING)
        local: dict[str, Any] = {
            "num_cpus": config.ray.num_cpus,
            "object_store_memory": config.ray.object_store_mb * 2**20,
        }
        ray.init(
            address=config.ray.address,
            log_to_driver=True,
            logging_level=logging.WARNING,
            runtime_env={"env_vars": _RAY_ENVIRONMENT},
            **(local if config.ray.address == "local" else {}),  # pyright: ignore[reportArgumentType]
        )
    try:
        _check_resources(config)
        yield
    finally:
        if owned:
            ray.shutdown()


def _check_resources(config: Config) -> None:
    workers, resources, reading = config.workers, ray.cluster_resources(), config.ingest.read_cpus
    needed, found = workers.fewest * workers.cpus + reading, resources.get("CPU", 0)
    if needed > found:
        raise ConfigError(
            f"{workers.fewest} workers of {workers.cpus:g} logical CPUs and one data task need {needed:g}, the cluster "
            f"has {found:g}: use fewer workers, lower workers.cpus, or a larger cluster"
        )
    if workers.min is not None and not _has_room_to_read(config, [_cpus(node) for node in ray.nodes()]):
        raise ConfigError(
            f"up to {workers.most} workers of {workers.cpus:g} CPUs fill the nodes, and none has left what a data task "
            f"takes, {reading:g} CPUs: let workers.cpus not divide a node's CPUs evenly, or lower ingest.read_cpus"
        )
    if workers.device == "cuda" and resources.get("GPU", 0) < workers.fewest:
        raise ConfigError(f"{workers.fewest} workers on cuda, the cluster has {resources.get('GPU', 0):g} GPUs")


def _cpus(node: dict[str, Any]) -> float:
    return node["Resources"].get("CPU", 0.0) if node["Alive"] else 0.0


def _has_room_to_read(config: Config, nodes: Sequence[float]) -> bool:
    """Whether elastic workers, which take what they find, leave a data task the CPUs that it needs on some node."""
    cpus, reading = config.workers.cpus, config.ingest.read_cpus
    slots = [int(node / cpus + 1e-9) for node in nodes]
    left = max(node - count * cpus for node, count in zip(nodes, slots, strict=True))
    return left >= reading - 1e-9 or (sum(slots) > config.workers.most and cpus >= reading)


def load_statistics(config: Config, line: Line) -> Statistics | None:
    """The line's statistics, as `jobs.fit_features` wrote them; None where the schema needs none.

    Raises:
        ConfigError: They are missing, or were made for another schema.
    """
    schema = config.log_schema
    try:
        statistics = Statistics.model_validate(unseal(line.storage.read(STATISTICS)))
    except ValueError as error:
        raise ConfigError(
            f"{line.storage.url}/{STATISTICS} is damaged ({' '.join(str(error).split())}): restore it, or run "
            "jobs.fit_features again if the line has no checkpoints"
        ) from error
    except FileNotFoundError:
        try:
            Encoder(schema, None)
        except ConfigError as error:
            raise ConfigError(f"{line.storage.url}/{STATISTICS} is missing: {error}") from error
        return None
    if statistics.schema_fingerprint != schema.fingerprint():
        raise ConfigError(
            f"{line.storage.url}/{STATISTICS} was made for schema {statistics.schema_fingerprint}, the config has "
            f"{schema.fingerprint()}: run jobs.fit_features again, on a new root or line if this one has checkpoints"
        )
    return statistics


def train(config: Config, days: Sequence[str], passes: int) -> dict[str, Any]:
    """Train days, from where the line is.

    Args:
        config: The project's configuration.
        days: ISO dates in order.
        passes: Passes over all of them.

    Returns:
        The figures of the command's JSON line.

    Raises:
        ConfigError: The configuration cannot be carried out.
        DataError: The logs, or what the line has trained already, do not fit.
        Interrupted: SIGTERM came; the workers have saved where they were.
    """
    line = Line.of(config.root, config.line)
    start = _start(config, line, days, passes)
    if start is not None and _is_last(start, days, passes):
        _publish_again(line, start)
        return {"result": "nothing to do", "checkpoint": start.checkpoint, "step": start.step}
    statistics = _frozen_statistics(config, line, start)
    logs, encoder = Storage(config.logs.path), Encoder(config.log_schema, statistics)
    max_rows = config.ingest.unit.max_rows
    day_logs = tuple(check_days(logs, days, max_rows, config.log_schema, encoder.columns))
    run = {"run": uuid.uuid4().hex, "passes": passes}
    trusted = start.checkpoint if start else None
    begin = functools.partial(_begin, config, line, tuple(days), run, trusted)
    with ray_session(config):
        plan = RunPlan(logs, day_logs, passes, encoder, config.ingest, config.seed, begin)
        board = ProgressBoard.remote()
        job = TrainJob(config, statistics, line, day_logs, passes, board)
        try:
            reported = run_workers(config, plan, train_worker, job, board)
        except BaseException as error:
            reason = " ".join(str(error).split())[:500]
            with contextlib.suppress(OSError, DataError):  # a storage that is away may be why
                line.end_attempts(days, run["run"], {"result": "failed", "reason": reason})
            raise
    return _conclude(line, days, run, reported)


def _conclude(line: Line, days: Sequence[str], run: dict[str, Any], reported: dict[str, Any]) -> dict[str, Any]:
    """Write down how the run ended, publish what it finished, and sum it up."""
    if reported.get("refused"):
        line.end_attempts(days, run["run"], {"result": "refused", "reason": reported["refused"]})
        raise DataError(reported["refused"])
    if reported.get("interrupted"):
        line.end_attempts(days, run["run"], {"result": "interrupted"})
        raise Interrupted(
            f"stopped by SIGTERM at step {reported['step']}, saved as {reported['checkpoint']}: start the same command "
            "again to go on"
        )
    finished = line.read_manifest(reported["checkpoint"]) if reported.get("checkpoint") else line.newest()
    if finished is None or not _is_last(finished, days, run["passes"]):
        raise RunFailed("the last day's checkpoint is gone or damaged: start the same command again")
    line.publish(finished.day, finished.checkpoint, line.attempt_of(days, run["run"]))
    line.end_attempts(days, run["run"], {"result": "done"})
    same_run = itertools.takewhile(lambda m: m.content["run"] == finished.content["run"], line.lineage(finished))
    trained = [manifest.content for manifest in same_run]
    return {
        "result": "trained",
        "checkpoint": finished.checkpoint,
        "step": finished.step,
        "rows": sum(content["rows"] for content in trained),
        "quarantined": {key: reason for content in trained for key, reason in content["cursor"]["quarantined"].items()},
    }


def _publish_again(line: Line, finished: Manifest) -> None:
    """Publish what a run finished that was killed just before it could."""
    latest = line.latest()
    if latest is None or latest["checkpoint"] != finished.checkpoint:
        run = {"run": uuid.uuid4().hex}
        attempt, _ = line.begin_attempt([finished.day], run, lambda _: finished)
        line.publish(finished.day, finished.checkpoint, attempt)
        line.end_attempts([finished.day], run["run"], {"result": "done"})


def run_workers(
    config: Config, plan: RunPlan, worker: Callable[[dict[str, Any]], dict[str, Any]], job: Any, board: Any
) -> dict[str, Any]:
    """Run a function on every worker of Ray Train, with the plan's stream dealt to them.

    Returns:
        What rank 0's worker returned. Reports to Ray Train would be kept with checkpoints only, and those are ours.

    Raises:
        RunFailed: The workers, or Ray Train itself, failed.
    """
    workers, name = config.workers, f"{config.name}-{uuid.uuid4().hex[:8]}"
    num_workers = workers.num if workers.min is None else (workers.fewest, workers.most)
    trainer = TorchTrainer(
        worker,
        train_loop_config={"job": job},
        scaling_config=ScalingConfig(
            num_workers=num_workers,
            elastic_resize_monitor_interval_s=workers.resize_every_s,
            use_gpu=workers.device == "cuda",
            resources_per_worker={"CPU": workers.cpus} | ({"GPU": 1} if workers.device == "cuda" else {}),
        ),
        torch_config=TorchConfig(backend="gloo" if workers.device == "cpu" else "nccl", timeout_s=workers.timeout_s),
        run_config=RunConfig(
            name=name,
            storage_path=_ray_storage(config),
            failure_config=FailureConfig(
                max_failures=workers.max_failures, controller_failure_limit=workers.max_failures
            ),
        ),
        datasets={SHARD: ray.data.range(1)},  # a placeholder: LaneConfig plans the stream for the ranks it is given
        dataset_config=LaneConfig(plan),
    )
    os.environ.setdefault("RAY_TRAIN_COLLECTIVE_TIMEOUT_S", str(workers.timeout_s))
    try:
        with stop_on_sigterm() as asked_to_stop, ProgressWatcher(board, asked_to_stop):
            result = trainer.fit()
    except TrainingFailedError as error:
        raise run_failed(error) from error
    finally:
        Storage(config.root).remove(f"ray/{name}")
    return result.return_value or {}


def _ray_storage(config: Config) -> str:
    url = f"{config.root}/ray"
    return url if "://" in url else os.path.abspath(url)


def _start(config: Config, line: Line, days: Sequence[str], passes: int, trusted: str | None = None) -> Manifest | None:
    """The checkpoint to start from, if it fits the days that are asked for.

    Raises:
        DataError: The line is elsewhere, or was trained with another schema.
    """
    newest = line.newest(trusted)
    if newest is None:
        return None
    check_same_schema(config, newest)
    content, latest = newest.content, line.latest()
    if latest is not None and newest.day < latest["day"] < days[0]:
        raise DataError(
            f"LATEST names {latest['checkpoint']}, which is damaged or gone, and {days[0]} would be trained from "
            f"{newest.day}: restore its files, or train {latest['day']} again first"
        )
    if content["run"] == {"days": list(days), "passes": passes}:
        return newest
    if newest.day < days[0] and _is_last(newest, content["run"]["days"], content["run"]["passes"]):
        return newest
    raise DataError(
        f"line {config.line!r} has trained up to {newest.day} (step {newest.step}, "
        f"{'complete' if content['complete'] else 'within the day'}), asked for are {days[0]}..{days[-1]}: ask for "
        f"later days, finish {content['run']['days'][0]}..{content['run']['days'][-1]}, or name another line"
    )


def check_same_schema(config: Config, manifest: Manifest) -> None:
    """Refuse to load a checkpoint whose tensors mean something else, saying which.

    Raises:
        DataError: Names the table, or what else differs, and what to do.
    """
    if not _same_model(manifest.content["config"]["model"], config.model):
        raise DataError(
            f"checkpoint {manifest.checkpoint} was trained with another model section: restore the old config or start "
            "a new root"
        )
    for part in ("tables", "dense"):
        old, new = manifest.content["config"]["optimizer"][part]["kind"], getattr(config.optimizer, part).kind
        if old != new:
            raise DataError(
                f"checkpoint {manifest.checkpoint} was trained with optimizer.{part}.kind {old}, the config has {new}: "
                "restore the old config or start a new root"
            )
    if manifest.content["schema_fingerprint"] == config.log_schema.fingerprint():
        return
    then = manifest.content["config"]["schema"]
    now = config.log_schema.model_dump(mode="json")
    found = {table["name"]: table for table in then["tables"]}
    for table in now["tables"]:
        old = found.get(table["name"])
        for key, what in (("num_rows", "rows"), ("dim", "columns")):
            if old is not None and old[key] != table[key]:
                raise DataError(
                    f"checkpoint {manifest.checkpoint} has table {table['name']} with {old[key]:,} {what}, the config "
                    f"declares {table[key]:,}: restore the old config or start a new root"
                )
    changed = [key for key in now if then.get(key) != now[key]]
    raise DataError(
        f"checkpoint {manifest.checkpoint} was trained with other {', '.join(changed)} in its schema: restore the old "
        "config or start a new root"
    )


def _same_model(then: dict[str, Any], now: ModelConfig) -> bool:
    """Whether a model section means the same; keys that have come since have their defaults in the old one."""
    try:
        return ModelConfig.model_validate_json(json.dumps(then)) == now
    except ValidationError:
        return False


def _is_last(manifest: Manifest, days: Sequence[str], passes: int) -> bool:
    content = manifest.content
    return content["complete"] and (content["day"], content["pass"]) == (days[-1], passes - 1)


def _frozen_statistics(config: Config, line: Line, start: Manifest | None) -> Statistics | None:
    if start is None:
        return load_statistics(config, line)
    frozen = start.content["statistics"]
    return Statistics.model_validate(frozen) if frozen else None


def _begin(config: Config, line: Line, days: tuple[str, ...], run: dict[str, Any], trusted: str | None) -> Start:
    """What the stream asks at every start of the workers; a module's function, since it travels."""
    choose = lambda known: _start(config, line, days, run["passes"], known or trusted)  # noqa: E731
    attempt, start = line.begin_attempt(days, run, choose)
    return Start(attempt, start.resume_point() if start else None)
