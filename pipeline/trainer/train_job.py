"""Arguments of every worker of a training run."""

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
    """Arguments of every worker of a training run for one model.

    Args:
        config: The project's configuration.
        statistics: Statistics that are frozen along the line.
        line: Line of the checkpoints.
        days: ISO dates of the days of the run.
        parts: Parts to read for these days, in order.
        passes: Number of passes over all parts.
        read: Schema for reading rows: the features of `config`, and at least its tasks.
        admission: Reference to an `Admission` in the object store, which the workers of a node read without copies.
        board: A `ProgressBoard`, or None.
        what: Name of its progress.
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
        """Identity of the run in manifests, independent of the number of starts."""
        return RunScope(days=self.days, passes=self.passes)
