"""Position of a model within a part of a day, and the manifest of a checkpoint that is saved there."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from features.errors import DataError
from pipeline.ingest.cursor import DayCursor, check_audit, check_quarantine, expected_sums, joined_sums, union
from pipeline.ingest.lanes import DealtLog, deal_log
from pipeline.ingest.parts import Part
from pipeline.ingest.plan import Header
from pipeline.lineage.manifest import position_files, trained_fields
from pipeline.lineage.records import Manifest
from pipeline.trainer.train_job import TrainJob
from pipeline.trainer.train_state import check_finite


@dataclass(frozen=True, slots=True)
class RankShare:
    """Share of a rank in the description of a checkpoint.

    Args:
        stepped: Rows that the rank has stepped.
        not_finite: Names of its tensors that are not finite; empty within a part.
        expected: Its share of the sums that a finished part is audited with; empty within a part.
    """

    stepped: DayCursor
    not_finite: list[str]
    expected: np.ndarray


def deal_again(job: TrainJob, part: Part, header: Header, num_ranks: int) -> DealtLog:
    """Deal a part as the stream was planned, from the same checkpoint; on rank 0, which writes lanes and cursor.

    Args:
        job: The model.
        part: The part.
        header: Header of its segment.
        num_ranks: Number of ranks.

    Raises:
        DataError: The checkpoint was damaged since.
    """
    resume = None
    if header.within and header.checkpoint is not None:
        manifest = job.line.read_manifest(header.checkpoint)
        if manifest is None:
            raise DataError(f"{job.line.storage.url}/{header.checkpoint} is gone or damaged: start the command again")
        resume = job.line.resume_point(manifest)
    return deal_log(part.log, num_ranks, header.pass_index, job.config.ingest, job.config.seed, resume)


@dataclass(frozen=True, slots=True)
class PartPosition:
    """Rows of a part that the model has seen.

    Args:
        part: The part.
        header: Header of its segment.
        rank: This rank.
        num_ranks: Number of ranks.
        dealt: Result of `deal_again` on rank 0; None on the others.
        stepped: Rows that this rank has stepped since the stream was planned.
    """

    part: Part
    header: Header
    rank: int
    num_ranks: int
    dealt: DealtLog | None
    stepped: DayCursor = field(default_factory=DayCursor)

    def checkpoint(self, step: int, *, complete: bool) -> str:
        """Return the name of a checkpoint that is saved here.

        A day may end on the very step of a checkpoint within it, and two checkpoints never share a directory.
        """
        suffix = self.part.suffix if complete else ""
        return f"checkpoints/{self.part.day}/{self.header.attempt}/{step:010d}{suffix}"

    def share(self, not_finite: list[str], *, complete: bool) -> RankShare:
        """Return this rank's share in the description of a checkpoint that is saved here.

        Args:
            not_finite: Names of this rank's tensors that are not finite.
            complete: True if the part is finished.
        """
        units = self.part.log.units if complete else []
        return RankShare(self.stepped, not_finite, expected_sums(units, self.rank, self.num_ranks))

    def describe(
        self, job: TrainJob, shares: Sequence[RankShare], fields: dict[str, Any]
    ) -> tuple[Manifest, dict[str, bytes]]:
        """Check what all ranks have stepped, and describe it; on rank 0 alone.

        Args:
            job: The model.
            shares: Shares of the ranks, by rank.
            fields: Fields of the manifest that do not follow from the position.

        Returns:
            The manifest, and by name the files of cursor and lanes.

        Raises:
            DataError: A finished part was not stepped row by row once, too much of it is quarantined, or a tensor is
                not finite.
        """
        log, dealt = self.part.log, self.dealt
        assert dealt is not None
        cursor = union([dealt.before, *(share.stepped for share in shares)])
        check_quarantine(cursor, log, job.config.ingest.max_quarantined)
        if fields["complete"]:
            check_audit(cursor, log, joined_sums([share.expected for share in shares]))
            check_finite([share.not_finite for share in shares], self.part.day)
        stored = cursor.to_stored(log.units)
        follows = trained_fields(job.config, job.statistics, self.header, self.part, stored)
        manifest = Manifest(**follows, **fields, attempt=self.header.attempt or "", run=job.run)
        return manifest, position_files(self.part, dealt.lanes, stored)
