"""What every worker of a training run is given."""

from dataclasses import dataclass
from typing import Any

from features.schema import Schema
from features.statistics import Statistics
from pipeline.config.project import Config
from pipeline.ingest.parts import Part
from pipeline.lineage.line import Line
from pipeline.lineage.records import RunScope


@dataclass(frozen=True, slots=True)
class TrainJob:
    """What every worker of a training run is given to train one model.

    Args:
        config: The project's configuration.
        statistics: Frozen along the line.
        line: Where checkpoints go.
        days: ISO dates of the days of the run.
        parts: What is read for them, in order.
        passes: Passes over all of it.
        read: What rows are read with: the features of the configuration, and at least its tasks.
        admission: Reference to an `Admission` in the object store, which the workers of a node read without copies.
        board: A `ProgressBoard`, or None.
        what: What its progress is called.
    """

    config: Config
    statistics: Statistics | None
    line: Line
    days: tuple[str, ...]
    parts: tuple[Part, ...]
    passes: int
    read: Schema
    admission: Any
    board: Any
    what: str = "train"

    @property
    def run(self) -> RunScope:
        """What manifests call the run by, which is the same however often it is started."""
        return RunScope(days=self.days, passes=self.passes)
