"""Checkpoints: weights, optimizer state and cursor of all ranks, written together, complete with their manifest.

Tensors go through torch.distributed.checkpoint, so a rank writes and reads only its own shards and another number
of ranks, or another sharding, can load them. Training waits for a copy in memory; the files are written behind it.
"""

import contextlib
import functools
import hashlib
import logging
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from pydantic import Field
from torch import Tensor
from torch.distributed._state_dict_utils import _copy_state_dict, _create_cpu_state_dict
from torch.distributed.checkpoint._fsspec_filesystem import FileSystem, FsspecReader, FsspecWriter
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torchrec.distributed.model_parallel import DistributedModelParallel

from features.declaration import Declaration
from features.errors import DataError
from features.schema import Schema
from pipeline.growth import GrowthLoadPlanner
from pipeline.lineage.line import Line
from pipeline.lineage.seal import seal
from pipeline.lineage.stored_checkpoint import MANIFEST
from pipeline.optimizer import StepOptimizer
from pipeline.storage import Storage

logger = logging.getLogger(__name__)


class CheckpointConfig(Declaration):
    """When checkpoints are written; the end of a day always has one.

    Args:
        every_steps: Also after this many steps; absent: only at the end of a day.
        keep: Checkpoints within a day that stay, per attempt, beside the finished day's; two, since another attempt may
            just be starting from the last but one.
        keep_days: The daily job keeps the last checkpoints of this many days, but for those that a branch began from;
            absent: of all. Their entries in the ledger stay, and the days cannot be gone back to.
        background: Write while training goes on, from a copy of the tensors in memory; without, training waits.
        timeout_s: A write for which one rank waits longer than this for another has failed.
    """

    every_steps: int | None = Field(default=None, ge=1)
    keep: int = Field(default=2, ge=2)
    keep_days: int | None = Field(default=None, ge=2)
    background: bool = True
    timeout_s: int = Field(default=1800, ge=10)


@dataclass(frozen=True, slots=True)
class TrainState:
    """All tensors of a run.

    Args:
        model: The sharded model.
        optimizer: Its optimizers.
    """

    model: DistributedModelParallel
    optimizer: StepOptimizer

    def tensors(self) -> dict[str, Any]:
        """By part and name; tables and their optimizer state as sharded tensors, views of the live ones."""
        return {"model": self.model.state_dict()} | self.optimizer.tensors()

    def not_finite(self) -> list[str]:
        """Names of the tensors of which this rank holds a NaN or an infinite number."""
        return sorted({name for name, tensor in _locals("", self.tensors()) if not bool(torch.isfinite(tensor).all())})


def _locals(name: str, value: Any) -> Iterator[tuple[str, torch.Tensor]]:
    """All tensors of a tree that this rank holds, with their dotted names."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _locals(f"{name}.{key}" if name else str(key), inner)
    elif hasattr(value, "local_shards"):
        yield from ((name, shard.tensor) for shard in value.local_shards())
    elif isinstance(value, torch.Tensor):
        yield name, value


def check_finite(found: Iterable[list[str]], day: str) -> None:
    """Refuse tensors that no day can be trained from.

    Args:
        found: What `TrainState.not_finite` returned, of each rank.
        day: The day that ends with them.

    Raises:
        DataError: Names them.
    """
    bad = sorted({name for names in found for name in names})
    if bad:
        raise DataError(
            f"{day} ends with NaN or infinite numbers in {', '.join(bad[:5])} ({len(bad)} tensors), and is not saved: "
            "lower the learning rates or set optimizer.clip_norm, and begin again with jobs.daily --discard REASON"
        )


def write_checkpoint(
    tensors: dict[str, Any],
    line: Storage,
    name: str,
    manifest: dict[str, Any],
    group: dist.ProcessGroup,
    before_commit: Callable[[], None] | None = None,
    extra_files: Mapping[str, bytes] | None = None,
) -> None:
    """Write a checkpoint; collective. It exists for nobody until its manifest does, which is written last.

    Args:
        tensors: What to write, as `TrainState.tensors` gives it.
        line: The folder of the line.
        name: Where, below it; nothing else ever writes there.
        manifest: What the checkpoint says of itself; files and checksums are added here.
        group: A process group that only checkpoints use.
        before_commit: Called on rank 0 just before the manifest is written; may refuse.
        extra_files: Further files by name, the same on all ranks; rank 0 writes them.

    Raises:
        Exception: On all ranks, what any of them met.
    """
    writer = FsspecWriter(f"{line.url}/{name}", thread_count=1, sync_files=line.is_local)
    writer.fs = hashing = _HashingFileSystem(line)
    with _plain_errors(f"checkpoint {name} was not written"):
        save(tensors, storage_writer=writer, process_group=group)
    gathered: list[Any] = [None] * group.size()
    dist.all_gather_object(gathered, hashing.files, group=group)
    outcome: list[Exception | None] = [None]
    if group.rank() == 0:
        files = {file: entry for found in gathered for file, entry in found.items()}
        outcome = [_commit(line, name, manifest | {"files": files}, before_commit, extra_files or {})]
    dist.broadcast_object_list(outcome, src=dist.get_global_rank(group, 0), group=group)
    if outcome[0] is not None:
        raise outcome[0]


def _commit(
    line: Storage,
    name: str,
    manifest: dict[str, Any],
    before_commit: Callable[[], None] | None,
    extra_files: Mapping[str, bytes],
) -> Exception | None:
    """Write further files and the manifest; returns what went wrong, which the other ranks have to hear of."""
    try:
        for file, data in extra_files.items():
            line.write(f"{name}/{file}", data)
            manifest["files"][file] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        if before_commit is not None:
            before_commit()
        line.sync(name)
        line.write(f"{name}/{MANIFEST}", seal(manifest))
    except DataError as error:
        return error
    except Exception as error:  # noqa: BLE001 - the other ranks wait for it; a plain one surely travels
        return RuntimeError(f"checkpoint {name} was not completed: {type(error).__name__}: {error}")
    return None


def read_checkpoint(
    state: TrainState, line: Storage, name: str, group: dist.ProcessGroup, schema: Schema | None = None
) -> None:
    """Load a checkpoint into the live tensors, whatever the ranks and shardings that wrote it; collective.

    Args:
        state: Built and sharded; overwritten.
        line: The folder of its line.
        name: The checkpoint, below it.
        group: A process group that only checkpoints use.
        schema: Its tables that keep a vocabulary may have more rows than in the checkpoint: their first rows are
            loaded, the others, with their optimizer state, stay as they are. None: no table may.

    Raises:
        DataError: One of these has fewer rows.
    """
    state.optimizer.materialise()
    load_tensors(state.tensors(), line, name, group, schema)


def load_tensors(
    tensors: dict[str, Any], line: Storage, name: str, group: dist.ProcessGroup, schema: Schema | None = None
) -> None:
    """Load what is asked for of a checkpoint; collective.

    Args:
        tensors: By part and name, as `TrainState.tensors` gives them or some of them; overwritten.
        line: The folder of the line.
        name: The checkpoint, below it.
        group: A process group that only checkpoints use.
        schema: Whose tables that keep a vocabulary may have grown since; None: none may.
    """
    tables = schema.tables if schema else []
    planner = GrowthLoadPlanner(
        {table.name: table.num_rows for table in tables if table.id_mapping.kind == "vocabulary"}
    )
    with _plain_errors(f"checkpoint {name} was not read"):
        load(tensors, storage_reader=_reader(line, name), planner=planner, process_group=group)


def stored_tensors(line: Storage, name: str) -> dict[str, Tensor]:
    """Shapes and types of a checkpoint's tensors, on the meta device, by dotted part and name."""
    entries = _reader(line, name).read_metadata().state_dict_metadata.items()
    return {
        key: torch.empty(entry.size, dtype=entry.properties.dtype, device="meta")
        for key, entry in entries
        if isinstance(entry, TensorStorageMetadata)
    }


def _reader(line: Storage, name: str) -> FsspecReader:
    reader = FsspecReader(f"{line.url}/{name}")
    reader.fs.fs = line.filesystem  # which waits for a server that is away
    return reader


@contextlib.contextmanager
def _plain_errors(what: str) -> Iterator[None]:
    """DCP's errors are no `Exception`, which a thread loses without a word, and hold a traceback for every rank.

    Data that all ranks refuse stay a DataError: trying again would not help.
    """
    try:
        yield
    except CheckpointException as error:
        refused = [met for met, _ in error.failures.values() if isinstance(met, DataError)]
        if refused and len(refused) == len(error.failures):
            raise DataError(f"{what}: {refused[0]}") from error
        ranks = (f"rank {rank}: {type(met).__name__}: {met}" for rank, (met, _) in error.failures.items())
        raise RuntimeError(f"{what}: {'; '.join(ranks)}") from error


class Saver:
    """Saves a run's checkpoints, one at a time, while the run goes on.

    Args:
        line: Where they go.
        config: How often, how many.
        group: A gloo process group for the writing thread alone.

    Attributes:
        num_saved: Checkpoints that were handed to it.
    """

    def __init__(self, line: Line, config: CheckpointConfig, group: dist.ProcessGroup) -> None:
        self._line, self._config, self._group = line, config, group
        self._copy: dict[str, Any] | None = None
        self._thread: threading.Thread | None = None
        self._failed: Exception | None = None
        self._within_day: list[str] = []
        self.num_saved = 0

    def save(
        self,
        tensors: dict[str, Any],
        name: str,
        manifest: dict[str, Any],
        extra_files: Mapping[str, bytes] | None = None,
    ) -> None:
        """Copy the tensors and write them in the background; waits for the write before it. Collective.

        Args:
            tensors: As `TrainState.tensors` gives them.
            name: Of the checkpoint.
            manifest: What it says of itself.
            extra_files: Further files by name.

        Raises:
            Exception: What the write before it met.
        """
        self.wait()
        self.num_saved += 1
        if not self._config.background:
            self._write(tensors, name, manifest, extra_files)
            self.check()
            return
        if self._copy is None:
            self._copy = _create_cpu_state_dict(tensors, pin_memory=torch.cuda.is_available())
        _copy_state_dict(tensors, self._copy, type_check=False)
        arguments = (self._copy, name, manifest, extra_files)
        self._thread = threading.Thread(target=self._write, args=arguments, daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Raise what a write met, if one did."""
        if self._failed is not None:
            raise self._failed

    def wait(self) -> None:
        """Wait for the write that is going on, if one is.

        Raises:
            Exception: What it met.
        """
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        self.check()

    def _write(
        self, tensors: dict[str, Any], name: str, manifest: dict[str, Any], extra_files: Mapping[str, bytes] | None
    ) -> None:
        holds = functools.partial(self._line.check_holder, manifest["attempt"])
        try:
            write_checkpoint(tensors, self._line.storage, name, manifest, self._group, holds, extra_files)
            if self._group.rank() == 0:
                logger.info("saved %s", name)
                if not manifest["complete"]:
                    self._retire(name)
        except Exception as error:  # noqa: BLE001 - it is raised where the run looks next
            self._failed = error

    def _retire(self, newest: str) -> None:
        """Keep the newest few of this start's checkpoints within days; only its own are ever removed."""
        self._within_day.append(newest)
        for name in self._within_day[: -self._config.keep]:
            try:
                if not self._line.is_pinned(name):
                    self._line.remove(name)
                    self._within_day.remove(name)
            except (OSError, DataError) as error:  # the new one is complete; that counts
                logger.warning("%s stays for now: %s", name, error)


class _HashingFileSystem(FileSystem):
    """DCP's file system, which also takes the size and checksum of every file while it is written."""

    def __init__(self, line: Storage) -> None:
        super().__init__()
        self.fs = line.filesystem  # which waits for a server that is away
        self.files: dict[str, dict[str, Any]] = {}

    @contextlib.contextmanager
    def create_stream(self, path: Any, mode: str) -> Iterator[Any]:
        with super().create_stream(path, mode) as stream:
            hashed = _HashingStream(stream)
            yield hashed
        name = str(path).rsplit("/", 1)[-1]
        self.files[name] = {"bytes": hashed.num_bytes, "sha256": hashed.digest.hexdigest()}

    def rename(self, path: Any, new_path: Any) -> None:
        super().rename(path, new_path)
        self.files[str(new_path).rsplit("/", 1)[-1]] = self.files.pop(str(path).rsplit("/", 1)[-1])


class _HashingStream:
    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self.digest = hashlib.sha256()
        self.num_bytes = 0

    def write(self, data: Any) -> int:
        self.digest.update(data)
        self.num_bytes += memoryview(data).nbytes
        return self._stream.write(data)

    def fileno(self) -> int:
        """For fsync, before which DCP does not flush: it would leave the end of a file, or all of it, in memory."""
        self._stream.flush()
        return self._stream.fileno()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
