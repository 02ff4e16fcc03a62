"""Sharding of table rows over ranks, as TorchRec's planner has placed them."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from fbgemm_gpu.split_table_batched_embeddings_ops_training import SplitTableBatchedEmbeddingBagsCodegen
from torch import nn
from torchrec.distributed.comm import get_local_size
from torchrec.distributed.model_parallel import DataParallelWrapper, DistributedModelParallel
from torchrec.distributed.types import ShardingEnv

from features.errors import DataError
from features.schema import Schema
from models.tables import initial_blocks, initial_rows_at, table_of
from pipeline.config.optimizer import TableOptimizerConfig
from pipeline.config.sharding import ShardingConfig
from pipeline.lineage.records import TableSharding
from pipeline.trainer.optimizer import fused_type
from pipeline.trainer.table_planner import TableLoad, fuse_optimizers, table_planner, table_sharders

logger = logging.getLogger(__name__)


class NoDataParallel(DataParallelWrapper):
    """Wrapper that leaves the dense part as it is: `StepOptimizer` reduces its gradients in one buffer of fixed layout.

    DDP rebuilds its buckets after the first step, so a resumed run of 3 ranks would add in another order.
    """

    def wrap(self, dmp: DistributedModelParallel, env: ShardingEnv, device: torch.device) -> None:
        """Move the model to its device, and give the dense part rank 0's values."""
        module = dmp._dmp_wrapped_module.to(device)
        tables = set(DistributedModelParallel._sharded_parameter_names(module))
        for name, parameter in module.named_parameters():
            if name not in tables:
                dist.broadcast(parameter.data, src=0, group=env.process_group)


def shard_model(
    model: nn.Module,
    schema: Schema,
    config: ShardingConfig,
    tables: TableOptimizerConfig,
    group: dist.ProcessGroup,
    device: torch.device,
    load: TableLoad | None = None,
) -> DistributedModelParallel:
    """Shard the model's tables over the ranks of a group; collective.

    Args:
        model: Model with its tables in collections on the meta device.
        schema: Schema that declares the tables.
        config: Allowed shardings.
        tables: The tables' optimizer, fused into their backward pass.
        group: Process group of the training thread.
        device: Device of this rank.
        load: Load of the tables; None: the planner's defaults.
    """
    fuse_optimizers(model, config, tables)
    sharders = table_sharders()
    on_hosts: list[int] = [0] * group.size()
    dist.all_gather_object(on_hosts, get_local_size(), group=group)
    config = config_for_hosts(config, on_hosts)
    planner = table_planner(schema, config, group.size(), device.type, on_hosts[0], load)
    plan = planner.collective_plan(model, sharders, group)
    sharded = DistributedModelParallel(
        model,
        env=ShardingEnv.from_process_group(group),
        device=device,
        plan=plan,
        sharders=sharders,
        data_parallel_wrapper=NoDataParallel(),
    )
    _check_optimizers(sharded, config, tables)
    return sharded


def config_for_hosts(config: ShardingConfig, on_hosts: Sequence[int]) -> ShardingConfig:
    """Return the shardings that the planner may choose on these hosts.

    `table_row_wise` gives a table to the workers of one host. TorchRec reads the number of a host's workers in each
    process, so where hosts differ the ranks would not agree on who has which rows.

    Args:
        config: The declared shardings.
        on_hosts: Number of workers on the host of each rank.

    Raises:
        DataError: Hosts differ, and only `table_row_wise` is left for a table.
    """
    if len(set(on_hosts)) == 1:
        return config
    left = [kind for kind in config.types if kind != "table_row_wise"]
    fixed = sorted(table for table, kind in config.tables.items() if kind == "table_row_wise")
    if fixed or not left:
        where = f"sharding.tables of {', '.join(fixed)}" if fixed else "sharding.types"
        raise DataError(
            f"{where}: table_row_wise needs as many workers on each host, and hosts have {sorted(set(on_hosts))}: "
            "choose row_wise, or a number of workers that fills the hosts"
        )
    return config.model_copy(update={"types": left})


def table_shardings(model: DistributedModelParallel) -> dict[str, TableSharding]:
    """Return the executed plan: sharding type, compute kernel and ranks of each table, for logs and manifests."""
    found: dict[str, TableSharding] = {}
    for module_plan in model.plan.plan.values():
        for table, sharding in module_plan.items():  # pyright: ignore[reportAttributeAccessIssue]
            found[table] = TableSharding(
                sharding_type=sharding.sharding_type,
                compute_kernel=sharding.compute_kernel,
                ranks=None if sharding.ranks is None else tuple(sharding.ranks),
            )
    return found


def _check_optimizers(model: DistributedModelParallel, config: ShardingConfig, tables: TableOptimizerConfig) -> None:
    """Log every table's real optimizer, and check that it is the declared one: TorchRec drops a fused one silently."""
    for module in model.modules():
        if isinstance(module, SplitTableBatchedEmbeddingBagsCodegen):
            if module.optimizer != fused_type(tables):
                raise RuntimeError(f"a table trains with {module.optimizer}, declared is {tables.kind}")
            logger.debug("tables %s train with %s", module.feature_table_map, module.optimizer)
    fused = {table for table, chosen in table_shardings(model).items() if chosen.compute_kernel == "fused"}
    declared = {name for name in table_shardings(model) if config.tables.get(name) != "data_parallel"}
    if fused != declared:
        raise RuntimeError(f"tables {sorted(declared - fused)} lost their fused optimizer {tables.kind}")


@torch.no_grad()
def initialise_tables(
    model: DistributedModelParallel, schema: Schema, seed: int, first_rows: Mapping[str, int] | None = None
) -> None:
    """Give rows their initial values, which depend on (seed, table, row) and not on the sharding.

    Args:
        model: The sharded model.
        schema: Schema that declares the tables.
        seed: The run's seed.
        first_rows: First row to change, by table; other tables stay. None: all rows of all tables.
    """
    declared = {table.name: table for table in schema.tables}
    for name, tensor in model.state_dict().items():
        table = declared.get(table_of(name) or "")
        if table is None or (first_rows is not None and table.name not in first_rows):
            continue
        first = first_rows[table.name] if first_rows is not None else 0
        for local, (first_row, first_column) in local_blocks(tensor):
            rows = range(max(first, first_row), first_row + local.shape[0])
            columns = range(first_column, first_column + local.shape[1])
            for piece, values in initial_blocks(table, seed, rows, columns):
                local[piece.start - first_row : piece.stop - first_row].copy_(values)


@torch.no_grad()
def reset_rows(tensors: Mapping[str, Any], schema: Schema, seed: int, rows: Mapping[str, np.ndarray]) -> None:
    """Reset rows of tables: weights as from `initialise_tables`, optimizer state zero.

    Every rank must get the same rows; it changes those that it holds, and waits for no other.

    Args:
        tensors: Tensors of all parts, as in `TrainState.tensors`: views of the live ones.
        schema: Schema that declares the tables.
        seed: The run's seed.
        rows: Increasing row numbers by table.
    """
    declared = {table.name: table for table in schema.tables}
    for name, weight in tensors["model"].items():
        table = declared.get(table_of(name) or "")
        if table is None:
            continue
        for local, (first_row, first_column) in local_blocks(weight):
            held = _held(rows.get(table.name), first_row, local)
            columns = range(first_column, first_column + local.shape[1])
            local[held - first_row] = initial_rows_at(table, seed, held, columns).to(local)
    for name, state in tensors.get("tables", {}).items():
        for tensor in state.values():
            for local, (first_row, _) in local_blocks(tensor):
                local[_held(rows.get(table_of(name) or ""), first_row, local) - first_row] = 0


def _held(rows: np.ndarray | None, first_row: int, local: torch.Tensor) -> torch.Tensor:
    """Return the rows of a table that a block holds, int64, increasing."""
    found = torch.from_numpy(np.asarray([] if rows is None else rows, np.int64))
    return found[(found >= first_row) & (found < first_row + len(local))]


def local_blocks(tensor: object) -> list[tuple[torch.Tensor, tuple[int, int]]]:
    """Return this rank's parts of a table, as views, with their first row and column."""
    if isinstance(tensor, torch.Tensor) and not hasattr(tensor, "local_shards"):
        return [(tensor, (0, 0))]
    blocks = []
    for shard in tensor.local_shards():  # pyright: ignore[reportAttributeAccessIssue]
        row, column = [*shard.metadata.shard_offsets, 0][:2]  # row-wise optimizer state has one dimension
        blocks.append((shard.tensor, (row, column)))
    return blocks
