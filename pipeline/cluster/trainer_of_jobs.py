"""Ray Train's trainer, as a group of workers with a queue of jobs needs it."""

import contextlib
from typing import Any

import ray
from ray.exceptions import RayError
from ray.train import FailureConfig, TrainingFailedError
from ray.train.torch import TorchTrainer as RayTorchTrainer
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2._internal.execution.callback import ControllerCallback, WorkerGroupCallback
from ray.train.v2._internal.execution.failure_handling import DefaultFailurePolicy

from pipeline.cluster.ray_start import owns_ray


class TorchTrainer(RayTorchTrainer):
    """Ray Train's trainer, as a group of workers needs it.

    It tells the queue of the controller, and of workers that are about to end. Failures are counted for each training
    or measurement apart. Ray's cleaner of placement groups is for a cluster that outlives the command; on a local Ray
    it ends in a traceback where somebody else's Ray runs, too.
    """

    def _initialize_and_run_controller(self, **arguments: Any) -> Any:
        limits = self.run_config.failure_config
        assert limits is not None
        policy = FailuresOfWork(limits, self._queue)
        return super()._initialize_and_run_controller(**arguments | {"failure_policy": policy})

    def _create_default_callbacks(self) -> list[Any]:
        callbacks = [*super()._create_default_callbacks(), QueueCallback(self._queue)]
        if not owns_ray():
            return callbacks
        return [callback for callback in callbacks if not isinstance(callback, PlacementGroupCleanerCallback)]

    @property
    def _queue(self) -> Any:
        config = self.train_loop_config
        assert config is not None
        return config["queue"]


class FailuresOfWork(DefaultFailurePolicy):
    """Ray Train's policy, whose counts begin again with every training or measurement.

    Args:
        failure_config: The largest number of each kind of failure.
        queue: A `JobQueue`.
    """

    def __init__(self, failure_config: FailureConfig, queue: Any) -> None:
        super().__init__(failure_config)
        self._queue, self._work = queue, 0

    def make_decision(self, training_failed_error: TrainingFailedError) -> Any:
        """Return the decision on a failure."""
        with contextlib.suppress(RayError):
            work = ray.get(self._queue.work.remote())
            if work != self._work:
                self._work = work
                self._worker_group_failures = self._controller_failures = self._preemption_failures = 0
        return super().make_decision(training_failed_error)


class QueueCallback(ControllerCallback, WorkerGroupCallback):
    """News of Ray Train's controller for a queue.

    Args:
        queue: A `JobQueue`.
    """

    def __init__(self, queue: Any) -> None:
        self._queue, self._is_told = queue, False

    def after_controller_start(self, train_run_context: Any) -> None:
        """Tell the queue of the controller."""
        self._queue.begin.remote(ray.get_runtime_context().current_actor)

    def after_worker_group_poll_status(self, worker_group_status: Any) -> None:
        """Tell the queue of a notice of preemption: workers that end at a deadline begin no job."""
        if not self._is_told and worker_group_status.get_preemption_info() is not None:
            self._is_told = True
            self._queue.lose_nodes.remote()

    def before_worker_group_shutdown(self, worker_group: Any) -> None:
        """Tell the queue of workers that are about to end."""
        self._is_told = False
        self._queue.forget_workers.remote()
