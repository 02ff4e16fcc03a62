"""Users' vectors as Parquet: one row per user of some days, computed by a checkpoint with a user tower."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
import torch.distributed as dist
from ray.data import DataIterator
from torch import Tensor, nn

from features.errors import ConfigError, DataError, Interrupted
from features.ids import is_id
from models.batch import RankingBatch
from models.user import UserArch
from pipeline.cluster.progress import ProgressBoard
from pipeline.cluster.session import ray_session, run_workers
from pipeline.config.project import Config
from pipeline.evaluation.evaluate import EvaluateJob, Subject, in_order, listed_days, load, measure_part, passed_over
from pipeline.evaluation.subject import encoder_of, published
from pipeline.ingest.datasource import read_unit
from pipeline.ingest.parts import Part, whole_days
from pipeline.ingest.plan import RunPlan, StreamStart
from pipeline.ingest.receive import read_segments, receive_blocks
from pipeline.ingest.units import Unit
from pipeline.lineage.compatible import check_same_schema
from pipeline.lineage.line import Line
from pipeline.lineage.log_form import check_ids
from pipeline.log_passes.reduce_units import MergedRuns
from pipeline.scoring.newest_rows import PLACES, NewestRows, common_type, id_types, newest_over_ranks
from pipeline.storage.files import Storage
from pipeline.trainer.worker_setup import begin_worker, refuse_damage


@dataclass(frozen=True, slots=True)
class VectorsJob:
    """Job of every worker.

    Args:
        reading: The pass over the days.
        logs: Storage of the logs, built by the command, since a relative path means another place in a worker.
        column: The log's column of users' ids.
        out: Storage of the written files.
    """

    reading: EvaluateJob
    logs: Storage
    column: str
    out: Storage


def write_user_vectors(
    config: Config, days: Sequence[str], out: str, column: str, checkpoint: str | None = None
) -> dict[str, Any]:
    """Compute a vector for each user of some days, and write them to Parquet files.

    The last row of a user counts, in the order of days, files and rows: our reading, as a log is in order of time.

    Args:
        config: The project's configuration.
        days: ISO dates, in order.
        out: Directory or s3:// prefix without files.
        column: The log's column of users' ids; rows without one are left out.
        checkpoint: Name of the checkpoint below the line; None: the newest published.

    Returns:
        The figures of the command's JSON line.

    Raises:
        ConfigError: The model has no user tower, the checkpoint does not exist, or the target is not empty.
        DataError: The logs or the checkpoint do not fit the configuration.
    """
    if config.model.user is None:
        raise ConfigError("the config has no section model.user: the model computes no user vectors")
    target = Storage(out)
    if target.names():
        raise ConfigError(f"{target.url} is not empty: name another directory, or remove what is there")
    target.check_writable()
    line = Line.of(config.root, config.line)
    name = checkpoint or published(line)
    with line.pinned(name, "user_vectors"):
        manifest = line.intact_manifest(name)
        check_same_schema(config, manifest)
        encoder = encoder_of(config, line, manifest)
        listed = listed_days(config, days, [column])
        check_ids(config, manifest, listed)
        parts, logs = whole_days(listed), Storage(config.logs.path)
        plan = RunPlan(logs, parts, 1, encoder, in_order(config), config.seed, (StreamStart,), None, "all")
        reading = EvaluateJob(config, (Subject(config, line, name),), parts, None, None)
        written = _compute(config, plan, reading, column, target)
    return {"result": "written", "checkpoint": name, "days": list(days), "out": target.url} | written


def _compute(config: Config, plan: RunPlan, reading: EvaluateJob, column: str, out: Storage) -> dict[str, Any]:
    with ray_session(config):
        board = ProgressBoard.remote()
        job = VectorsJob(replace(reading, board=board), plan.logs, column, out)
        reported = run_workers(config, plan, vectors_worker, job, board)
    if reported.get("refused"):
        raise DataError(reported["refused"])
    if reported["asked_to_stop"]:
        raise Interrupted(f"stopped by SIGTERM: remove {out.url}, and start the same command again")
    return {"users": reported["users"], "width": reported["width"]}


@refuse_damage
def vectors_worker(job: VectorsJob, lane: DataIterator) -> dict[str, Any]:
    """Compute the vectors of the stream's rows; runs on every worker of Ray Train."""
    reading = job.reading
    config = reading.config
    groups, device = begin_worker(config)
    loaded = load(reading.subjects[0], None, groups, device)
    found = UserVectors(loaded.state.model, job.logs, job.column)
    blocks = receive_blocks(lane, config.ingest.prefetch_units)
    for segment in read_segments(blocks, passed_over(config)):
        part = next(part for part in reading.parts if part.key == (segment.header.day, segment.header.log_day))
        found.begin_part(reading.parts.index(part), part)
        refused = measure_part(reading, segment, groups, loaded, found)
        if refused is not None:
            return {"refused": refused}
    num_users = found.write(job.out, groups.control)
    return {"users": num_users, "width": found.width}


class UserVectors:
    """Newest vector of every user that this rank has seen.

    A user takes 28 bytes, the id and 4 bytes times the vector's width; twice as many while runs of users are merged.

    Args:
        model: Model whose module of kind `UserArch` is watched.
        logs: Storage to read ids from: a batch has only their table rows, which several ids may share.
        column: Name of the column of ids.

    Attributes:
        problem: First error of reading a batch's ids, if any; the ranks continue together.
    """

    def __init__(self, model: nn.Module, logs: Storage, column: str) -> None:
        self.problem: str | None = None
        self._logs, self._column = logs, column
        self._units: Sequence[Unit] = ()
        self._part, self._open, self._ids = 0, -1, pa.nulls(0)
        self._found = MergedRuns(NewestRows.merged, len)
        (arch,) = (module for module in model.modules() if isinstance(module, UserArch))
        self.width = arch.width
        arch.register_forward_hook(self._note)
        self._newest = torch.empty(0, arch.width)

    def _note(self, module: nn.Module, inputs: Any, vectors: Tensor) -> None:
        self._newest = vectors

    def begin_part(self, number: int, part: Part) -> None:
        """Set the part, and so the units, of the next batches."""
        self._part, self._open, self._units = number, -1, part.log.units

    def update(self, outputs: Tensor, batch: RankingBatch) -> None:
        """Keep the vectors of the batch just computed."""
        try:
            self._update(self._newest.detach().to("cpu", torch.float32).numpy(), batch)
        except DataError as error:
            self.problem = self.problem or str(error)

    def _update(self, vectors: np.ndarray, batch: RankingBatch) -> None:
        first = 0
        for span in batch.cursor.spans:
            if span.unit != self._open:
                self._ids = self._read_ids(self._units[span.unit])
                self._open = span.unit
            ids = self._ids.take(pa.array(span.rows))
            of_span = vectors[first : first + len(span.rows)]
            found = NewestRows.of(ids, self._part, span.unit, span.rows, of_span)
            if len(found):
                self._found.add(found)
            first += len(span.rows)

    def _read_ids(self, unit: Unit) -> pa.Array:
        ids = read_unit(self._logs, unit, [self._column])[self._column]
        if not (is_id(ids.type) or pa.types.is_null(ids.type)):
            raise DataError(f"{unit.key}: column {self._column!r} is {ids.type}, users have integers or texts")
        return ids

    def write(self, out: Storage, group: dist.ProcessGroup) -> int:
        """Write the users whose last row this rank has seen, in a file of its own; collective.

        Returns:
            Number of users on all ranks.
        """
        found = self._found.total()
        types: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(types, None if found is None else id_types(found.ids), group=group)
        known = [of_rank for of_rank in types if of_rank is not None]
        kind = common_type(known) if known else pa.null()
        mine, num_users = newest_over_ranks(np.empty(0, PLACES) if found is None else found.places, group)
        table = self._table(pa.nulls(0), np.empty((0, self.width), np.float32), kind)
        if found is not None:
            found = found.chosen(mine)
            table = self._table(found.ids, found.vectors, kind)
        sink = pa.BufferOutputStream()
        pq.write_table(table, sink)
        out.write(f"part-{dist.get_rank():05d}.parquet", sink.getvalue().to_pybytes())
        return num_users

    def _table(self, users: pa.Array, vectors: np.ndarray, kind: pa.DataType) -> pa.Table:
        order = pc.array_sort_indices(users)
        flat = pa.array(vectors[order.to_numpy()].ravel())
        columns = {
            self._column: users.take(order).cast(kind),
            "vector": pa.FixedSizeListArray.from_arrays(flat, self.width),
        }
        return pa.table(columns)
