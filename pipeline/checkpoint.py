"""Checkpoints: weights, optimizer state and cursor of all ranks, written together, complete with their manifest.

Tensors go through torch.distributed.checkpoint, so a rank writes and reads only its own shards and another number
of ranks, or another sharding, can load them.
"""

import contextlib
import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch.distributed as dist
from pydantic import Field
from torch.distributed.checkpoint._fsspec_filesystem import FileSystem, FsspecReader, FsspecWriter
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torchrec.distributed.model_parallel import DistributedModelParallel

from features.schema import Declaration
from pipeline.lineage.line import MANIFEST
from pipeline.optimizer import StepOptimizer
from pipeline.storage import Storage


class CheckpointConfig(Declaration):
    """When checkpoints are written; the end of a day always has one.

    Args:
        every_steps: Also after this many steps; absent: only at the end of a day.
        keep: Checkpoints within a day that stay, per attempt, beside the finished day's.
    """

    every_steps: int | None = Field(default=None, ge=1)
    keep: int = Field(default=2, ge=1)


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


def write_checkpoint(
    tensors: dict[str, Any], line: Storage, name: str, manifest: dict[str, Any], group: dist.ProcessGroup
) -> None:
    """Write a checkpoint; collective. It exists for nobody until its manifest does, which is written last.

    Args:
        tensors: What to write, as `TrainState.tensors` gives it.
        line: The folder of the line.
        name: Where, below it; nothing else ever writes there.
        manifest: What the checkpoint says of itself; files and checksums are added here.
        group: A process group that only checkpoints use.
    """
    writer = FsspecWriter(f"{line.url}/{name}", thread_count=1)
    writer.fs = hashing = _HashingFileSystem()
    hashing.init_path(f"{line.url}/{name}")
    save(tensors, storage_writer=writer, process_group=group)
    gathered: list[Any] = [None] * group.size()
    dist.all_gather_object(gathered, hashing.files, group=group)
    if group.rank() == 0:
        files = {file: entry for found in gathered for file, entry in found.items()}
        line.write(f"{name}/{MANIFEST}", json.dumps(manifest | {"files": files}, indent=1).encode())
    dist.barrier(group=group)


def read_checkpoint(state: TrainState, line: Storage, name: str, group: dist.ProcessGroup) -> None:
    """Load a checkpoint into the live tensors, whatever the ranks and shardings that wrote it; collective.

    Args:
        state: Built and sharded; overwritten.
        line: The folder of the line.
        name: The checkpoint, below it.
        group: A process group that only checkpoints use.
    """
    state.optimizer.materialise()
    load(state.tensors(), storage_reader=FsspecReader(f"{line.url}/{name}"), process_group=group)


class _HashingFileSystem(FileSystem):
    """DCP's file system, which also takes the size and checksum of every file while it is written."""

    def __init__(self) -> None:
        super().__init__()
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

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
