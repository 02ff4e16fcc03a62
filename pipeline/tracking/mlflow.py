"""Runs of an MLflow server, through the client of mlflow-skinny, which is an extra."""

import importlib.util
import os
from collections.abc import Mapping

from features.errors import ConfigError
from pipeline.config.tracking import MLflowConfig, TrackingConfig

# A server that does not answer is given up soon; and MLflow sends nothing to its makers.
_ENVIRONMENT = {
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
}


def check_tracker(config: TrackingConfig) -> None:
    """Check that the packages of the configured tracker are installed, without importing them.

    Raises:
        ConfigError: They are not.
    """
    if isinstance(config, MLflowConfig) and importlib.util.find_spec("mlflow") is None:
        raise ConfigError(
            "tracking.kind is mlflow, and mlflow is not installed here: pip install -r requirements/mlflow.txt"
        )


class MLflowTracker:
    """One run of an experiment; a run of that name is continued.

    Args:
        config: The tracker.
        experiment: Name of the experiment if the config gives none.
        name: Name of the run.
        at: Begin of a new run, in seconds since the epoch.
    """

    def __init__(self, config: MLflowConfig, experiment: str, name: str, at: float) -> None:
        for variable, value in _ENVIRONMENT.items():
            os.environ.setdefault(variable, value)
        from mlflow.tracking import MlflowClient  # pyright: ignore[reportMissingImports]

        self._client = MlflowClient(config.uri)
        wanted = config.experiment or experiment
        found = self._client.get_experiment_by_name(wanted)
        identity = found.experiment_id if found else self._client.create_experiment(wanted)
        same = self._client.search_runs([identity], f"attributes.run_name = '{name}'", max_results=1)
        run = same[0] if same else self._client.create_run(identity, start_time=int(1000 * at), run_name=name)
        self._run = run.info.run_id

    def scalars(self, values: Mapping[str, float], step: int, at: float) -> None:
        """Send one point."""
        from mlflow.entities import Metric  # pyright: ignore[reportMissingImports]

        named = {name.replace("@", "_at_"): value for name, value in values.items()}  # MLflow refuses an @ in a name
        self._client.log_batch(self._run, [Metric(name, value, int(1000 * at), step) for name, value in named.items()])

    def close(self) -> None:
        """Mark the run as finished."""
        self._client.set_terminated(self._run)
