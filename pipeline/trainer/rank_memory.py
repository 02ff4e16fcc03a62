"""Memory of every rank under a placement of the tables: per table, the dense part, batches, and the copy of a save.

Weights and optimizer state follow from the shapes. The other figures are estimates: TorchRec's sizes of the ids and
rows that ranks exchange, and the bytes per row of `pipeline.trainer.row_memory`.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from torch import nn
from torchrec.distributed.embedding_types import EmbeddingComputeKernel
from torchrec.distributed.planner.shard_estimators import _calculate_shard_io_sizes
from torchrec.distributed.planner.types import ShardingOption

from models.tables import table_of
from pipeline.config.project import Config
from pipeline.trainer.row_memory import RowMemory

_FLOAT, _ID = 4, 8  # bytes of a weight, and of an id between ranks
_IDS_OF = {"base": 1, "sparse_dist": 2}  # batches whose ids the ranks have exchanged, by train pipeline
_BATCHES = {"base": 2, "sparse_dist": 3}  # batches on the device, by train pipeline


@dataclass(frozen=True, slots=True)
class TableMemory:
    """Bytes of a table on one rank.

    Args:
        weights: Weights.
        optimizer: State of the optimizer.
        gradients: Gradient of a data-parallel table, and the bucket in which it is reduced; a fused one has none.
        inputs: Ids that the rank looks up.
        outputs: Rows, or sums of rows, that the rank gives to others.
        cache: The GPU's cache of a table in the memory of the host.
        in_host: Part of the weights and of the optimizer's state that lies in the memory of the host, beside a GPU.
    """

    weights: int = 0
    optimizer: int = 0
    gradients: int = 0
    inputs: int = 0
    outputs: int = 0
    cache: int = 0
    in_host: int = 0

    @property
    def on_device(self) -> int:
        """Bytes on the device."""
        state = self.weights + self.optimizer - self.in_host
        return state + self.gradients + self.inputs + self.outputs + self.cache

    def plus(self, other: "TableMemory") -> "TableMemory":
        """Return the memory of both."""
        mine, its = asdict(self), asdict(other)
        return TableMemory(**{name: mine[name] + its[name] for name in mine})


@dataclass(frozen=True, slots=True)
class RankMemory:
    """Bytes of one rank.

    Args:
        rank: Number of the rank.
        tables: Tables with a part on the rank, by name.
        dense: Weights of the dense part, with its buffers.
        dense_optimizer: State of the dense part's optimizer.
        dense_gradients: The flat buffer of the dense part's gradients.
        batches: Batches that wait on the device.
        activations: Tensors that the forward pass keeps for the backward pass.
        saved_copy: Copy of the state from which a checkpoint is written in the background; in the memory of the host.
    """

    rank: int
    tables: dict[str, TableMemory]
    dense: int
    dense_optimizer: int
    dense_gradients: int
    batches: int
    activations: int
    saved_copy: int

    @property
    def state(self) -> int:
        """Bytes of weights and optimizer state, as a checkpoint has them."""
        tables = sum(table.weights + table.optimizer for table in self.tables.values())
        return tables + self.dense + self.dense_optimizer

    @property
    def on_device(self) -> int:
        """Bytes on the device: all but the copy of a save, and tables in the memory of the host."""
        working = self.dense_gradients + self.batches + self.activations
        return sum(table.on_device for table in self.tables.values()) + self.dense + self.dense_optimizer + working

    @property
    def tables_in_host(self) -> int:
        """Bytes of tables that lie in the memory of the host, beside a GPU."""
        return sum(table.in_host for table in self.tables.values())

    def figures(self) -> dict[str, Any]:
        """Return all figures by name, for a file."""
        others = {"state": self.state, "on_device": self.on_device, "tables_in_host": self.tables_in_host}
        return asdict(self) | others


def rank_memories(
    config: Config,
    model: nn.Module,
    options: Sequence[ShardingOption],
    ids: Mapping[str, Sequence[float]],
    row: RowMemory,
    num_ranks: int,
    ranks_per_host: int,
) -> list[RankMemory]:
    """Return the memory of every rank.

    Args:
        config: The project's configuration.
        model: The declared model; the meta device is enough.
        options: Placement of every table by the planner.
        ids: Mean number of ids per row, as in `expected_ids`.
        row: Bytes per row of a batch.
        num_ranks: Number of workers.
        ranks_per_host: Number of workers on a host.
    """
    tables: list[dict[str, TableMemory]] = [{} for _ in range(num_ranks)]
    for option in options:
        for rank, memory in _shares(config, option, ids[option.name], num_ranks, ranks_per_host):
            tables[rank][option.name] = tables[rank].get(option.name, TableMemory()).plus(memory)
    batch_size = config.ingest.batch_size
    dense, dense_optimizer, dense_gradients = _dense(config, model)
    found = []
    for rank, of_rank in enumerate(tables):
        state = sum(memory.weights + memory.optimizer for memory in of_rank.values()) + dense + dense_optimizer
        memory = RankMemory(
            rank=rank,
            tables=of_rank,
            dense=dense,
            dense_optimizer=dense_optimizer,
            dense_gradients=dense_gradients,
            batches=math.ceil(row.batch * batch_size) * _BATCHES[config.sharding.train_pipeline],
            activations=math.ceil(row.activations * batch_size),
            saved_copy=state if config.checkpoint.background else 0,
        )
        found.append(memory)
    return found


def _shares(
    config: Config, option: ShardingOption, ids: Sequence[float], num_ranks: int, ranks_per_host: int
) -> list[tuple[int, TableMemory]]:
    """Return the memory of every piece of a table, with the piece's rank."""
    sizes = [list(shard.size) for shard in option.shards]
    inputs, outputs = _exchanged(config, option, ids, num_ranks, ranks_per_host)
    replicated = option.sharding_type == "data_parallel"
    shares = []
    for shard, (rows, columns), read, given in zip(option.shards, sizes, inputs, outputs, strict=True):
        weights, kind = rows * columns * _FLOAT, config.optimizer.tables.kind
        optimizer, cache, in_host = _optimizer_bytes(kind, rows, columns), 0, 0
        if option.compute_kernel == EmbeddingComputeKernel.FUSED_UVM_CACHING.value:
            cache = math.ceil(weights * (option.cache_load_factor or 0.0))
            # FBGEMM keeps a row's single accumulator on the device.
            in_host = weights + (0 if kind == "rowwise_adagrad" else optimizer)
        memory = TableMemory(
            weights=weights,
            optimizer=optimizer,
            gradients=2 * weights if replicated else 0,
            inputs=read * _IDS_OF[config.sharding.train_pipeline],
            outputs=given,
            cache=cache,
            in_host=in_host,
        )
        assert shard.rank is not None
        shares.append((shard.rank, memory))
    return shares


def _exchanged(
    config: Config, option: ShardingOption, ids: Sequence[float], num_ranks: int, ranks_per_host: int
) -> tuple[list[int], list[int]]:
    """Return TorchRec's bytes of the ids that every piece of a table reads, and of the rows that it gives."""
    return _calculate_shard_io_sizes(
        sharding_type=option.sharding_type,
        batch_sizes=[config.ingest.batch_size] * len(ids),
        world_size=num_ranks,
        local_world_size=ranks_per_host,
        input_lengths=list(ids),
        emb_dim=option.tensor.shape[1],
        shard_sizes=[list(shard.size) for shard in option.shards],
        input_data_type_size=_ID,
        output_data_type_size=_FLOAT,
        num_poolings=[1.0] * len(ids),
        is_pooled=bool(option.is_pooled),
    )


def _optimizer_bytes(kind: str, rows: int, columns: int) -> int:
    """Return the bytes of the accumulators: one per row, or one per weight."""
    return {"rowwise_adagrad": rows, "adagrad": rows * columns, "sgd": 0}[kind] * _FLOAT


def _dense(config: Config, model: nn.Module) -> tuple[int, int, int]:
    """Return the bytes of the dense part, of its optimizer's state, and of its gradients."""
    parameters = [parameter for name, parameter in model.named_parameters() if table_of(name) is None]
    weights = sum(parameter.nbytes for parameter in parameters)
    buffers = sum(buffer.nbytes for buffer in model.buffers())
    # Adam has two moments per weight, and the number of steps per tensor.
    state = 2 * weights + _FLOAT * len(parameters) if config.optimizer.dense.kind == "adam" else 0
    return weights + buffers, state, weights
