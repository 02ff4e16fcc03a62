"""Checks of a training's inputs before it has workers: the newest day, ids against rows, the object store."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date

from features.errors import DataError
from features.statistics import Statistics
from pipeline.config.ingest import IngestConfig
from pipeline.config.project import Config
from pipeline.ingest.units import DayLog, check_days
from pipeline.lineage.frozen_statistics import STATISTICS, load_statistics
from pipeline.lineage.line import Line
from pipeline.storage.files import Storage
from pipeline.trainer.row_memory import RowMemory, encoded_row_bytes

_MANY_COLLISIONS = 0.2
_MIB = 2**20


@dataclass(frozen=True, slots=True)
class NewestDay:
    """The newest day of a log.

    Args:
        day: ISO date.
        rows: Number of rows by the footers.
    """

    day: str
    rows: int


@dataclass(frozen=True, slots=True)
class IdsOfTable:
    """Ids of a hashed table against its rows.

    Args:
        table: Name of the table.
        ids: Distinct ids by the statistics of the line.
        rows: Rows of the table.
        colliding: Expected share of the ids that share their row with another id.
    """

    table: str
    ids: int
    rows: int
    colliding: float


def check_newest_day(config: Config) -> NewestDay | str:
    """Check the schema against the footers of the newest day's files.

    Returns:
        The day; or the reason for which no log was checked.

    Raises:
        DataError: A file does not fit the schema, or is not readable; names the file.
    """
    logs, schema = Storage(config.logs.path), config.log_schema
    try:
        days = sorted(day for name in logs.names() if (day := _day_of(name)))
    except OSError as error:
        return f"{logs.url} is not reachable ({type(error).__name__}: {error})"
    if not days:
        return f"{logs.url} has no day yet"
    (log,) = check_days(logs, days[-1:], config.ingest.unit.max_rows, schema, schema.columns())
    return NewestDay(log.day, log.num_rows)


def _day_of(name: str) -> str | None:
    try:
        return date.fromisoformat(name.removeprefix("dt=")).isoformat() if name.startswith("dt=") else None
    except ValueError:
        return None


def read_statistics(config: Config) -> Statistics | None:
    """Return the statistics of the line; None if it has none, or cannot be reached.

    Raises:
        ConfigError: They are damaged, or were made for another schema.
    """
    line = Line.of(config.root, config.line)
    try:
        return load_statistics(config, line) if line.storage.exists(STATISTICS) else None
    except OSError:
        return None


def ids_of_tables(config: Config, statistics: Statistics | None) -> list[IdsOfTable]:
    """Return the expected collisions of every hashed table that an id or a sequence reads.

    With d ids over R rows, an id is alone in its row with probability (1 - 1/R)^(d - 1).
    """
    if statistics is None:
        return []
    schema = config.log_schema
    hashed = {feature.table for feature in schema.sparse_features if feature.kind != "bucket"} - set(
        schema.vocabularies
    )
    tables = [table for table in schema.tables if table.name in hashed]
    return [
        IdsOfTable(table.name, ids, table.num_rows, colliding_share(ids, table.num_rows))
        for table in tables
        if (ids := statistics.distinct_ids.get(table.name, 0))
    ]


def colliding_share(ids: int, rows: int) -> float:
    """Return the expected share of ids that share their row with another one.

    Args:
        ids: Number of distinct ids, at least 1.
        rows: Number of rows over which they are hashed.
    """
    if rows == 1:
        return float(ids > 1)
    return -math.expm1((ids - 1) * math.log1p(-1 / rows))


def warn_of_inputs(config: Config, tables: list[IdsOfTable], row: RowMemory, workers: int, on_a_host: int) -> list[str]:
    """Return what a training would not refuse, but a person should know.

    Args:
        config: The project's configuration.
        tables: Result of `ids_of_tables`.
        row: Bytes per row.
        workers: Number of workers.
        on_a_host: Number of those whose units are in one object store.
    """
    crowded = [
        f"table {found.table}: {found.ids:,} ids over {found.rows:,} rows, {found.colliding:.0%} of the ids are "
        "expected to share their row: declare more rows, or a vocabulary"
        for found in tables
        if found.colliding > _MANY_COLLISIONS
    ]
    ingest, rows = config.ingest, config.ingest.unit.max_rows
    unit = row.encoded * rows
    open_units = ingest.prefetch_units + ingest.shuffle.interleave
    store = config.ray.object_store_mb * _MIB
    needed = on_a_host * open_units * unit + ingest.object_store_mb * _MIB
    if config.ray.address == "local" and needed > store:
        crowded.append(
            f"object store: {on_a_host} workers with {open_units} units of up to {unit / _MIB:,.0f} MiB each, and "
            f"ingest.object_store_mb, need up to {needed / _MIB:,.0f} MiB, ray.object_store_mb is "
            f"{config.ray.object_store_mb:,}: raise it, or lower ingest.unit.max_rows"
        )
    problem = waiting_problem(ingest, workers, rows, row.encoded)
    return [*crowded, problem] if problem else crowded


def waiting_problem(ingest: IngestConfig, workers: int, rows: int, row_bytes: float) -> str | None:
    """Return why the units that wait for the workers do not have the room that they need; None if they have.

    Each worker needs a unit to read from and those that it fetches ahead. With less room, some workers always wait.

    Args:
        ingest: Reading of the log.
        workers: Number of workers.
        rows: Rows of the largest unit.
        row_bytes: Bytes of an encoded row.
    """
    units = 1 + ingest.prefetch_units
    needed = math.ceil(workers * units * rows * row_bytes / _MIB)
    if needed <= ingest.object_store_mb:
        return None
    return (
        f"ingest.object_store_mb is {ingest.object_store_mb:,}, and {workers} workers with {units} units of up to "
        f"{rows:,} rows each, {row_bytes:,.0f} bytes a row, need {needed:,}: set it to {needed}, or lower "
        "ingest.unit.max_rows or ingest.prefetch_units"
    )


def check_room_for_units(config: Config, logs: Sequence[DayLog]) -> None:
    """Refuse a training whose workers would wait for units for which there is no room in the object store.

    Args:
        config: The project's configuration.
        logs: Logs to read.

    Raises:
        DataError: Gives the room that is needed.
    """
    row_bytes = encoded_row_bytes(config.log_schema)
    for log in logs:
        if log.num_rows * row_bytes > config.ingest.object_store_mb * _MIB:  # else the whole log has room
            problem = waiting_problem(config.ingest, config.workers.most, int(log.units.num_rows.max()), row_bytes)
            if problem:
                raise DataError(f"{log.day}: {problem}")


@dataclass(frozen=True, slots=True)
class Cost:
    """Time and cost of a day, if every worker keeps its measured rate.

    Args:
        rows_per_s: Rows per second of all workers.
        rows_per_day: Rows of a day.
        hours_per_day: Hours in which they are trained.
        cost_per_day: Price of the workers for these hours; None without a price.
    """

    rows_per_s: float
    rows_per_day: int
    hours_per_day: float
    cost_per_day: float | None


def daily_cost(workers: int, rate: float, rows: int, price: float | None) -> Cost:
    """Return the time and the cost of a day.

    Args:
        workers: Number of workers.
        rate: Measured rows per second of one worker, in a run of as many workers.
        rows: Rows of a day.
        price: Price of a worker for an hour, in any currency.
    """
    hours = rows / (rate * workers) / 3600
    return Cost(rate * workers, rows, hours, None if price is None else hours * workers * price)
