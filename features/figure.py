"""Figures as messages show them: four digits."""

import math
from collections.abc import Mapping


def figure(value: float) -> str:
    """Return a figure in four significant digits, e.g. `0.7000`, `12.35` or `1,235,000`.

    Args:
        value: A number of any size; NaN and infinity are named.
    """
    if not math.isfinite(value):
        return str(float(value))
    rounded = float(f"{value:.4g}")
    return f"{rounded:#.4g}" if abs(rounded) < 1000 else f"{rounded:,.0f}"


def named_figures(values: Mapping[str, float]) -> str:
    """Return figures by name, e.g. `ctr 0.6931, vtr 0.5123`."""
    return ", ".join(f"{name} {figure(value)}" for name, value in values.items())
