"""Rules of a RayJob that is submitted."""

from typing import Any


def problems(rayjob: dict[str, Any]) -> list[str]:
    """Return one line for each problem."""
    return []
