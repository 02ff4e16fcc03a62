"""Position of a model within a part of a day, and the manifest of a checkpoint that is saved there."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.ingest.cursor import DayCursor, check_audit, check_quarantine, union
from pipeline.ingest.parts import Part
from pipeline.ingest.plan import Header
from pipeline.lineage.manifest import position_files, trained_fields
from pipeline.lineage.records import Manifest
from pipeline.trainer.train_job import TrainJob
from pipeline.trainer.train_state import check_finite


@dataclass(frozen=True, slots=True)
class PartPosition:
    """Rows of a part that the model has seen.

    Args:
        part: The part.
        header: Header of its segment.
        before: Rows that the model had seen when the stream was planned.
        stepped: Rows that this rank has stepped since.
    """

    part: Part
    header: Header
    before: DayCursor
    stepped: DayCursor

    def checkpoint(self, step: int, *, complete: bool) -> str:
        """Return the name of a checkpoint that is saved here.

        A day may end on the very step of a checkpoint within it, and two checkpoints never share a directory.
        """
        suffix = self.part.suffix if complete else ""
        return f"checkpoints/{self.part.day}/{self.header.attempt}/{step:010d}{suffix}"

    def describe(
        self, job: TrainJob, shares: Sequence[tuple[DayCursor, list[str]]], fields: dict[str, Any]
    ) -> tuple[Manifest, dict[str, bytes]]:
        """Check what all ranks have stepped, and describe it; on rank 0 alone.

        Args:
            job: The model.
            shares: Rows stepped and names of tensors that are not finite, by rank.
            fields: Fields of the manifest that do not follow from the position.

        Returns:
            The manifest, and by name the files of cursor and lanes.

        Raises:
            DataError: A finished part was not stepped row by row once, too much of it is quarantined, or a tensor is
                not finite.
        """
        cursor = union([self.before, *(stepped for stepped, _ in shares)])
        check_quarantine(cursor, self.part.log, job.config.ingest.max_quarantined)
        if fields["complete"]:
            check_audit(cursor, self.part.log)
            check_finite([names for _, names in shares], self.part.day)
        follows = trained_fields(job.config, job.statistics, self.header, self.part, cursor)
        manifest = Manifest(**follows, **fields, attempt=self.header.attempt or "", run=job.run)
        return manifest, position_files(self.header, self.part, cursor)
