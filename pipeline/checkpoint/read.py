"""Loading of a checkpoint's tensors, for any ranks and shardings that wrote them."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.checkpoint._fsspec_filesystem import FsspecReader
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load

from features.schema import Schema
from pipeline.checkpoint.plain_errors import plain_errors
from pipeline.checkpoint.table_growth import GrowthLoadPlanner
from pipeline.storage.files import Storage


def load_tensors(
    tensors: dict[str, Any], line: Storage, name: str, group: dist.ProcessGroup, schema: Schema | None = None
) -> None:
    """Load tensors of a checkpoint; collective.

    Args:
        tensors: Tensors by part and name, all of `TrainState.tensors` or some; overwritten.
        line: The folder of the line.
        name: Name of the checkpoint, below that folder.
        group: A process group that only checkpoints use.
        schema: Schema whose tables with a vocabulary may have grown since; None: no table may.
    """
    tables = schema.tables if schema else []
    planner = GrowthLoadPlanner(
        {table.name: table.num_rows for table in tables if table.id_mapping.kind == "vocabulary"}
    )
    with plain_errors(f"checkpoint {name} was not read"):
        load(tensors, storage_reader=_reader(line, name), planner=planner, process_group=group)


def stored_tensors(line: Storage, name: str) -> dict[str, Tensor]:
    """Return shapes and types of a checkpoint's tensors, on the meta device, by dotted part and name."""
    entries = _reader(line, name).read_metadata().state_dict_metadata.items()
    return {
        key: torch.empty(entry.size, dtype=entry.properties.dtype, device="meta")
        for key, entry in entries
        if isinstance(entry, TensorStorageMetadata)
    }


def _reader(line: Storage, name: str) -> FsspecReader:
    reader = FsspecReader(f"{line.url}/{name}")
    reader.fs.fs = line.filesystem  # waits for a server that is away
    return reader
