"""Embedding tables: from the schema's declarations to TorchRec's collections, and their initial rows."""

import math
import re
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from torchrec.modules.embedding_configs import EmbeddingBagConfig, EmbeddingConfig, PoolingType
from torchrec.modules.embedding_modules import EmbeddingBagCollection, EmbeddingCollection

from features.hashing import salt_of
from features.schema import Schema
from features.tables import TableConfig

_CHUNK_ROWS = 4096


# Parameter names of EmbeddingBagCollection and EmbeddingCollection; names of optimizer state continue them.
_PARAMETER = re.compile(r"(?:^|\.)(?:embedding_bags|embeddings)\.(\w+)\.weight(?:\.|$)")


def table_of(name: str) -> str | None:
    """Return the table of a parameter, or of its optimizer state in a checkpoint; None for the dense part."""
    found = _PARAMETER.search(name)
    return found[1] if found else None


def parameter_of(schema: Schema, table: TableConfig) -> str:
    """Return the name of a table's parameter within a `models.ranker.RankerTrain`."""
    if table.name in schema.unpooled_tables:
        return f"ranker.sequences.{_width_key(table)}.embeddings.{table.name}.weight"
    return f"ranker.embeddings.embedding_bags.{table.name}.weight"


def build_tables(schema: Schema, device: torch.device) -> EmbeddingBagCollection | None:
    """Declare the tables that are read as bags only, as TorchRec does; the meta device allocates nothing.

    Every table is summed over a bag: TorchRec pools per table, the schema per feature, so means are taken after
    the lookup (`models.inputs`).

    Returns:
        None without such a table.
    """
    configs = [
        EmbeddingBagConfig(
            name=table.name,
            embedding_dim=table.dim,
            num_embeddings=table.num_rows,
            feature_names=_features_of(schema, table),
            pooling=PoolingType.SUM,
        )
        for table in schema.tables
        if table.name not in schema.unpooled_tables
    ]
    return EmbeddingBagCollection(tables=configs, device=device) if configs else None


def build_sequences(schema: Schema, device: torch.device) -> nn.ModuleDict | None:
    """Declare the tables that unpooled sequences read: one EmbeddingCollection per width, as TorchRec requires.

    Bags of the same tables, a candidate's for example, are looked up in them too, and pooled by `models.inputs`.

    Returns:
        None without such a table.
    """
    configs: dict[str, list[EmbeddingConfig]] = {}
    for table in schema.tables:
        if table.name in schema.unpooled_tables:
            config = EmbeddingConfig(
                name=table.name,
                embedding_dim=table.dim,
                num_embeddings=table.num_rows,
                feature_names=_features_of(schema, table),
            )
            configs.setdefault(_width_key(table), []).append(config)
    built = {width: EmbeddingCollection(tables=tables, device=device) for width, tables in configs.items()}
    return nn.ModuleDict(built) if built else None


def _features_of(schema: Schema, table: TableConfig) -> list[str]:
    return [feature.name for feature in schema.sparse_features if feature.table == table.name]


def _width_key(table: TableConfig) -> str:
    return f"dim_{table.dim}"


def initial_rows(table: TableConfig, seed: int, rows: range, columns: range) -> Tensor:
    """Return an initial block of a table under any sharding: rows are drawn in fixed chunks from (seed, table).

    Args:
        table: Size and initialisation of the table.
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


def initial_blocks(table: TableConfig, seed: int, rows: range, columns: range) -> Iterator[tuple[range, Tensor]]:
    """Yield an initial block of a table piece by piece, since a shard may be as large as the memory.

    Args:
        table: Size and initialisation of the table.
        seed: The run's seed.
        rows: Rows of the block.
        columns: Columns of the block.

    Yields:
        Successive ranges of rows, of at most one chunk, with their values as from `initial_rows`.
    """
    start = rows.start
    while start < rows.stop:
        piece = range(start, min((start // _CHUNK_ROWS + 1) * _CHUNK_ROWS, rows.stop))
        yield piece, initial_rows(table, seed, piece, columns)
        start = piece.stop


def initial_rows_at(table: TableConfig, seed: int, rows: Tensor, columns: range) -> Tensor:
    """Return single initial rows of a table, equal to those of `initial_rows`.

    Args:
        table: Size and initialisation of the table.
        seed: The run's seed.
        rows: Increasing row numbers, int64 of shape (N,).
        columns: Columns of these rows.

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
    """Return a flag per sparse feature, in schema order: True if it is pooled by the mean."""
    return [feature.kind == "sequence" and feature.pooling == "mean" for feature in schema.sparse_features]
