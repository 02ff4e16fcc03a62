"""Model of the cost of a step and of a day, for any number of workers; `python -m benchmarks.scale_model` prints it.

Nothing of it was run on a GPU. Its constants are measured on the machine of docs/performance.md, taken from data sheets
by name, or assumed; docs/scale.md says which is which.
"""

import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

Sharding = Literal["row_wise", "table_wise"]
Row = dict[str, Any]

FLOAT, ID = 4, 8  # bytes
UNIT_ROWS = 65_536
SERIAL_S_PER_UNIT = 4.3 / 152_588  # deal, turns and grouping into read tasks: plan_scale, 512 ranks
AUDIT_S_PER_UNIT = 0.72 / 152_588  # comparison on rank 0: plan_scale, 512 ranks
AUDIT_S_PER_ROW = 9e-9  # shared by the ranks: pipeline/ingest/cursor.py
BLOCK_S = 0.32 * UNIT_ROWS / 1e6  # of Ray's splitter, one process for a whole run: ingest_cpu
GET_BYTES = 64 * 2**20
WORKERS = (8, 16, 32, 64, 128, 256, 512)
ROWS_A_DAY = (1e9, 1e10, 1e11)


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """Shape of a model and its log.

    Args:
        batch: Rows of a batch of one worker.
        lookups: Ids per row.
        pooled: Features, each pooled to one embedding.
        dim: Width of an embedding.
        table_rows: Rows of all tables.
        flops: Floating-point operations per row of the dense part, forward and backward.
        parameters: Parameters of the dense part.
        log_bytes: Bytes of a row in Parquet.
        read_s: CPU-seconds per row from Parquet to a batch.
        unit_rows: Rows of a unit of reading.
    """

    batch: int
    lookups: float
    pooled: int
    dim: int
    table_rows: float
    flops: float
    parameters: float
    log_bytes: float
    read_s: float
    unit_rows: int = UNIT_ROWS


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """Speed of one worker's device, and of its links.

    Args:
        name: Name of the device.
        flops_per_s: Rate of the dense part.
        memory_bytes_per_s: Rate of reading and writing rows of tables.
        local_bytes_per_s: Rate of a link within a node, one direction.
        link_bytes_per_s: Rate of a worker's share of the network, one direction.
        node_workers: Workers of a node.
        hop_s: Latency of a message between hosts.
        fixed_s: Time of a step that depends on no size: launches, bookkeeping.
        readers: CPU cores per worker that read the log.
        storage_bytes_per_s: Rate of a worker's writes to storage.
        copy_bytes_per_s: Rate of the copy of a checkpoint into the host's memory.
    """

    name: str
    flops_per_s: float
    memory_bytes_per_s: float
    local_bytes_per_s: float
    link_bytes_per_s: float
    node_workers: int = 8
    hop_s: float = 40e-6
    fixed_s: float = 3e-3
    readers: float = 14
    storage_bytes_per_s: float = 0.5e9
    copy_bytes_per_s: float = 12e9


# 12 experts of 512 a level, two levels, 5 tasks over 30 pooled features of width 64 and 13 dense values.
_EXPERTS, _WIDTH, _INPUT = 12, 512, 30 * 64 + 13
_DENSE = _EXPERTS * _WIDTH * (_INPUT + _WIDTH)
GPU_WORK = Work(
    batch=4096,
    lookups=200,
    pooled=30,
    dim=64,
    table_rows=1e9,
    flops=6.0 * _DENSE,
    parameters=_DENSE,
    log_bytes=400,
    read_s=5 * 1.92e-6,
)
CASES: dict[str, tuple[Work, Sharding]] = {
    "row-wise": (GPU_WORK, "row_wise"),
    "table-wise": (GPU_WORK, "table_wise"),
    "table-wise, large units": (replace(GPU_WORK, unit_rows=16 * UNIT_ROWS), "table_wise"),
}
_GEMM, _MEMORY, _LINK = 0.4, 0.6, 0.7  # assumed shares of the figures of the data sheets
A100 = Machine(
    name="A100",
    flops_per_s=_GEMM * 156e12,
    memory_bytes_per_s=_MEMORY * 2.0e12,
    local_bytes_per_s=_LINK * 300e9,
    link_bytes_per_s=_LINK * 25e9,
)
H100 = Machine(
    name="H100",
    flops_per_s=_GEMM * 494e12,
    memory_bytes_per_s=_MEMORY * 3.35e12,
    local_bytes_per_s=_LINK * 450e9,
    link_bytes_per_s=_LINK * 50e9,
)


# The paper's head of benchmarks/workload.py, on one core: rates of head_gemm at its width (one thread, 1,024 rows) and
# of sparse_step, and the fixed part of step_overhead with one layer. The rate of gloo between processes is assumed.
CPU_WORK = Work(
    batch=1024,
    lookups=22,
    pooled=3,
    dim=16,
    table_rows=40_000,
    flops=6 * 633_906,
    parameters=633_906,
    log_bytes=100,
    read_s=2.5e-6,
)
CPU_CORE = Machine(
    name="one core",
    flops_per_s=27e9,
    memory_bytes_per_s=1.2e9,
    local_bytes_per_s=1e9,
    link_bytes_per_s=1e9,
    fixed_s=11e-3,
    readers=1,
)
MEASURED_CPU_S = {1: 135.6, 2: 125.0, 4: 136.7}  # per million rows, by workers: benchmark `scaling`, 2 turns


def step_seconds(work: Work, machine: Machine, workers: int, sharding: Sharding) -> dict[str, float]:
    """Return the seconds of each part of a step; `PARALLEL_PARTS` run beside the device's."""
    others = workers - 1
    pooled = work.batch * work.pooled * work.dim * FLOAT
    sent = pooled * (others if sharding == "row_wise" else others / workers)
    partial_sums = pooled * (workers if sharding == "row_wise" else 1)
    rows = work.batch * work.lookups * FLOAT * (3 * work.dim + 2)
    return {
        "head": work.batch * work.flops / machine.flops_per_s,
        "tables": (rows + 2 * partial_sums) / machine.memory_bytes_per_s,
        "embeddings": 2 * _over_links(sent, machine, workers),
        "all_reduce": 2 * _over_links(FLOAT * work.parameters * others / workers, machine, workers),
        "fixed": machine.fixed_s,
        "ids": _over_links(work.batch * work.lookups * ID * others / workers, machine, workers),
        "small_sum": 2 * others * machine.hop_s,
        "readers": work.batch * work.read_s / machine.readers,
        "splitter": workers * work.batch / work.unit_rows * BLOCK_S,
    }


PARALLEL_PARTS = ("ids", "small_sum", "readers", "splitter")


def step_of(parts: dict[str, float]) -> tuple[float, str]:
    """Return the seconds of a step, and the part that binds it.

    The parts of the device follow one another; each of the parallel parts only counts if it takes longer than these.
    """
    own = {name: seconds for name, seconds in parts.items() if name not in PARALLEL_PARTS}
    slowest = max(PARALLEL_PARTS, key=lambda name: parts[name])
    if parts[slowest] > sum(own.values()):
        return parts[slowest], slowest
    return sum(own.values()), max(own, key=lambda name: own[name])


def day_seconds(work: Work, machine: Machine, workers: int, rows: float, sharding: Sharding) -> dict[str, Any]:
    """Return the parts of a day in seconds, its requests, and the part that binds a step."""
    step, binds = step_of(step_seconds(work, machine, workers, sharding))
    units = rows / work.unit_rows
    share = work.table_rows * (work.dim + 1) * FLOAT / workers
    return {
        "steps": math.ceil(rows / (workers * work.batch)) * step,
        "start": 30.0 + units * SERIAL_S_PER_UNIT + share / machine.storage_bytes_per_s,
        "end": units * AUDIT_S_PER_UNIT + rows / workers * AUDIT_S_PER_ROW + share / machine.storage_bytes_per_s,
        "stall_of_a_save": share / machine.copy_bytes_per_s,
        "requests": rows * work.log_bytes / GET_BYTES + 2 * workers * math.ceil(share / GET_BYTES),
        "reader_cores": rows * work.read_s,
        "rows_per_s": workers * work.batch / step,
        "binds": binds,
    }


def cpu_s_per_million_rows(work: Work, machine: Machine, workers: int) -> float:
    """Return the CPU-seconds of all processes for a million rows, on a machine without a GPU."""
    parts = step_seconds(work, machine, workers, "row_wise")
    own = sum(seconds for name, seconds in parts.items() if name not in PARALLEL_PARTS)
    return 1e6 * (own / work.batch + work.read_s)


def _over_links(sent: float, machine: Machine, workers: int) -> float:
    """Return the seconds in which a worker sends bytes to all others alike: to its node's and to the other nodes'."""
    if workers == 1:
        return 0.0
    away = max(0, workers - machine.node_workers) / (workers - 1)
    return max(sent * away / machine.link_bytes_per_s, sent * (1 - away) / machine.local_bytes_per_s)


def rows_of_steps(work: Work, machine: Machine, sharding: Sharding) -> Iterator[Row]:
    """Yield the milliseconds of the parts of a step, by workers."""
    for workers in WORKERS:
        parts = step_seconds(work, machine, workers, sharding)
        step, binds = step_of(parts)
        shown = {name: _digits(1e3 * seconds) for name, seconds in parts.items()}
        rate = f"{workers * work.batch / step / 1e6:.2f}"
        yield {"workers": workers} | shown | {"step": _digits(1e3 * step), "M rows/s": rate, "binds": binds}


def rows_of_days(work: Work, machine: Machine, sharding: Sharding) -> Iterator[Row]:
    """Yield the hours of a day, by workers and rows."""
    for workers in WORKERS:
        row: Row = {"workers": workers}
        for rows in ROWS_A_DAY:
            day = day_seconds(work, machine, workers, rows, sharding)
            row[f"{rows / 1e9:.0f} B rows"] = _digits((day["steps"] + day["start"] + day["end"]) / 3600)
        yield row | {"binds": day["binds"]}


def table(rows: Sequence[Row]) -> str:
    """Return rows as a Markdown table."""
    lines = ["| " + " | ".join(rows[0]) + " |", "|" + "---|" * len(rows[0])]
    return "\n".join([*lines, *("| " + " | ".join(map(str, row.values())) + " |" for row in rows)])


def rows_of_check() -> Iterator[Row]:
    """Yield the CPU-seconds per million rows of the model and of measured runs, by workers."""
    for workers in (1, 2, 4):
        found, measured = cpu_s_per_million_rows(CPU_WORK, CPU_CORE, workers), MEASURED_CPU_S.get(workers)
        shown = (
            ("not measured", "-") if measured is None else (_digits(measured), f"{100 * (found / measured - 1):.0f} %")
        )
        yield {"workers": workers, "model": _digits(found), "measured": shown[0], "error": shown[1]}


def tables() -> Iterator[str]:
    """Yield the tables of docs/scale.md, each below its title."""
    yield f"CPU-seconds per million rows on this machine\n\n{table(list(rows_of_check()))}"
    for title, (work, sharding) in CASES.items():
        yield f"Milliseconds of a step on H100, {title}\n\n{table(list(rows_of_steps(work, H100, sharding)))}"
    for machine in (A100, H100):
        for title, (work, sharding) in CASES.items():
            yield f"Hours of a day on {machine.name}, {title}\n\n{table(list(rows_of_days(work, machine, sharding)))}"


def figure_svg() -> str:
    """Draw rows per second over workers, both axes logarithmic."""
    import altair as alt
    import vl_convert

    points = [
        {"workers": workers, "rate": workers * work.batch / step_of(parts)[0] / 1e6, "name": f"{one.name}, {title}"}
        for one in (A100, H100)
        for title, (work, sharding) in CASES.items()
        for workers in WORKERS
        for parts in [step_seconds(work, one, workers, sharding)]
    ]
    x = alt.X("workers:Q", title="workers, a GPU each", scale=alt.Scale(type="log", base=2))
    y = alt.Y("rate:Q", title="million rows per second", scale=alt.Scale(type="log"))
    colour = alt.Color("name:N", legend=alt.Legend(title=None, labelLimit=300))
    chart = alt.Chart(alt.Data(values=points)).mark_line(point=True).encode(x=x, y=y, color=colour)
    return vl_convert.vegalite_to_svg(chart.properties(width=480, height=320).to_dict())


def _digits(value: float) -> str:
    """Return a figure to two or three digits."""
    return f"{value:,.0f}" if value >= 99.5 else f"{value:.3g}"


def main() -> int:
    """Print the tables; with a path as argument, draw the figure there."""
    sys.stdout.write("\n\n".join(tables()) + "\n")
    if len(sys.argv) > 1:
        Path(sys.argv[1]).write_text(figure_svg())
    return 0


if __name__ == "__main__":
    sys.exit(main())
