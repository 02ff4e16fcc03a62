"""A group of workers that a command keeps: Ray Train starts it once, and it does one job after the other.

Ray Train runs in a thread. The command plans the stream of a job for the workers that are there, and hands the job to
their queue. When Ray Train starts the group again, after a failure or with another number of workers, the command plans
the stream anew, for those.
"""

import contextlib
import logging
import os
import re
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NoReturn

import ray
from ray.data import DataIterator
from ray.exceptions import RayActorError, RayError
from ray.train import FailureConfig, RunConfig, ScalingConfig, TrainingFailedError
from ray.train.torch import TorchConfig

from features.errors import ConfigError, DataError
from pipeline.cluster.failures import RunFailed, cause_of
from pipeline.cluster.job_queue import Job, Look, queue_on_this_node
from pipeline.cluster.serve_jobs import serve_jobs
from pipeline.cluster.trainer_of_jobs import TorchTrainer
from pipeline.config.project import Config
from pipeline.ingest.plan import RunPlan
from pipeline.storage.files import Storage

_TIMEOUT = "RAY_TRAIN_COLLECTIVE_TIMEOUT_S"
_LONGEST_NAME = 40  # characters of a project's name that a run on Ray shows
_END_S = 60.0  # seconds for which workers that wait for a job have to return
_ANSWER_S = 5.0  # seconds for which an answer is waited for at the end
_AGAIN_S = 2.0  # seconds before a stream that could not be planned is planned again

Worker = Callable[[Any, DataIterator], dict[str, Any]]

logger = logging.getLogger(__name__)


class NotBegun(RunFailed):
    """End of workers that waited for a job; new ones can do it."""


class WorkerGroup:
    """Workers of Ray Train that wait for jobs.

    Args:
        config: Configuration of the first job; all jobs have the same `key`.
    """

    def __init__(self, config: Config) -> None:
        workers, self._name = config.workers, ray_run_name(config.name)
        num_workers = workers.num if workers.min is None else (workers.fewest, workers.most)
        logger.info("starting workers: %s", num_workers if workers.min is None else f"{workers.min} to {workers.max}")
        self.key, self._root = self.key_of(config), Storage(config.root)
        self._max_failures, self._number = workers.max_failures, 0
        self._queue = queue_on_this_node()
        self._look, self._busy = Look(), False
        self._error: BaseException | None = None
        self._sets_timeout = _TIMEOUT not in os.environ
        os.environ.setdefault(_TIMEOUT, str(workers.timeout_s))
        trainer = TorchTrainer(
            serve_jobs,
            train_loop_config={"queue": self._queue},
            scaling_config=ScalingConfig(
                num_workers=num_workers,
                elastic_resize_monitor_interval_s=workers.resize_every_s,
                use_gpu=workers.device == "cuda",
                resources_per_worker={"CPU": workers.cpus} | ({"GPU": 1} if workers.device == "cuda" else {}),
                label_selector=workers.label_selector or None,
            ),
            torch_config=TorchConfig(
                backend="gloo" if workers.device == "cpu" else "nccl", timeout_s=workers.timeout_s
            ),
            run_config=RunConfig(
                name=self._name,
                storage_path=ray_storage(config),
                failure_config=FailureConfig(
                    max_failures=workers.max_failures, controller_failure_limit=workers.max_failures
                ),
            ),
        )
        self._thread = threading.Thread(target=self._fit, args=(trainer,), name="Ray Train", daemon=True)
        self._thread.start()

    @staticmethod
    def key_of(config: Config) -> tuple[Any, ...]:
        """Return all of a configuration that a group is started with."""
        return config.workers, config.checkpoint.timeout_s

    @property
    def has_ended(self) -> bool:
        """True if the group does no more jobs."""
        return not self._thread.is_alive()

    def is_usable(self) -> bool:
        """Return True if the workers can begin a job: they have not ended, and no node of theirs is taken away."""
        with contextlib.suppress(RayError):
            return not self.has_ended and not self._news(-1).loses_nodes
        return False

    def do(self, plan: RunPlan, worker: Worker, job: Any) -> dict[str, Any]:
        """Do a job on all workers; whenever Ray Train starts them again, its stream is planned again.

        Args:
            plan: Plan of the job's stream.
            worker: Function of a worker: it gets the argument, and its rank's iterator over rows.
            job: Its argument.

        Returns:
            The result of rank 0.

        Raises:
            NotBegun: Workers of earlier jobs ended before they were given this one.
            RunFailed: The workers, or Ray Train itself, failed more often than is allowed for one job.
        """
        work, first = [ray.put((worker, job))], self._number + 1
        lanes: Sequence[Any] = ()
        planned_for, is_begun = None, False
        with self._or_failure():
            ray.get(self._queue.begin_work.remote(first))
            self._look = self._news(-1)  # workers may have been replaced since the last job
        try:
            while self._look.finished < first:
                if self._look.start not in (None, planned_for):
                    planned_for = self._look.start
                    end_stream(lanes)
                    lanes = self._plan(plan, self._look.num_ranks)
                    is_begun |= self._submit(planned_for, Job(self._number + 1, work, lanes))
                if self.has_ended:
                    self._raise_end(first, is_begun=is_begun)
                self._look_again()
        finally:
            end_stream(lanes)
        self._busy = False
        return self._look.result or {}

    def _submit(self, start: str, job: Job) -> bool:
        self._number, self._busy = job.number, True
        with self._or_failure():
            is_taken: Any = ray.get(self._queue.submit.remote(start, job))
        return is_taken

    def _raise_end(self, first: int, *, is_begun: bool) -> NoReturn:
        """Raise the error that has ended Ray Train, or one that says that it has ended."""
        error = self._error
        if error is not None and not isinstance(error, TrainingFailedError):
            raise error
        kind = NotBegun if not is_begun and (first > 1 or error is None) else RunFailed
        raise kind(cause_of(error) if error else "Ray Train has ended: start the same command again") from error

    def _look_again(self) -> None:
        """Wait for news of the queue, for a second at most."""
        with self._or_failure():
            self._look = self._news(self._look.version)

    def _news(self, version: int) -> Look:
        look: Any = ray.get(self._queue.look.remote(version))
        return look

    @contextlib.contextmanager
    def _or_failure(self) -> Iterator[None]:
        try:
            yield
        except RayActorError as error:
            raise RunFailed("the queue of the workers is gone: start the same command again") from error

    def _plan(self, plan: RunPlan, num_ranks: int) -> Sequence[Any]:
        """Plan a stream; what may have passed by is tried again, as often as the workers may fail."""
        for left in reversed(range(self._max_failures + 1)):
            try:
                return plan.lanes(num_ranks)
            except (ConfigError, DataError):
                raise
            except Exception as error:
                if left == 0:
                    raise RunFailed(f"the stream could not be planned: {' '.join(str(error).split())}") from error
                logger.warning("the stream could not be planned, again in %g s: %s", _AGAIN_S, error)
                time.sleep(_AGAIN_S)
        raise AssertionError("unreachable")

    def end(self, *, at_once: bool = False) -> None:
        """End the workers.

        Args:
            at_once: True to end them wherever they are; False to let workers that wait for a job return by themselves.
        """
        try:
            if not at_once and not self._busy:
                with contextlib.suppress(RayError):
                    ray.get(self._queue.close.remote(), timeout=_ANSWER_S)
                    self._thread.join(_END_S)
            if not self.has_ended:
                self._abort()
            with contextlib.suppress(RayError):
                ray.kill(self._queue)
        finally:
            if self._sets_timeout:
                os.environ.pop(_TIMEOUT, None)
            self._root.remove(f"ray/{self._name}")

    def _abort(self) -> None:
        """End Ray Train's controller, and with it the workers; it may be within a call, and not answer."""
        with contextlib.suppress(RayError):
            self._look = ray.get(self._queue.look.remote(-1), timeout=_ANSWER_S)
        if self._look.controller is not None:
            with contextlib.suppress(RayError):
                ray.get(self._look.controller.abort.remote(), timeout=_ANSWER_S)
            with contextlib.suppress(RayError):
                ray.kill(self._look.controller)
        self._thread.join(_ANSWER_S)

    def _fit(self, trainer: TorchTrainer) -> None:
        try:
            trainer.fit()
        except BaseException as error:  # noqa: BLE001 - the command raises it where it waits
            self._error = error


def end_stream(lanes: Sequence[Any]) -> None:
    """End the reading of a stream, of which workers that have ended may have left the rest."""
    if lanes:
        coordinator = lanes[0]._coord_actor
        with contextlib.suppress(RayError):  # a killed reader would keep its claim on CPUs for three minutes
            ray.get(coordinator.shutdown_executor.remote(), timeout=_ANSWER_S)
        ray.kill(coordinator)


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
