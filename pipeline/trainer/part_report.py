"""Report of rank 0 on a part of a day: the progress that the command shows, and the figures of the live view."""

import contextlib
import time
from collections.abc import Iterator
from typing import Any

from pipeline.checkpoint.saver import Saver
from pipeline.cluster.progress import ProgressReporter, TrainingFigures
from pipeline.trainer.part_position import PartPosition
from pipeline.trainer.step_sync import CountedBatches
from pipeline.trainer.train_job import TrainJob


class PartReport:
    """Report on a part, posted at most twice a second; between two posts a step costs two looks at the clock.

    Args:
        board: A `ProgressBoard`; None on all ranks but the first.
        job: The model.
        position: Begin of the part.
        batches: Its batches.
        saver: Writer of checkpoints.
    """

    def __init__(
        self, board: Any, job: TrainJob, position: PartPosition, batches: CountedBatches, saver: Saver
    ) -> None:
        self._job, self._position, self._batches, self._saver = job, position, batches, saver
        log = position.part.log
        self._reporter = ProgressReporter(board, f"{job.what} {log.day}", log.num_rows)
        self._began, self._waited_s = time.monotonic(), 0.0

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Count the time of the context as waiting for a batch."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self._waited_s += time.perf_counter() - began

    def post(self, *, final: bool = False) -> None:
        """Post the progress if it is time to, or at the end of the part."""
        if not final and not self._reporter.is_due():
            return
        names, losses = self._job.config.log_schema.task_names, self._batches.losses
        named = {} if losses is None else dict(zip(names, losses.tolist(), strict=True))
        rows = self._position.header.rows_before + self._batches.num_rows
        self._reporter.post(self._position.part.log.num_rows if final else rows, named, self._figures(), final=final)

    def _figures(self) -> TrainingFigures:
        names, header = self._job.config.log_schema.task_names, self._position.header
        counted, saved = self._batches.in_space, self._saver.newest
        now = [0.0] * len(names) if counted is None else counted.tolist()
        so_far = header.in_space_before or [0] * len(names)
        return TrainingFigures(
            line=self._job.line.name,
            day=header.day,
            attempt=header.attempt or "",
            part=header.place,
            rows_before=header.rows_before,
            rows_in_space={name: int(a + b) for name, a, b in zip(names, so_far, now, strict=True)},
            seconds=time.monotonic() - self._began,
            waited_s=self._waited_s,
            save_s=saved.seconds if saved else None,
            save_stall_s=saved.stall_s if saved else None,
        )
