"""Ray session of a command, and the workers that are kept for its jobs."""

import contextlib
import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import ray

from features.errors import ConfigError
from pipeline.cluster.processes import adopt_orphans, no_process_left
from pipeline.cluster.progress import Progress, ProgressWatcher
from pipeline.cluster.ray_start import start_ray
from pipeline.cluster.signals import stop_on_sigterm
from pipeline.cluster.worker_group import NotBegun, Worker, WorkerGroup
from pipeline.cluster.worker_lines import take_worker_lines
from pipeline.config.project import Config
from pipeline.ingest.plan import RunPlan

logger = logging.getLogger(__name__)


@contextlib.contextmanager
def ray_session(config: Config) -> Iterator[None]:
    """Connect to a Ray for the duration of a command: a new local one, or the config's cluster.

    Workers that are started within the session do its jobs until the outermost session ends, as long as `workers` and
    `checkpoint.timeout_s` stay the same and no node is taken away. An existing connection of the process is used as it
    is, and left open.

    Raises:
        ConfigError: No Ray can start, or it has fewer logical CPUs than the workers and one data task need.
        ConnectionError: The cluster does not answer.
    """
    if ray.is_initialized():
        _check_resources(config)
        with _kept:
            _kept.make_room(config)
            yield
        return
    with no_process_left():
        try:
            start_ray(config.ray)
            take_worker_lines()
            _check_resources(config)
            with _kept:
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
    worker: Worker,
    job: Any,
    board: Any,
    listener: Callable[[Progress], None] | None = None,
) -> dict[str, Any]:
    """Run a function on every worker, with the plan's stream dealt to them.

    The workers of the command's earlier jobs do it, if they were started with the same settings, still run, and lose
    no node.

    Args:
        config: The project's configuration.
        plan: Plan of the stream.
        worker: The function.
        job: Its argument.
        board: A `ProgressBoard`.
        listener: Function that is given the board's progress; it may not wait.

    Returns:
        The result of rank 0's worker, and `asked_to_stop`: True after a SIGTERM.

    Raises:
        RunFailed: The workers, or Ray Train itself, failed.
    """
    with _kept, stop_on_sigterm() as asked_to_stop, ProgressWatcher(board, asked_to_stop, listener):
        result = _kept.do(config, plan, worker, job)
    return result | {"asked_to_stop": asked_to_stop.is_set()}


class _KeptWorkers:
    """Workers that are kept until the end of the outermost of its contexts."""

    def __init__(self) -> None:
        self._depth = 0
        self._group: WorkerGroup | None = None

    def __enter__(self) -> "_KeptWorkers":
        self._depth += 1
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        self._depth -= 1
        if self._depth == 0:
            self._end(at_once=kind is not None)

    def make_room(self, config: Config) -> None:
        """End workers that were started with other settings: passes of this configuration may need their CPUs."""
        if self._group is not None and self._group.key != WorkerGroup.key_of(config):
            self._end()

    def do(self, config: Config, plan: RunPlan, worker: Worker, job: Any) -> dict[str, Any]:
        """Do a job; see `WorkerGroup.do`."""
        try:
            return self._group_of(config).do(plan, worker, job)
        except NotBegun as error:
            logger.warning("the workers have ended between two jobs: %s", error)
            return self._group_of(config).do(plan, worker, job)

    def _group_of(self, config: Config) -> WorkerGroup:
        """Return the group, or a new one where that cannot do a job of this configuration."""
        self.make_room(config)
        if self._group is not None and not self._group.is_usable():
            self._end()
        if self._group is None:
            self._group = WorkerGroup(config)
        return self._group

    def _end(self, *, at_once: bool = False) -> None:
        group, self._group = self._group, None
        if group is not None:
            group.end(at_once=at_once)


_kept = _KeptWorkers()
