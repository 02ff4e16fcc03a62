"""The interface of a tracker, and the run that its points belong to."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class RunKey:
    """Identity of a run of a tracker: one attempt at one day, or the ledger of a line.

    Args:
        line: Name of the line.
        day: ISO date; empty: the ledger.
        attempt: Fencing number of the attempt, in four digits.
        generation: Number of the day's training on its line; None: not read yet.
    """

    line: str
    day: str = ""
    attempt: str = ""
    generation: int | None = None

    @property
    def name(self) -> str:
        """Name of the run within its line; another attempt has another name."""
        return f"{self.day}-g{self.generation}-a{self.attempt}" if self.day else "ledger"


class Tracker(Protocol):
    """A place that keeps the points of one run; it may wait, and may raise."""

    def scalars(self, values: Mapping[str, float], step: int, at: float) -> None:
        """Keep one point.

        Args:
            values: Values by name.
            step: Rows trained; in the run of the ledger, days since 1970-01-01.
            at: Wall time, in seconds since the epoch.
        """
        ...

    def close(self) -> None:
        """Keep what has been held back, and end."""
        ...
