"""TorchRec's planner, confined to layouts that train the declared model: one for a training and for a dry run."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import psutil
import torch
from torch import nn
from torchrec.distributed.comm import get_local_size
from torchrec.distributed.embedding import EmbeddingCollectionSharder
from torchrec.distributed.embedding_types import EmbeddingComputeKernel
from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder
from torchrec.distributed.planner import EmbeddingShardingPlanner, Topology
from torchrec.distributed.planner.constants import BATCH_SIZE, POOLING_FACTOR
from torchrec.distributed.planner.enumerators import EmbeddingEnumerator
from torchrec.distributed.planner.types import ParameterConstraints, PerfModel
from torchrec.distributed.types import CacheParams, ShardingType
from torchrec.optim.apply_optimizer_in_backward import apply_optimizer_in_backward

from features.schema import Schema, SparseFeature
from features.statistics import Statistics
from features.tables import TableConfig
from models.tables import table_of
from pipeline.config.optimizer import TableOptimizerConfig
from pipeline.config.sharding import ShardingConfig
from pipeline.trainer.optimizer import fused_arguments, fused_class

_FEWEST_IDS = 0.01  # per row: the planner divides by it


class _BagSharder(EmbeddingBagCollectionSharder):
    """TorchRec's sharder of bags, with row-wise sharding on CPU, which works there although it is not offered."""

    def sharding_types(self, compute_device_type: str) -> list[str]:
        types = super().sharding_types(compute_device_type)
        return types if ShardingType.ROW_WISE.value in types else [*types, ShardingType.ROW_WISE.value]


class _OrderedEnumerator(EmbeddingEnumerator):
    """TorchRec's enumerator, with sharding types in a fixed order.

    TorchRec's own order is that of a set of strings. It differs between processes, and with it the choice among
    placements that are estimated alike.
    """

    def _filter_sharding_types(self, name: str, allowed_sharding_types: list[str], sharder_key: str = "") -> list[str]:
        return sorted(super()._filter_sharding_types(name, allowed_sharding_types, sharder_key))


@dataclass(frozen=True, slots=True)
class TableLoad:
    """Load of the tables on a worker, by which the planner weighs its choices.

    Args:
        batch_size: Rows of a worker's batch.
        ids: Mean number of ids per row, by table, in the order of the features that read it.
        memory_bytes: Memory of a GPU.
        host_bytes: Memory of the host, per GPU, for tables with a cache on the GPU.
    """

    batch_size: int
    ids: Mapping[str, Sequence[float]]
    memory_bytes: int
    host_bytes: int


def table_sharders() -> list[Any]:
    """Return the sharders of all tables; the one of sequences offers row-wise everywhere."""
    return [_BagSharder(), EmbeddingCollectionSharder()]


def table_planner(
    schema: Schema,
    config: ShardingConfig,
    num_ranks: int,
    device_type: str,
    ranks_per_host: int,
    load: TableLoad | None,
    performance: PerfModel | None = None,
) -> EmbeddingShardingPlanner:
    """Return the planner of a model's tables.

    Args:
        schema: Schema that declares the tables.
        config: Allowed shardings.
        num_ranks: Number of workers.
        device_type: `cpu` or `cuda`.
        ranks_per_host: Number of workers on a host, which divides `num_ranks`.
        load: Load of the tables; None: TorchRec's defaults, 512 rows of one id per table.
        performance: Rating of a placement; None: TorchRec's estimate of a step's time.
    """
    memory, host = (load.memory_bytes, load.host_bytes) if load and device_type == "cuda" else (None, None)
    topology = Topology(
        world_size=num_ranks, compute_device=device_type, local_world_size=ranks_per_host, hbm_cap=memory, ddr_cap=host
    )
    batch_size = load.batch_size if load else BATCH_SIZE
    constraints = {table.name: _constraint(config, table, num_ranks, load) for table in schema.tables}
    return EmbeddingShardingPlanner(
        topology=topology,
        batch_size=batch_size,
        enumerator=_OrderedEnumerator(topology, batch_size, constraints),
        constraints=constraints,
        performance_model=performance,
    )


def _constraint(
    config: ShardingConfig, table: TableConfig, num_ranks: int, load: TableLoad | None
) -> ParameterConstraints:
    chosen = config.tables.get(table.name)
    kernels = [EmbeddingComputeKernel.DENSE.value if chosen == "data_parallel" else EmbeddingComputeKernel.FUSED.value]
    cached = config.uvm_caching.get(table.name)
    if cached is not None and load is not None:  # on the CPU there is no load, and no cache
        kernels.append(EmbeddingComputeKernel.FUSED_UVM_CACHING.value)
    # The planner cuts no piece narrower than 128, so most tables declared column-wise would stay whole.
    width = _piece_width(table.dim, num_ranks) if chosen == "column_wise" else None
    return ParameterConstraints(
        sharding_types=[chosen] if chosen else list(config.types),
        min_partition=width,
        compute_kernels=kernels,
        cache_params=None if cached is None else CacheParams(load_factor=cached),
        pooling_factors=list(load.ids[table.name]) if load else [POOLING_FACTOR],
    )


def _piece_width(dim: int, num_ranks: int) -> int:
    """Return the columns of a piece, for a table cut into as many equal pieces as there are ranks, or a few less."""
    return min(width for width in range(4, dim + 1, 4) if dim % width == 0 and dim // width <= num_ranks)


def fuse_optimizers(model: nn.Module, config: ShardingConfig, tables: TableOptimizerConfig) -> None:
    """Fuse the tables' optimizer into their backward pass, except that of data-parallel tables."""
    for name, parameter in model.named_parameters():
        table = table_of(name)
        if table is not None and config.tables.get(table) != "data_parallel":
            apply_optimizer_in_backward(fused_class(tables), [parameter], fused_arguments(tables))


def expected_ids(schema: Schema, statistics: Statistics | None) -> dict[str, list[float]]:
    """Return the mean number of ids per row, by table, in the order of the features that read it.

    A sequence of which the statistics have no mean length counts with its `max_length`.

    Args:
        schema: Tables and features.
        statistics: Statistics of the line; None: every row has an id.
    """
    ids: dict[str, list[float]] = {table.name: [] for table in schema.tables}
    for feature in schema.sparse_features:
        ids[feature.table].append(max(_expected_ids(feature, statistics), _FEWEST_IDS))
    return ids


def _expected_ids(feature: SparseFeature, statistics: Statistics | None) -> float:
    if feature.kind == "sequence":
        return statistics.mean_lengths.get(feature.name, feature.max_length) if statistics else feature.max_length
    return 1.0 - statistics.missing_ids.get(feature.name, 0.0) if statistics else 1.0


def workers_on_this_host() -> int:
    """Return the number of workers on this host, as Ray Train has set it.

    TorchRec's `get_local_size` returns the number of all workers instead, where this one does not divide it.
    """
    return int(os.environ.get("LOCAL_WORLD_SIZE", "0")) or get_local_size()


def device_load(
    schema: Schema, statistics: Statistics | None, batch_size: int, device: torch.device
) -> TableLoad | None:
    """Return the load of the tables on this worker's GPU; None on the CPU.

    On the CPU the planner keeps TorchRec's defaults, so that lines of earlier versions keep their placement, and with
    it the last bit. On CUDA TorchRec's default would be a GPU of 32 GB.
    """
    if device.type != "cuda":
        return None
    memory = torch.cuda.get_device_properties(device).total_memory
    host = psutil.virtual_memory().total // workers_on_this_host()
    return TableLoad(batch_size, expected_ids(schema, statistics), memory, host)
