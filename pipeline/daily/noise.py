"""Chance in the mean of a few rows: by how much a day may differ from the usual although nothing has changed."""

import math
from collections.abc import Iterable


def mean_noise(variance: float, scale: float, rows: float, errors: float) -> float:
    """Return the largest deviation of a mean that chance explains.

    Bernstein's inequality (Boucheron, Lugosi and Massart, "Concentration Inequalities", 2013, theorem 2.10): so many
    standard errors, and a term for few rows, where a mean is not normal; by that term a single row may be anything.

    Args:
        variance: Variance of a row.
        scale: Size of a large value of a row; 1 for a share.
        rows: Number of rows; infinite deviation for 0.
        errors: Standard errors.
    """
    if rows <= 0:
        return math.inf
    return errors * math.sqrt(variance / rows) + errors * errors * scale / (6 * rows)


def share_noise(share: float, rows: float, errors: float) -> float:
    """Return the largest deviation of a share of rows that chance explains; arguments as in `mean_noise`."""
    return mean_noise(share * (1 - share), 1.0, rows, errors)


def rows_of_both(today: float, earlier: Iterable[float]) -> float:
    """Return the rows whose mean is as uncertain as the difference between a day's mean and the mean of earlier days.

    Args:
        today: Rows of the day.
        earlier: Rows of each earlier day.
    """
    known = sum(earlier)
    return today * known / (today + known) if today and known else 0.0
