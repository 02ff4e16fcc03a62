"""Calibration curve: mean prediction and mean label of rows in bins of equal weight, in the order of predictions."""

import numpy as np

CALIBRATION_BINS = 20
"""Number of bins."""

CurvePoint = dict[str, float]
"""A bin's `mean_prediction`, `mean_label`, and the weight of its `rows`."""


def calibration_curve(
    predictions: np.ndarray, labels: np.ndarray, weights: np.ndarray, num_bins: int = CALIBRATION_BINS
) -> list[CurvePoint]:
    """Return the points of a curve.

    Rows with one prediction stay together, in the bin in which the middle of their weight lies. So a model with few
    distinct predictions has fewer points.

    Args:
        predictions: Prediction of each group of rows, in the label's unit, float64 of shape (N,).
        labels: Mean label of each group, shape (N,).
        weights: Weight of each group, shape (N,).
        num_bins: Number of bins.

    Returns:
        At most `num_bins` points, in the order of predictions; none without weight.
    """
    weighing = weights > 0
    values, place = np.unique(predictions[weighing], return_inverse=True)
    if len(values) == 0:
        return []
    weight = np.bincount(place, weights[weighing])
    label = np.bincount(place, (weights * labels)[weighing])
    middle = (np.cumsum(weight) - weight / 2) / weight.sum()
    bins = np.minimum((middle * num_bins).astype(np.int64), num_bins - 1)
    mass = np.bincount(bins, weight)
    sums = np.bincount(bins, weight * values), np.bincount(bins, label)
    return [
        {
            "mean_prediction": float(sums[0][place] / mass[place]),
            "mean_label": float(sums[1][place] / mass[place]),
            "rows": float(mass[place]),
        }
        for place in np.flatnonzero(mass)
    ]
