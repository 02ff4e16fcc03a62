"""Live view of a run: the tracker that the command writes to."""

from typing import Annotated, Literal, Self
from urllib.parse import urlsplit

from pydantic import Field, model_validator

from features.declaration import Declaration


class TensorBoardConfig(Declaration):
    """Event files of TensorBoard below the root, in `tracking/<line>/<run>/`.

    Args:
        kind: The tracker.
        every_s: Time in seconds between two points of a run.
    """

    kind: Literal["tensorboard"]
    every_s: float = Field(default=10.0, gt=0)


class MLflowConfig(Declaration):
    """One run of an MLflow server for each attempt; needs the packages of `requirements/mlflow.txt`.

    Args:
        kind: The tracker.
        uri: Tracking URI of MLflow, e.g. `https://mlflow.example.com`. Credentials come from MLflow's own variables in
            the environment.
        experiment: Name of the experiment; absent: the project's `name`.
        every_s: Time in seconds between two points of a run.
    """

    kind: Literal["mlflow"]
    uri: str = Field(min_length=1)
    experiment: str | None = Field(default=None, min_length=1)
    every_s: float = Field(default=10.0, gt=0)

    @model_validator(mode="after")  # of the section, since an error of a key repeats its value
    def _check(self) -> Self:
        if "@" in urlsplit(self.uri).netloc:
            raise ValueError(
                "a uri with credentials: leave them out, and set MLFLOW_TRACKING_USERNAME and "
                "MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN"
            )
        return self


class NoTrackerConfig(Declaration):
    """No tracker; Ray's endpoint shows the metrics all the same.

    Args:
        kind: The tracker.
        every_s: Time in seconds between two points of a run.
    """

    kind: Literal["none"]
    every_s: float = Field(default=10.0, gt=0)


TrackingConfig = Annotated[TensorBoardConfig | MLflowConfig | NoTrackerConfig, Field(discriminator="kind")]
TENSORBOARD = TensorBoardConfig(kind="tensorboard")
