"""The trackers of a configuration, each behind a thread of its own."""

import time
from collections.abc import Callable

import ray

from pipeline.config.tracking import MLflowConfig, NoTrackerConfig, TrackingConfig
from pipeline.storage.files import Storage
from pipeline.tracking.background import BackgroundTracker
from pipeline.tracking.tracker import RunKey, Tracker


def open_trackers(
    config: TrackingConfig, root: str, project: str, named: Callable[[RunKey], RunKey]
) -> list[BackgroundTracker]:
    """Return the configured tracker, and Ray's metrics where the process is connected to a Ray.

    Their imports and all that they read happen in their threads.

    Args:
        config: The tracker.
        root: Directory or s3:// prefix of the project.
        project: Name of the project.
        named: Function that returns a run with its generation; it may read the root.
    """

    def open_tensorboard(run: RunKey) -> Tracker:
        from pipeline.tracking.tensorboard import TensorBoardTracker

        return TensorBoardTracker(Storage(root).under(f"tracking/{run.line}/{named(run).name}"))

    def open_mlflow(run: RunKey) -> Tracker:
        from pipeline.tracking.mlflow import MLflowTracker

        assert isinstance(config, MLflowConfig)
        return MLflowTracker(config, project, f"{run.line}/{named(run).name}", time.time())

    def open_metrics(run: RunKey) -> Tracker:
        from pipeline.tracking.prometheus import RayMetrics

        return RayMetrics(run.line)

    opening: dict[str, Callable[[RunKey], Tracker]] = {}
    if not isinstance(config, NoTrackerConfig):
        opening[config.kind] = open_mlflow if isinstance(config, MLflowConfig) else open_tensorboard
    if ray.is_initialized():
        opening["Ray's metrics"] = open_metrics
    return [BackgroundTracker(name, open_run) for name, open_run in opening.items()]
