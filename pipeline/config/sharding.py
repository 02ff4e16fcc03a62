"""Sharding of tables over the workers, and the layouts that train the declared model."""

from typing import Literal

from pydantic import Field

from features.declaration import Declaration
from features.errors import ConfigError
from features.schema import Schema
from pipeline.config.optimizer import TableOptimizerConfig

Sharding = Literal["table_wise", "row_wise", "table_row_wise", "column_wise", "data_parallel"]


class ShardingConfig(Declaration):
    """Sharding of tables over the workers.

    Args:
        types: Sharding types that the planner may choose. Checkpoints reshard freely among the default three.
            `table_row_wise` is left out if hosts have different numbers of workers.
        tables: Given types by table name.
        train_pipeline: TorchRec's `TrainPipelineBase`, or `TrainPipelineSparseDist`, which sends the ids of the next
            batch during the computation of this one.
    """

    types: list[Sharding] = Field(default=["table_wise", "row_wise", "table_row_wise"], min_length=1)
    tables: dict[str, Sharding] = {}
    train_pipeline: Literal["base", "sparse_dist"] = "sparse_dist"


def check_sharding(config: ShardingConfig, tables: TableOptimizerConfig, schema: Schema, num_workers: int) -> None:
    """Check that the sharding trains the declared model.

    Raises:
        ConfigError: The optimizer is not invariant to a sharding, a table is unknown, or has fewer rows than there are
            workers.
    """
    names = {table.name for table in schema.tables}
    unknown = set(config.tables) - names
    if unknown:
        raise ConfigError(f"sharding.tables names {sorted(unknown)}, declared tables are {sorted(names)}")
    for sharding in {*config.types, *config.tables.values()}:
        if sharding == "column_wise" and tables.kind == "rowwise_adagrad":
            raise ConfigError(
                "sharding column_wise with rowwise_adagrad keeps one accumulator per shard, which trains another "
                "model: use adagrad or sgd for the tables, or another sharding"
            )
        if sharding == "data_parallel" and tables.kind == "adagrad":
            raise ConfigError(
                "sharding data_parallel is offered with rowwise_adagrad and sgd, not with adagrad: use one of those "
                "for the tables, or another sharding"
            )
    if "data_parallel" in config.types:
        raise ConfigError("sharding.types has data_parallel: name such tables one by one in sharding.tables")
    _check_tables(config, schema, num_workers)


def _check_tables(config: ShardingConfig, schema: Schema, num_workers: int) -> None:
    for name in sorted(schema.unpooled_tables):
        if config.tables.get(name) == "table_row_wise":
            raise ConfigError(
                f"sharding.tables has {name} table_row_wise, which TorchRec does not offer for tables that an unpooled "
                "sequence reads: use row_wise or table_wise"
            )
    for table in schema.tables:
        if table.dim % 4:
            raise ConfigError(f"table {table.name!r} has dim {table.dim}: FBGEMM's tables need a multiple of 4")
        if table.num_rows < num_workers:
            raise ConfigError(
                f"table {table.name!r} has {table.num_rows} rows for {num_workers} workers: declare at least one row "
                "a worker, or use fewer workers"
            )
