"""Columns of predictions."""

from features.declaration import Declaration, Name


class PredictionsConfig(Declaration):
    """Columns that `jobs.predict` writes beside the predictions.

    Args:
        keys: Columns of the log that name a row, such as the ids of user, item and request; copied as they are.
    """

    keys: list[Name] = []
