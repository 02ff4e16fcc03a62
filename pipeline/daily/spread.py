"""Spread of a figure over the newest days: how much this line's figure varies from day to day."""

import statistics
from collections.abc import Sequence

_NORMAL = 1.4826  # of normal figures, the standard deviation over the median absolute deviation
_FEW = {2: 1.196, 3: 1.495, 4: 1.363, 5: 1.206, 6: 1.2, 7: 1.14, 8: 1.129, 9: 1.107}


def spread(figures: Sequence[float]) -> float:
    """Return 1.4826 times the median absolute deviation from the median, the standard deviation of normal figures.

    A minority of the days cannot move it, nor the median. Few figures lie too near to their own median, which a factor
    by their number corrects (Croux and Rousseeuw, "Time-efficient algorithms for two highly robust estimators of
    scale", 1992).

    Args:
        figures: One for each day; 0 for none.
    """
    if not figures:
        return 0.0
    middle = statistics.median(figures)
    number = len(figures)
    few = _FEW.get(number, number / (number - 0.8) if number > 1 else 1.0)
    return few * _NORMAL * statistics.median(abs(figure - middle) for figure in figures)
