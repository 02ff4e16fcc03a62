"""A dry run as a table, as figures for a file, and as the advice when a model does not fit."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from features.schema import Schema
from pipeline.config.project import Config
from pipeline.trainer.dry_run import Placement, Plan, used_bytes
from pipeline.trainer.rank_memory import RankMemory, TableMemory

_SIZES = ("weights", "optimizer", "gradients", "ids", "outputs")
_COLUMNS = ("table", "rows", "dim", "sharding", "kernel", "ranks", *_SIZES)


def plan_table(plan: Plan, schema: Schema) -> str:
    """Format the placement of every table, and the memory of the fullest rank.

    Args:
        plan: Result of a dry run.
        schema: Schema that declares the tables.
    """
    rank = plan.fullest
    cells = [_COLUMNS, *(_row(placement, rank, schema) for placement in plan.placements)]
    widths = [max(len(row[place]) for row in cells) for place in range(len(_COLUMNS))]
    lines = [
        "  ".join(
            cell.ljust(width) if place in (0, 3, 4) else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in cells
    ]
    lines.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join([*lines, "", *_memory_lines(plan), *_time_lines(plan)])


def _row(placement: Placement, rank: RankMemory, schema: Schema) -> tuple[str, ...]:
    (table,) = [table for table in schema.tables if table.name == placement.table]
    memory = rank.tables.get(placement.table, TableMemory())
    sizes = (memory.weights, memory.optimizer, memory.gradients, memory.inputs, memory.outputs)
    kind = (placement.sharding_type, placement.kernel, _ranges(placement.ranks))
    return (placement.table, f"{table.num_rows:,}", str(table.dim), *kind, *(gigabytes(size) for size in sizes))


def _ranges(ranks: Sequence[int]) -> str:
    return f"{ranks[0]}-{ranks[-1]}" if len(ranks) > 1 else str(ranks[0])


def gigabytes(size: float) -> str:
    """Return a number of bytes in units of 10^9 bytes, or 10^6 if it is small."""
    return f"{size / 1e9:,.2f} GB" if size >= 1e8 else f"{size / 1e6:,.1f} MB"


def _memory_lines(plan: Plan) -> list[str]:
    rank, workers = plan.fullest, plan.workers
    tables = sum(memory.on_device for memory in rank.tables.values())
    where = "in the memory of the host, not counted" if workers.device == "cuda" else "counted"
    in_host = rank.tables_in_host
    return [
        f"these are the sizes on rank {rank.rank}, the fullest of {workers.num} ({workers.on_a_host} on a host)",
        f"  tables {gigabytes(tables)}, dense part {gigabytes(rank.dense)}, its optimizer "
        f"{gigabytes(rank.dense_optimizer)}, its gradients {gigabytes(rank.dense_gradients)}",
        f"  batches {gigabytes(rank.batches)}, activations {gigabytes(rank.activations)}",
        *([f"  tables in the memory of the host {gigabytes(in_host)}, not counted"] if in_host else []),
        f"  copy of the state for a save {gigabytes(rank.saved_copy)}, {where}",
        f"  {gigabytes(used_bytes(workers, rank))} of {gigabytes(workers.memory_bytes)} used{_reserve(plan)}",
    ]


def _reserve(plan: Plan) -> str:
    return f" (TorchRec's planner keeps {plan.reserve:.0%} of a GPU free)" if plan.workers.device == "cuda" else ""


def _time_lines(plan: Plan) -> list[str]:
    parts = ", ".join(f"{name} {value:.2f}" for name, value in plan.milliseconds.items())
    return [
        f"estimate of a step's time in the tables: {sum(plan.milliseconds.values()):.2f} ms on rank {plan.slowest}",
        f"  {parts}; longest: {plan.bottleneck}",
        "  by TorchRec's planner, without the dense part and the reading; never compared with a GPU",
    ]


def plan_figures(plan: Plan) -> dict[str, Any]:
    """Return the placement, and the memory of every rank by table, for a file."""
    return {
        "workers": asdict(plan.workers),
        "fits": plan.fits,
        "missing_bytes": plan.missing_bytes,
        "placements": [asdict(placement) for placement in plan.placements],
        "ranks": [rank.figures() for rank in plan.ranks],
        "estimated_step_ms": plan.milliseconds,
        "slowest_rank": plan.slowest,
        "bottleneck": plan.bottleneck,
    }


def advice(plan: Plan, config: Config, smallest: int | None) -> str:
    """Return one line: how much is missing on which rank, the largest table, and what to do.

    Args:
        plan: A plan that does not fit.
        config: The project's configuration.
        smallest: Smallest number of workers that fits; None if none does.
    """
    rank, workers = plan.fullest, plan.workers
    table = max(config.log_schema.tables, key=lambda table: table.num_rows * table.dim)
    (placed,) = [placement for placement in plan.placements if placement.table == table.name]
    where = {
        "device": f"of memory{_reserve(plan)}",
        "host": "in the memory of its host, for the copy of a save" + " and for tables" * bool(rank.tables_in_host),
        "planner": "of the 128 GiB within which TorchRec's planner places tables on the CPU",
    }[plan.lacks]
    return (
        f"does not fit on {workers.num} worker{'s' * (workers.num > 1)}: rank {rank.rank} lacks "
        f"{gigabytes(plan.missing_bytes)} {where}; the largest table is {table.name} with "
        f"{gigabytes(table.num_rows * table.dim * 4)} of weights, {placed.sharding_type}: "
        + ", or ".join(_remedies(plan, config, smallest, placed))
    )


def _remedies(plan: Plan, config: Config, smallest: int | None, placed: Placement) -> list[str]:
    rank = plan.fullest
    found = [f"use {smallest} worker{'s' * (smallest > 1)}"] if smallest is not None else []
    if placed.sharding_type in ("table_wise", "data_parallel", "column_wise") and plan.workers.num > 1:
        found.append(f"set sharding.tables.{placed.table} to row_wise")
    if rank.saved_copy and plan.lacks == ("device" if plan.workers.device == "cpu" else "host"):
        found.append("set checkpoint.background to false")
    if plan.lacks == "device" and plan.workers.device == "cuda" and placed.kernel == "fused":
        found.append(f"give the table a cache on the GPU (sharding.uvm_caching.{placed.table}=0.1)")
    if plan.lacks == "device" and rank.activations + rank.batches > rank.state:
        bfloat16 = "" if config.workers.precision == "bfloat16" else " or workers.precision bfloat16"
        found.append(f"a smaller ingest.batch_size{bfloat16}")
    return [*found, "fewer rows or a smaller dim of the table"]
