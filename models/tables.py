"""Embedding tables: from the schema's declarations to an EmbeddingBagCollection, and how their rows start."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torchrec.modules.embedding_configs import EmbeddingBagConfig, PoolingType
from torchrec.modules.embedding_modules import EmbeddingBagCollection

from features.hashing import salt_of
from features.schema import Schema, TableConfig

_CHUNK_ROWS = 4096


def build_tables(schema: Schema, device: torch.device) -> EmbeddingBagCollection:
    """Declare the tables as TorchRec does; on the meta device nothing is allocated.

    Every table is summed over a bag: TorchRec pools per table, the schema per feature, so means are taken after
    the lookup (`models.inputs`).
    """
    features: dict[str, list[str]] = {table.name: [] for table in schema.tables}
    for feature in schema.sparse_features:
        features[feature.table].append(feature.name)
    configs = [
        EmbeddingBagConfig(
            name=table.name,
            embedding_dim=table.dim,
            num_embeddings=table.num_rows,
            feature_names=features[table.name],
            pooling=PoolingType.SUM,
        )
        for table in schema.tables
    ]
    return EmbeddingBagCollection(tables=configs, device=device)


def initial_rows(table: TableConfig, seed: int, rows: range, columns: range) -> Tensor:
    """A block of a table as it starts, whatever the sharding: rows are drawn in fixed chunks from (seed, table).

    Args:
        table: Its size and initialisation.
        seed: The run's seed.
        rows: Rows of the block.
        columns: Columns of the block.

    Returns:
        float32 of shape (len(rows), len(columns)).
    """
    first, last = rows.start // _CHUNK_ROWS, (max(rows.stop, rows.start + 1) - 1) // _CHUNK_ROWS
    chunks = [_chunk(table, seed, chunk) for chunk in range(first, last + 1)]
    start = rows.start - first * _CHUNK_ROWS
    return torch.cat(chunks)[start : start + len(rows), columns.start : columns.stop]


def initial_rows_at(table: TableConfig, seed: int, rows: Tensor, columns: range) -> Tensor:
    """Single rows of a table as they start, the same that `initial_rows` gives them.

    Args:
        table: Its size and initialisation.
        seed: The run's seed.
        rows: Increasing row numbers, int64 of shape (N,).
        columns: Which columns of them.

    Returns:
        float32 of shape (N, len(columns)).
    """
    chunks, lengths = torch.unique_consecutive(rows // _CHUNK_ROWS, return_counts=True)
    picked = [torch.empty(0, table.dim)]
    for chunk, part in zip(chunks.tolist(), rows.split(lengths.tolist()), strict=True):
        picked.append(_chunk(table, seed, chunk)[part % _CHUNK_ROWS])
    return torch.cat(picked)[:, columns.start : columns.stop]


def _chunk(table: TableConfig, seed: int, chunk: int) -> Tensor:
    generator = torch.Generator().manual_seed(salt_of(f"{seed}/{table.name}/{chunk}") % 2**63)
    rows = torch.empty(_CHUNK_ROWS, table.dim)
    scale = table.init.scale or 1 / math.sqrt(table.dim)
    if table.init.kind == "normal":
        return rows.normal_(0, scale, generator=generator)
    return rows.uniform_(-scale, scale, generator=generator)


def mean_pooled(schema: Schema) -> Sequence[bool]:
    """Which of the sparse features are pooled by the mean, in schema order."""
    return [feature.kind == "sequence" and feature.pooling == "mean" for feature in schema.sparse_features]
