"""Acceptances: reasons of a person to continue in spite of a check."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Accepted:
    """Reasons of a person to continue in spite of a check.

    Args:
        anomaly: Reason to accept the findings of preflight.
        gate: Reason to accept the findings of the gate.
        skip: Reason to leave the day out; of one day alone.
    """

    anomaly: str | None = None
    gate: str | None = None
    skip: str | None = None
