"""Models that a worker holds at once, and their measurement on one reading of a day."""

import itertools
from collections import deque
from collections.abc import Iterator, Sequence

import torch
import torch.distributed as dist

from models.batch import RankingBatch
from models.ranker import StepOutput
from pipeline.cluster.progress import ProgressReporter
from pipeline.config.project import Config
from pipeline.evaluation.accumulate import Measured
from pipeline.evaluation.evaluate import Loaded, Subject, load
from pipeline.evaluation.left_out import LeftOut, refusal
from pipeline.ingest.batcher import Batcher
from pipeline.ingest.datasource import Parcel
from pipeline.ingest.parts import Part
from pipeline.lineage.line import Line
from pipeline.trainer.step_sync import CountedBatches
from pipeline.trainer.worker_setup import Groups


class ResidentModels:
    """Sharded models of a worker, as many as the largest group so far; a model that stays is not loaded again.

    Args:
        config: Configuration of all of them.
        line: Line by which the checkpoints are named.
        groups: The worker's process groups.
        device: The worker's device.
    """

    def __init__(self, config: Config, line: Line, groups: Groups, device: torch.device) -> None:
        self._config, self._line, self._groups, self._device = config, line, groups, device
        self._held: dict[str, Loaded] = {}

    def hold(self, checkpoints: Sequence[str]) -> list[Loaded]:
        """Return the models of checkpoints, in their order, in the tensors of models that are left; collective."""
        left = [name for name in self._held if name not in checkpoints]
        for name in checkpoints:
            if name not in self._held:
                free = self._held.pop(left.pop()) if left else None
                self._held[name] = self._load(name, free)
        return [self._held[name] for name in checkpoints]

    def _load(self, name: str, free: Loaded | None) -> Loaded:
        return load(Subject(self._config, self._line, name), free, self._groups, self._device)


@torch.no_grad()
def measure_reading(
    config: Config,
    part: Part,
    parcels: Iterator[Parcel],
    groups: Groups,
    models: Sequence[tuple[Loaded, int, Measured]],
    reporter: ProgressReporter,
) -> str | None:
    """Measure models on the same reading of a day: each batch is made once per encoder, and goes to all its models.

    Args:
        config: The project's configuration.
        part: The day, and the encoders of its rows.
        parcels: This rank's units, each of them once per encoder.
        groups: The worker's process groups.
        models: Each model with the place of its encoder among the part's, and its metrics.
        reporter: Reporter of the rows done.

    Returns:
        The error of reading, or of too many unreadable rows, the same text on every rank; None without one.
    """
    left_out = LeftOut(part.log)
    lanes = by_encoder(left_out.watched(parcels), len(part.encoders))
    feeds = [_batches(config, part, lane, groups) for lane in lanes]
    shared = _shared(feeds, [place for _, place, _ in models])
    for loaded, _, _ in models:
        loaded.pipeline.reset()
    ended = False
    while not ended:
        for (loaded, _, measured), batches in zip(models, shared, strict=True):
            try:
                output: StepOutput = loaded.pipeline.progress(batches)
            except StopIteration:  # of the first model, on all ranks alike; the others have had as many batches
                ended = True
                break
            measured.update(output.outputs, output.batch)
        reporter.post(feeds[0].num_rows, {})
    errors = [str(feed.error) for feed in feeds if feed.error]
    problems = [measured.problem for _, _, measured in models if measured.problem]
    return refusal(next(iter(errors + problems), None), left_out, config.ingest.max_quarantined, groups)


def by_encoder(parcels: Iterator[Parcel], num_encoders: int) -> list[Iterator[Parcel]]:
    """Deal the parcels of a lane, in which every unit comes once per encoder, to one lane per encoder.

    The lanes are read in step, so at most a unit waits. A unit that one encoder refuses is without rows in all lanes.

    Args:
        parcels: Units of the lane.
        num_encoders: Number of encoders.
    """
    waiting: list[deque[Parcel]] = [deque() for _ in range(num_encoders)]

    def lane(place: int) -> Iterator[Parcel]:
        while True:
            if not waiting[place]:
                unit = list(itertools.islice(parcels, num_encoders))
                if not unit:
                    return
                bad = next((parcel for parcel in unit if parcel.rows is None), None)
                for queue, parcel in zip(waiting, unit, strict=True):
                    queue.append(bad or parcel)
            yield waiting[place].popleft()

    return [lane(place) for place in range(num_encoders)]


def _batches(config: Config, part: Part, lane: Iterator[Parcel], groups: Groups) -> CountedBatches:
    """Return the batches of an encoder, summed over the ranks; no loss is asked for."""
    none, ones = torch.zeros(len(config.log_schema.tasks)), torch.ones(len(config.log_schema.tasks))
    batcher = Batcher(config.log_schema, part.log.units, lane, config.ingest.batch_size, interleave=1)
    return CountedBatches(batcher.next_batch, 0, lambda step: ones, none.clone, groups.counts)


def _shared(feeds: Sequence[CountedBatches], places: Sequence[int]) -> list[Iterator[RankingBatch]]:
    """Return an iterator per model over the batches of its encoder; the few that pipelines fetch ahead are kept."""
    copies = [iter(itertools.tee(feed, places.count(place))) for place, feed in enumerate(feeds)]
    return [next(copies[place]) for place in places]


def reporter_of(board: object, part: Part) -> ProgressReporter:
    """Return the reporter of a day's rows, which posts on rank 0 only."""
    return ProgressReporter(board if dist.get_rank() == 0 else None, f"backfill {part.log.day}", part.log.num_rows)
