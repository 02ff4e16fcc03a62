"""Columns of predictions."""

from pydantic import model_validator

from features.declaration import Declaration, Name


class PredictionsConfig(Declaration):
    """Columns that `jobs.predict` writes beside the predictions.

    Args:
        keys: Columns of the log that name a row, such as the ids of user, item and request; copied as they are.
    """

    keys: list[Name] = []

    @model_validator(mode="after")
    def _check(self) -> "PredictionsConfig":
        if len(set(self.keys)) < len(self.keys):
            raise ValueError(f"keys: {self.keys} has a name twice")
        added = [name for name in self.keys if name.startswith(("prediction_", "label_", "weight_"))]
        if added:
            raise ValueError(f"keys: {added[0]!r} may be the name of a column that is added: rename the log's")
        return self
