"""Checkpoints: weights, optimizer state and cursor of all ranks, written together, complete with their manifest.

Tensors go through torch.distributed.checkpoint: a rank writes and reads only its own shards, and another number of
ranks, or another sharding, can load them. Training waits for a copy in memory; the files are written in background.
"""

import contextlib
import copy
import logging
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch.distributed as dist
from torch.distributed.checkpoint._fsspec_filesystem import FileSystem, FsspecWriter
from torch.distributed.checkpoint.state_dict_saver import save
from torch.futures import Future

from features.errors import DataError
from features.full_disk import naming_place
from pipeline.checkpoint.plain_errors import plain_errors
from pipeline.lineage.file_marks import FileMarker, mark_of
from pipeline.lineage.records import FileMark, Manifest
from pipeline.lineage.stored_checkpoint import MANIFEST
from pipeline.storage.files import Storage

logger = logging.getLogger(__name__)


def write_checkpoint(
    tensors: dict[str, Any],
    line: Storage,
    name: str,
    manifest: Manifest | None,
    group: dist.ProcessGroup,
    before_commit: Callable[[], None] | None = None,
    extra_files: Mapping[str, bytes] | None = None,
    threads: int = 1,
) -> None:
    """Write a checkpoint; collective. The checkpoint exists with its manifest, which is written last.

    Args:
        tensors: Tensors to write, as in `TrainState.tensors`.
        line: The folder of the line.
        name: Name of the checkpoint, below that folder; nothing else ever writes there.
        manifest: The manifest, on rank 0, to which files and checksums are added here; None on the others.
        group: A process group that only checkpoints use.
        before_commit: Function called on rank 0 just before the manifest is written; may refuse.
        extra_files: Further files by name, the same on all ranks; rank 0 writes them.
        threads: Threads of a rank, each of which writes a file of its own.

    Raises:
        Exception: On all ranks, the error of any of them.
    """
    assert (manifest is not None) == (group.rank() == 0), "rank 0 alone commits"
    writer = _ThreadedWriter(f"{line.url}/{name}", thread_count=threads, sync_files=line.is_local)
    writer.fs = hashing = HashingFileSystem(line)
    with plain_errors(f"checkpoint {name} was not written"):
        save(tensors, storage_writer=writer, process_group=group)
    gathered: list[Any] = [None] * group.size()
    dist.all_gather_object(gathered, hashing.files, group=group)
    outcome: list[Exception | None] = [None]
    if manifest is not None:
        files = {file: entry for found in gathered for file, entry in found.items()}
        outcome = [commit(line, name, manifest.model_copy(update={"files": files}), before_commit, extra_files or {})]
    dist.broadcast_object_list(outcome, src=dist.get_global_rank(group, 0), group=group)
    if outcome[0] is not None:
        raise outcome[0]


def commit(
    line: Storage,
    name: str,
    manifest: Manifest,
    before_commit: Callable[[], None] | None,
    extra_files: Mapping[str, bytes],
) -> Exception | None:
    """Write further files and the manifest; return the error, which the other ranks need to know."""
    try:
        for file, data in extra_files.items():
            line.write(f"{name}/{file}", data)
            manifest.files[file] = mark_of(data)
        if before_commit is not None:
            before_commit()
        line.sync(name)
        line.write(f"{name}/{MANIFEST}", manifest.to_bytes())
    except DataError as error:
        return error
    except Exception as error:  # noqa: BLE001 - the other ranks wait for it; a plain exception can be pickled
        return RuntimeError(f"checkpoint {name} was not completed: {type(error).__name__}: {error}")
    return None


class _ThreadedWriter(FsspecWriter):
    """DCP's writer, which forgets the error of any thread but the first: the checkpoint would lack tensors."""

    def _write_data(self, planner: Any, file_queue: Any) -> Future[list[Any]]:
        alone = copy.copy(self)
        alone.thread_count = 1
        with ThreadPoolExecutor(self.thread_count) as pool:
            works = [
                pool.submit(super(_ThreadedWriter, alone)._write_data, planner, file_queue)
                for _ in range(self.thread_count)
            ]
        written: Future[list[Any]] = Future()
        written.set_result([result for work in works for result in work.result().value()])
        return written


class HashingFileSystem(FileSystem):
    """DCP's file system, extended by the size and checksums of every file as it is written."""

    def __init__(self, line: Storage) -> None:
        super().__init__()
        self.fs = line.filesystem  # waits for a server that is away
        self.files: dict[str, FileMark] = {}

    @contextlib.contextmanager
    def create_stream(self, path: Any, mode: str) -> Iterator[Any]:
        """Open a file of a checkpoint, and note its size and checksums at its end."""
        with naming_place(path), super().create_stream(path, mode) as stream:
            hashed = _HashingStream(stream)
            try:
                yield hashed
            except RuntimeError as error:
                if hashed.failed is None:
                    raise
                raise hashed.failed from error  # torch.save's own error says nothing of it
        name = str(path).rsplit("/", 1)[-1]
        self.files[name] = hashed.marker.mark()

    def rename(self, path: Any, new_path: Any) -> None:
        """Rename a file, and what is noted of it."""
        super().rename(path, new_path)
        self.files[str(new_path).rsplit("/", 1)[-1]] = self.files.pop(str(path).rsplit("/", 1)[-1])


class _HashingStream:
    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self.marker = FileMarker()
        self.failed: OSError | None = None

    def write(self, data: Any) -> int:
        self.marker.update(data)
        try:
            return self._stream.write(data)
        except OSError as error:
            self.failed = self.failed or error
            raise

    def fileno(self) -> int:
        """Flush before DCP's fsync, which does not: the end of a file, or all of it, would stay in memory."""
        self._stream.flush()
        return self._stream.fileno()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
