"""Distances between positive figures, as ratios."""

import math


def within_ratio(value: float, usual: float, ratio: float) -> bool:
    """Return True if neither of two figures is more than `ratio` times the other."""
    return ratio_apart(value, usual) <= math.log(ratio)


def ratio_apart(value: float, usual: float) -> float:
    """Return the absolute logarithm of the ratio of two figures of one sign; infinite if the ratio is undefined."""
    if value == usual:
        return 0.0
    return abs(math.log(value / usual)) if usual and value / usual > 0 else math.inf
