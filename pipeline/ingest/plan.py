"""The stream of a job: segments that the command plans for the number of ranks, split by Ray Data into lanes.

The checkpoint to resume from is chosen once, when the stream is planned. It travels in the first parcel, with the
fencing number of this plan's attempt. So the weights that a rank restores and the rows that it receives cannot come
from different checkpoints, and two attempts never write into one directory.
"""

import contextlib
import gc
import itertools
import json
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import ray.data
from ray.data import DataContext, DataIterator, ExecutionResources

from features.encoding import Encoder
from features.errors import DataError
from features.holdout import HoldoutConfig, Rows
from pipeline.config.ingest import IngestConfig
from pipeline.ingest.bundles import SMALL_ROWS, Bundles, PlannedParcel, SegmentBundles, group_bundles
from pipeline.ingest.datasource import ReadPlan, UnitDatasource
from pipeline.ingest.deal import Lanes, bundled, rounds
from pipeline.ingest.lanes import DealtLog, ResumePoint, deal_log
from pipeline.ingest.pacing import PacedLoop
from pipeline.ingest.parts import Part
from pipeline.ingest.units import Units
from pipeline.storage.files import Storage

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class StreamStart:
    """Beginning of a model's stream.

    Args:
        attempt: The fencing number of the attempt; None where nothing is written.
        resume: The checkpoint to continue from; None: from nothing.
        done: Number of the first parts that need no reading any more, of a run that trains nothing.
    """

    attempt: str | None = None
    resume: ResumePoint | None = None
    done: int = 0


@dataclass(frozen=True, slots=True)
class Header:
    """Content of the first parcel of a segment; every rank gets it, so its size does not depend on the day's.

    Args:
        pass_index: The pass over the days.
        day: ISO date of the day that is trained.
        log_day: ISO date of the log that is read.
        rows_before: Rows of the log that the model had seen when the stream was planned.
        in_space_before: Those in each task's sample space, in task order; empty without any.
        within: True if the model's checkpoint is within this log; its cursor and lanes are continued.
        checkpoint: Checkpoint to restore before the first batch; only in a model's first segment.
        attempt: The fencing number of the attempt.
        model: Index of the segment's model, among the models that a run trains one after the other.
        place: Index of the segment among those of its model, those before them that were done already included.
    """

    pass_index: int
    day: str
    log_day: str
    rows_before: int = 0
    in_space_before: Sequence[int] = ()
    within: bool = False
    checkpoint: str | None = None
    attempt: str | None = None
    model: int = 0
    place: int = 0

    def to_json(self) -> str:
        """Return the header as the text of a parcel."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "Header":
        """Read what `to_json` wrote."""
        return cls(**json.loads(text))


@dataclass(frozen=True, slots=True)
class PlannedSegment:
    """A log to read in one pass.

    Args:
        part: The part.
        header: Header that every rank gets.
        dealt: The log's units, dealt to the ranks.
    """

    part: Part
    header: Header
    dealt: DealtLog


@dataclass(frozen=True, slots=True)
class RunPlan:
    """Rows that a run reads, and their order.

    Args:
        logs: Storage of the log files.
        parts: Parts to read, in order.
        passes: Number of passes over all parts.
        encoder: Encoder of the rows.
        ingest: Sizes, shuffling and bounds.
        seed: The run's seed.
        starts: Function of each model that begins an attempt and returns its start; called whenever the stream is
            planned: at the beginning, and after every restart of the workers. Each model gets all of its remaining rows
            before the next model.
        holdout: Rows that are never trained.
        rows: Rows that have labels: `trained`, `all` or `held_out`; with `held_out` only these rows are read.
        block_rows: Whole row groups of together at most so many rows share a read task, and a block on one rank.
        further: References to encoders of the same schema with other statistics or vocabularies, from index 1 on; the
            parts say which they need.
    """

    logs: Storage
    parts: tuple[Part, ...]
    passes: int
    encoder: Encoder
    ingest: IngestConfig
    seed: int
    starts: tuple[Callable[[], StreamStart], ...]
    holdout: HoldoutConfig | None = None
    rows: Rows = "trained"
    block_rows: int = SMALL_ROWS
    further: tuple[Any, ...] = ()

    def begin_attempts(self) -> list[StreamStart]:
        """Begin an attempt of every model; from then on only the checkpoints of this attempt count.

        Raises:
            DataError: Another run holds a line, or a line does not fit what is asked for.
        """
        return [begin() for begin in self.starts]

    def segments(self, starts: Sequence[StreamStart], num_ranks: int) -> list[PlannedSegment]:
        """Plan the segments that are left to read, each dealt to the ranks; a pure function.

        Args:
            starts: Start of each model.
            num_ranks: Number of ranks.

        Raises:
            DataError: The log has changed since the checkpoint was written.
        """
        begun = enumerate(starts)
        with _no_collection():
            return [segment for model, start in begun for segment in self._of_model(model, start, num_ranks)]

    def _of_model(self, model: int, start: StreamStart, num_ranks: int) -> list[PlannedSegment]:
        todo = self._left(start.resume)[start.done :]
        segments = []
        for place, (pass_index, part, resume) in enumerate(todo, start.done):
            dealt = deal_log(part.log, num_ranks, pass_index, self.ingest, self.seed, resume)
            header = Header(
                pass_index,
                part.day,
                part.log.day,
                rows_before=dealt.before.num_rows,
                in_space_before=dealt.before.in_space,
                within=resume is not None,
                checkpoint=start.resume.checkpoint if start.resume and not segments else None,
                attempt=start.attempt,
                model=model,
                place=place,
            )
            segments.append(PlannedSegment(part, header, dealt))
        return segments

    def _left(self, resume: ResumePoint | None) -> list[tuple[int, Part, ResumePoint | None]]:
        """Return passes and parts that are left, the first of them with the checkpoint if that is within it."""
        every = [(pass_index, part) for pass_index in range(self.passes) for part in self.parts]
        todo: list[tuple[int, Part, ResumePoint | None]] = [(pass_index, part, None) for pass_index, part in every]
        reached = (resume.pass_index, (resume.day, resume.log_day)) if resume else None
        places = [place for place, (pass_index, part) in enumerate(every) if (pass_index, part.key) == reached]
        if resume is None or not places:  # no checkpoint, or one of an earlier day: all segments are left
            return todo
        begun = [] if resume.complete else [(*every[places[0]], resume)]
        return [*begun, *todo[places[0] + 1 :]]

    def bundles(self, segments: Sequence[PlannedSegment], num_ranks: int) -> Bundles:
        """Return the parcels of all ranks, as blocks in the splitter's order of dealing."""
        if not segments:  # Ray Data wants something to read
            return Bundles([SegmentBundles.signals(PlannedParcel("blank", 0), num_ranks)])
        with _no_collection():
            return Bundles([self._of_segment(*numbered, num_ranks) for numbered in enumerate(segments)])

    def _of_segment(self, number: int, segment: PlannedSegment, num_ranks: int) -> SegmentBundles:
        units, seen = segment.part.log.units, segment.dealt.before.seen
        skips = np.zeros(len(units), np.int64)
        skips[list(seen)] = list(seen.values())
        indices, ends = _in_turns(segment.dealt.lanes, units, (units.num_rows - skips).tolist(), self.block_rows)
        return SegmentBundles(
            number,
            num_ranks,
            PlannedParcel("start", number, text=segment.header.to_json()),
            units.chosen(indices),
            indices,
            skips[indices],
            ends,
            segment.part.encoders,
        )

    def read_plan(self, segments: Sequence[PlannedSegment]) -> ReadPlan:
        """Return the input of the data tasks for reading segments."""
        return ReadPlan(
            logs=self.logs,
            encoder=self.encoder,
            passes=tuple(segment.header.pass_index for segment in segments),
            seed=self.seed,
            shuffle_rows=self.ingest.shuffle.rows,
            tasks=tuple(segment.part.tasks for segment in segments),
            holdout=self.holdout,
            rows=self.rows,
            further=self.further,
        )

    def lanes(self, num_ranks: int) -> list[DataIterator]:
        """Begin an attempt of every model, and return the remaining rows as one lane per rank.

        Ray Train's own split, `equal=True`, drops rows to make the lanes even.
        """
        return self.begin_stream(num_ranks).streaming_split(num_ranks, equal=False)

    def begin_stream(self, num_ranks: int) -> ray.data.Dataset:
        """Begin an attempt of every model, and return the remaining rows as a Ray Data set of parcels."""
        try:
            segments = self.segments(self.begin_attempts(), num_ranks)
            bundles = self.bundles(segments, num_ranks)
        except DataError as error:  # the workers report it, as an error that comes later, and the job ends
            signal = PlannedParcel("bad", 0, text=str(error))
            segments, bundles = [], Bundles([SegmentBundles.signals(signal, num_ranks)])
        plan = self.read_plan(segments)
        tasks = group_bundles(bundles, self.block_rows)
        context = DataContext.get_current().copy()  # the process's own stays as it is
        context.execution_options.preserve_order = True
        context.execution_options.label_selector = self.ingest.label_selector or None
        context.target_max_block_size = 1  # bytes: every row is a block of its own
        context.enable_progress_bars = False
        context.custom_execution_callback_classes = [PacedLoop]
        context.execution_options.resource_limits = ExecutionResources(
            object_store_memory=self.ingest.object_store_mb * 2**20
        )
        with DataContext.current(context):
            return ray.data.read_datasource(
                UnitDatasource(plan, tasks),
                override_num_blocks=len(tasks),
                concurrency=self.ingest.read_tasks,
                num_cpus=self.ingest.read_cpus,
            )


@contextlib.contextmanager
def _no_collection() -> Iterator[None]:
    """Switch Python's cyclic garbage collector off: it would walk over a day's many new objects again and again."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _in_turns(lanes: Lanes, units: Units, rows: Sequence[int], block_rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the units of all blocks in the splitter's order of dealing, and each block's first; a blank has none.

    Returns:
        Indices of units, int32 of shape (N,), and places among them, int64 of shape (B + 1,).
    """
    blocks: list[list[int]] = []
    numbered: Lanes = []
    for lane in lanes:
        own = bundled(lane, units, rows, block_rows)
        numbered.append(list(range(len(blocks), len(blocks) + len(own))))
        blocks += own
    sizes = {number: sum([rows[index] for index in block]) for number, block in enumerate(blocks)}
    turns = rounds(numbered, sizes, slack_rows=2 * max(sizes.values(), default=0))
    dealt = [[] if number is None else blocks[number] for turn in turns for number in turn]
    ends = np.cumsum([0, *map(len, dealt)], dtype=np.int64)
    return np.fromiter(itertools.chain.from_iterable(dealt), np.int32, int(ends[-1])), ends
