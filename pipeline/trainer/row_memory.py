"""Bytes per row of a batch, measured by small forward passes of the declared model on the CPU."""

from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from features.encoded_rows import EncodedRows
from features.schema import Schema, SparseFeature
from models.assembly import build_ranker
from models.batch import RankingBatch
from models.ranker import RankerTrain
from pipeline.config.project import Config
from pipeline.ingest.batcher import collate

_FEW, _MORE = 8, 16
_ROWS_OF_A_TABLE = 1100  # more than the most buckets of a feature


@dataclass(frozen=True, slots=True)
class RowMemory:
    """Bytes per row, with every sequence at its full length.

    Args:
        encoded: Bytes of an encoded row in the object store.
        batch: Bytes of a row of a batch on the device.
        activations: Bytes that the forward pass keeps of a row for the backward pass.
    """

    encoded: float
    batch: float
    activations: float


def measure_rows(config: Config) -> RowMemory:
    """Measure the bytes per row of a declared model.

    The model has its own dense part, and tables of few rows: the number of rows changes none of the figures. Two
    batches of different size are compared, so that weights and other constant tensors do not count.
    """
    schema = config.log_schema
    small = schema.model_copy(
        update={"tables": [t.model_copy(update={"num_rows": min(t.num_rows, _ROWS_OF_A_TABLE)}) for t in schema.tables]}
    )
    model = _small_model(config, small)
    found = [_measure(model, small, num_rows) for num_rows in (_FEW, _MORE)]
    encoded, batch, activations = ((more - few) / (_MORE - _FEW) for few, more in zip(*found, strict=True))
    return RowMemory(encoded, batch, activations)


def _small_model(config: Config, schema: Schema) -> RankerTrain:
    declared = config.model
    autocast = torch.bfloat16 if config.workers.precision == "bfloat16" else None
    network, towers, dropout = declared.network, declared.towers, declared.dropout
    model = build_ranker(schema, network, towers, dropout, autocast, config.joint_loss, around=declared)
    tables: list[nn.Module | None] = [model.ranker.embeddings, model.ranker.sequences]
    for table in (table for table in tables if table is not None):
        table.to_empty(device="cpu")
        for parameter in table.parameters():
            nn.init.constant_(parameter, 0.01)
    return model


def _measure(model: RankerTrain, schema: Schema, num_rows: int) -> tuple[int, int, int]:
    """Return the bytes of encoded rows, of their batch, and of the tensors that a forward pass keeps."""
    rows = _full_rows(schema, num_rows)
    tasks = torch.ones(len(schema.tasks))
    batch = collate(schema, [(rows, 0, num_rows)], num_rows).for_step(tasks, tasks)
    kept: dict[int, Any] = {parameter.untyped_storage()._cdata: 0 for parameter in model.parameters()}
    alive = []  # a freed storage's number would be given to another one

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        alive.append(storage)
        kept.setdefault(storage._cdata, storage.nbytes())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        outcome = model(batch)
    del outcome
    return _encoded_bytes(schema, num_rows), _batch_bytes(batch), sum(kept.values())


def encoded_row_bytes(schema: Schema) -> float:
    """Return the bytes of an encoded row in the object store, with every sequence at its full length."""
    few, more = (_encoded_bytes(schema, num_rows) for num_rows in (_FEW, _MORE))
    return (more - few) / (_MORE - _FEW)


def _encoded_bytes(schema: Schema, num_rows: int) -> int:
    return sum(array.nbytes for array in _full_rows(schema, num_rows).arrays().values())


def _batch_bytes(batch: RankingBatch) -> int:
    tensors = []
    for field in fields(batch):
        value = getattr(batch, field.name)
        if isinstance(value, KeyedJaggedTensor):
            tensors += [value.values(), value.lengths(), value.offsets()]
        elif isinstance(value, Tensor):
            tensors.append(value)
    return sum(tensor.nbytes for tensor in tensors)


def _full_rows(schema: Schema, num_rows: int) -> EncodedRows:
    """Return rows with an id in every feature, and every sequence at its full length."""
    lengths = [_full_length(feature) for feature in schema.sparse_features]
    weighted = any(task.weight is not None for task in schema.tasks)
    width = (num_rows, len(schema.tasks))
    return EncodedRows(
        ids=[np.zeros(num_rows * length, np.int32) for length in lengths],
        offsets=[np.arange(num_rows + 1, dtype=np.int32) * np.int32(length) for length in lengths],
        dense=np.zeros((num_rows, len(schema.dense_features)), np.float32),
        labels=np.zeros(width, np.float32),
        weights=np.ones(width, np.float32) if weighted else None,
        slots=np.zeros(num_rows, np.int32),
        rows=np.arange(num_rows, dtype=np.int32),
        truth=None,
    )


def _full_length(feature: SparseFeature) -> int:
    return feature.max_length if feature.kind == "sequence" else 1
