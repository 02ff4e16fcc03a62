"""Position of a model on its line: all that a manifest says of it beside the cursor, and no tensor."""

import time
from dataclasses import dataclass, field
from typing import Any

from features.ids import IdType
from pipeline.ingest.units import DayLog
from pipeline.lineage.records import Manifest


@dataclass(slots=True)
class LineProgress:
    """Position of a model on its line; the number of its steps is the optimizer's.

    Args:
        day: ISO date of the day that is being trained; empty before the first.
        pass_index: Pass over the days that is being made.
        days_done: Days that the line has finished.
        id_types: Types of the id columns of all logs so far; a column may have none on a day.
        newest: Newest checkpoint that was handed to be saved.
        parent: Checkpoint of the finished day before.
        seconds_before: Seconds that attempts before this one have trained the log.
    """

    day: str = ""
    pass_index: int = 0
    days_done: int = 0
    id_types: dict[str, IdType] = field(default_factory=dict)
    newest: str | None = None
    parent: str | None = None
    seconds_before: float = 0.0
    _began: float = field(default_factory=time.monotonic)

    @classmethod
    def from_manifest(cls, manifest: Manifest) -> "LineProgress":
        """Return the position of a stored checkpoint."""
        return cls(
            day=manifest.day,
            pass_index=manifest.pass_index,
            days_done=manifest.days_done,
            id_types=manifest.id_types,
            newest=manifest.checkpoint,
            parent=manifest.checkpoint if manifest.complete else manifest.parent,
            seconds_before=0.0 if manifest.complete else manifest.seconds,
        )

    def begins(self, pass_index: int, day: str) -> bool:
        """Move to a day of a pass; return True if it is another one: a second pass over one day begins it again."""
        reached, self.pass_index, self.day = (self.pass_index, self.day), pass_index, day
        return reached != (pass_index, day)

    def begin_log(self, log: DayLog) -> None:
        """Start the clock of a log, at the seconds of the attempts before this one, and note the types of its ids."""
        self.id_types = self.id_types | log.id_types
        self._began, self.seconds_before = time.monotonic() - self.seconds_before, 0.0

    def manifest_fields(self) -> dict[str, Any]:
        """Return the fields of a `Manifest` that follow from the position."""
        seconds = time.monotonic() - self._began
        return {"parent": self.parent, "days_done": self.days_done, "id_types": self.id_types, "seconds": seconds}

    def saved(self, name: str, *, complete: bool) -> None:
        """Note a checkpoint that was handed to be saved."""
        self.newest = name
        self.parent = name if complete else self.parent
