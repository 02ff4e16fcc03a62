"""Ray session of a command, and a group of workers on it."""

import contextlib
import logging
import os
import re
import uuid
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import ray
import ray.data
import ray.train
from ray.train import FailureConfig, RunConfig, ScalingConfig, TrainingFailedError
from ray.train.torch import TorchConfig
from ray.train.torch import TorchTrainer as RayTorchTrainer
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback

from features.errors import ConfigError
from pipeline.cluster.failures import run_failed
from pipeline.cluster.processes import adopt_orphans, no_process_left
from pipeline.cluster.progress import Progress, ProgressWatcher
from pipeline.cluster.ray_start import owns_ray, start_ray
from pipeline.cluster.signals import stop_on_sigterm
from pipeline.cluster.worker_entry import run_worker
from pipeline.cluster.worker_lines import SpeakingLanes, take_worker_lines
from pipeline.config.project import Config
from pipeline.ingest.plan import SHARD, RunPlan
from pipeline.storage.files import Storage

_LONGEST_NAME = 40  # characters of a project's name that a run on Ray shows

logger = logging.getLogger(__name__)


class TorchTrainer(RayTorchTrainer):
    """Ray Train's trainer, whose command a person can end by Ctrl-C.

    Ray's handler of SIGINT ends the process as if a worker had failed. Its cleaner of placement groups is for a cluster
    that outlives the command; on a local Ray it ends in a traceback where somebody else's Ray runs, too.
    """

    def _register_sigint_handler(self, controller: Any) -> None:
        pass

    def _create_default_callbacks(self) -> list[Any]:
        callbacks = super()._create_default_callbacks()
        if not owns_ray():
            return callbacks
        return [callback for callback in callbacks if not isinstance(callback, PlacementGroupCleanerCallback)]


@contextlib.contextmanager
def ray_session(config: Config) -> Iterator[None]:
    """Connect to a Ray for the duration of a command: a new local one, or the config's cluster.

    An existing connection of the process is used as it is, and left open.

    Raises:
        ConfigError: No Ray can start, or it has fewer logical CPUs than the workers and one data task need.
        ConnectionError: The cluster does not answer.
    """
    if ray.is_initialized():
        _check_resources(config)
        yield
        return
    with no_process_left():
        try:
            start_ray(config.ray)
            take_worker_lines()
            _check_resources(config)
            yield
        finally:
            adopt_orphans()  # those of the raylet, whose end they do not all notice
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
    _warn_of_unknown_labels(config)


def _warn_of_unknown_labels(config: Config) -> None:
    """Warn of labels that no node has now: an autoscaler may bring such a node, a misspelt label never does."""
    selectors = {"ingest": config.ingest.label_selector, "workers": config.workers.label_selector}
    plain = {
        (section, name, value)
        for section, selector in selectors.items()
        for name, value in selector.items()
        if not value.startswith(("!", "in("))
    }
    found = {label for node in ray.nodes() if node["Alive"] for label in node["Labels"].items()} if plain else set()
    for section, name, value in sorted(plain):
        if (name, value) not in found:
            logger.warning("no node has the label %s: %s now: the run waits (%s.label_selector)", name, value, section)


def _cpus(node: dict[str, Any]) -> float:
    return node["Resources"].get("CPU", 0.0) if node["Alive"] else 0.0


def _has_room_to_read(config: Config, nodes: Sequence[float]) -> bool:
    """Return True if elastic workers, which take all they find, leave a data task enough CPUs on some node."""
    cpus, reading = config.workers.cpus, config.ingest.read_cpus
    slots = [int(node / cpus + 1e-9) for node in nodes]
    left = max(node - count * cpus for node, count in zip(nodes, slots, strict=True))
    return left >= reading - 1e-9 or (sum(slots) > config.workers.most and cpus >= reading)


def run_workers(
    config: Config,
    plan: RunPlan,
    worker: Callable[[dict[str, Any]], dict[str, Any]],
    job: Any,
    board: Any,
    listener: Callable[[Progress], None] | None = None,
) -> dict[str, Any]:
    """Run a function on every worker of Ray Train, with the plan's stream dealt to them.

    Args:
        config: The project's configuration.
        plan: Plan of the stream.
        worker: The function.
        job: Its argument.
        board: A `ProgressBoard`.
        listener: Function that is given the board's progress; it may not wait.

    Returns:
        The result of rank 0's worker, and `asked_to_stop`: True after a SIGTERM. Reports to Ray Train would be kept
        with its own checkpoints only.

    Raises:
        RunFailed: The workers, or Ray Train itself, failed.
    """
    workers, name = config.workers, ray_run_name(config.name)
    num_workers = workers.num if workers.min is None else (workers.fewest, workers.most)
    trainer = TorchTrainer(
        run_worker,
        train_loop_config={"work": ray.put((worker, job))},
        scaling_config=ScalingConfig(
            num_workers=num_workers,
            elastic_resize_monitor_interval_s=workers.resize_every_s,
            use_gpu=workers.device == "cuda",
            resources_per_worker={"CPU": workers.cpus} | ({"GPU": 1} if workers.device == "cuda" else {}),
            label_selector=workers.label_selector or None,
        ),
        torch_config=TorchConfig(backend="gloo" if workers.device == "cpu" else "nccl", timeout_s=workers.timeout_s),
        run_config=RunConfig(
            name=name,
            storage_path=ray_storage(config),
            failure_config=FailureConfig(
                max_failures=workers.max_failures, controller_failure_limit=workers.max_failures
            ),
        ),
        datasets={SHARD: ray.data.range(1)},  # a placeholder: SpeakingLanes plans the stream for the actual ranks
        dataset_config=SpeakingLanes(plan),
    )
    os.environ.setdefault("RAY_TRAIN_COLLECTIVE_TIMEOUT_S", str(workers.timeout_s))
    logger.info("starting workers: %s", num_workers if workers.min is None else f"{workers.fewest} to {workers.most}")
    try:
        with stop_on_sigterm() as asked_to_stop, ProgressWatcher(board, asked_to_stop, listener):
            result = trainer.fit()
    except TrainingFailedError as error:
        raise run_failed(error) from error
    finally:
        Storage(config.root).remove(f"ray/{name}")
    return (result.return_value or {}) | {"asked_to_stop": asked_to_stop.is_set()}


def ray_storage(config: Config) -> str:
    """Return the place of Ray Train's own files below the root, as Ray and pyarrow read it."""
    return Storage(config.root).under("ray").uri


def ray_run_name(name: str) -> str:
    """Return a name for a run on Ray: ASCII, short and new, since it is a folder's name and a tag of Ray's metrics.

    Args:
        name: Name of the project, of any length and characters.
    """
    readable = re.sub(r"[^A-Za-z0-9]+", "-", name).strip("-")[:_LONGEST_NAME]
    return f"{readable or 'run'}-{uuid.uuid4().hex[:8]}"
