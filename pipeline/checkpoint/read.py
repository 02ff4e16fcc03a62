"""Loading of a checkpoint's tensors, for any ranks and shardings that wrote them.

Each rank verifies the chunks that hold its tensors while it loads them (`verified_file`). All ranks learn of a damaged
one before any of them makes a step.
"""

import contextlib
import io
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.checkpoint._fsspec_filesystem import FileSystem, FsspecReader
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.planner import LoadPlan, LoadPlanner, ReadItem
from torch.distributed.checkpoint.state_dict_loader import load
from torch.futures import Future

from features.errors import DataError
from features.schema import Schema
from pipeline.checkpoint.plain_errors import plain_errors
from pipeline.checkpoint.table_growth import GrowthLoadPlanner
from pipeline.checkpoint.verified_file import VerifiedFile
from pipeline.lineage.file_marks import CHUNK_BYTES
from pipeline.lineage.records import FileMark
from pipeline.lineage.stored_checkpoint import read_manifest
from pipeline.storage.files import Storage


def load_tensors(
    tensors: dict[str, Any], line: Storage, name: str, group: dist.ProcessGroup, schema: Schema | None = None
) -> dict[str, int]:
    """Load tensors of a checkpoint; collective.

    Args:
        tensors: Tensors by part and name, all of `TrainState.tensors` or some; overwritten.
        line: The folder of the line.
        name: Name of the checkpoint, below that folder.
        group: A process group that only checkpoints use.
        schema: Schema whose tables with a vocabulary may have grown since; None: no table may.

    Returns:
        Number of saved rows of each table that has grown; the rows from there on are as before.

    Raises:
        DamagedFile: On all ranks, if a file that any of them needs is not what was written; the tensors have been
            overwritten in part.
        DataError: The checkpoint has no manifest, or a table has fewer rows than were saved.
    """
    tables = schema.tables if schema else []
    planner = GrowthLoadPlanner(
        {table.name: table.num_rows for table in tables if table.id_mapping.kind == "vocabulary"}
    )
    with plain_errors(f"checkpoint {name} was not read"):
        load(tensors, storage_reader=_VerifyingReader(line, name), planner=planner, process_group=group)
    return planner.saved_rows


def stored_tensors(line: Storage, name: str) -> dict[str, Tensor]:
    """Return shapes and types of a checkpoint's tensors, on the meta device, by dotted part and name."""
    entries = _VerifyingReader(line, name).read_metadata().state_dict_metadata.items()
    return {
        key: torch.empty(entry.size, dtype=entry.properties.dtype, device="meta")
        for key, entry in entries
        if isinstance(entry, TensorStorageMetadata)
    }


class _VerifyingReader(FsspecReader):
    """DCP's reader, extended by the verification of what it reads."""

    def __init__(self, line: Storage, name: str) -> None:
        super().__init__(f"{line.url}/{name}")
        manifest = read_manifest(line, name, name)
        if manifest is None:
            raise DataError(f"{line.url}/{name} has no intact manifest: restore it, or name a complete checkpoint")
        self.fs = self._files = _VerifyingFileSystem(line, name, manifest.files)

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        """Read tensors in the order in which they are stored, so that a chunk is read once."""
        items = sorted(plan.items, key=lambda item: (self._place(item).relative_path, self._place(item).offset))
        for place in map(self._place, items):
            self._files.expect(place.relative_path, place.offset, place.offset + place.length)
        return super().read_data(replace(plan, items=items), planner)

    def _place(self, item: ReadItem) -> Any:
        return self.storage_data[item.storage_index]


class _VerifyingFileSystem(FileSystem):
    """DCP's file system, over files that are verified."""

    def __init__(self, line: Storage, name: str, marks: Mapping[str, FileMark]) -> None:
        super().__init__()
        self.fs = line.filesystem
        self._line, self._name, self._marks = line, name, marks
        self._wanted: dict[str, set[int]] = defaultdict(set)

    def expect(self, file: str, begin: int, end: int) -> None:
        """Note a range of bytes that will be read."""
        chunk_bytes = self._marks[file].chunk_bytes or CHUNK_BYTES
        self._wanted[file].update(range(begin // chunk_bytes, -(-end // chunk_bytes)))

    @contextlib.contextmanager
    def create_stream(self, path: Any, mode: str) -> Iterator[Any]:
        """Open a file of the checkpoint for reading."""
        file = str(path).rpartition("/")[2]
        wanted = sorted(self._wanted[file]) if file in self._wanted else None
        with VerifiedFile(self._line, f"{self._name}/{file}", self._marks[file], wanted) as verified:
            yield io.BufferedReader(verified)
