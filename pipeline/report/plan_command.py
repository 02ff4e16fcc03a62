"""Work of the command that plans: checks of the inputs, the plan, the smallest number of workers, and the cost."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from features.errors import ConfigError, DataError
from pipeline.config.project import Config
from pipeline.report.figures import write_figures
from pipeline.report.plan import advice, plan_figures, plan_table
from pipeline.trainer.dry_run import DryRun, Plan, Workers, used_bytes
from pipeline.trainer.model_check import check_model
from pipeline.trainer.plan_inputs import (
    Cost,
    NewestDay,
    check_newest_day,
    daily_cost,
    ids_of_tables,
    read_statistics,
    warn_of_inputs,
)


class DoesNotFitError(DataError):
    """A model that does not fit its workers; the command ends with exit code 3.

    Args:
        text: The error.
        figures: Figures of the JSON line.
    """

    def __init__(self, text: str, figures: dict[str, Any]) -> None:
        super().__init__(text)
        self.figures = figures


@dataclass(frozen=True, slots=True)
class Asked:
    """Arguments of the command.

    Args:
        workers: Number of workers; None: the most of the config.
        device: `cpu` or `cuda`; None: that of the config.
        hbm_gb: Memory of a GPU, in 10^9 bytes.
        ram_gb: Memory of a host per worker, in 10^9 bytes.
        workers_per_host: Most workers on one host.
        rows_per_day: Rows of a day; None: those of the log's newest day.
        rows_per_s_per_worker: Measured rate of a worker.
        price_per_worker_hour: Price of a worker for an hour, in any currency.
    """

    workers: int | None
    device: str | None
    hbm_gb: float | None
    ram_gb: float | None
    workers_per_host: int
    rows_per_day: int | None = None
    rows_per_s_per_worker: float | None = None
    price_per_worker_hour: float | None = None

    def planned(self, config: Config) -> Workers:
        """Return the workers to plan for.

        Raises:
            ConfigError: An argument is missing, or is not positive.
        """
        device = self.device or config.workers.device
        num = config.workers.most if self.workers is None else self.workers
        given = {"--hbm-gb": self.hbm_gb, "--ram-gb": self.ram_gb, "--workers-per-host": self.workers_per_host}
        given |= {"--workers": num, "--rows-per-day": self.rows_per_day}
        given |= {"--rows-per-s-per-worker": self.rows_per_s_per_worker}
        given |= {"--price-per-worker-hour": self.price_per_worker_hour}
        for option, value in given.items():
            if value is not None and not 0 < value < float("inf"):
                raise ConfigError(f"{option} is {value:g}, expected a positive number")
        needed, option = (self.hbm_gb, "--hbm-gb") if device == "cuda" else (self.ram_gb, "--ram-gb")
        if needed is None:
            raise ConfigError(f"a plan for {device} needs {option}, the memory of a worker in 10^9 bytes")
        host = None if self.ram_gb is None or device == "cpu" else _bytes(self.ram_gb)
        return Workers(num, self.workers_per_host, device, _bytes(needed), host)


def _bytes(gigabytes: float) -> int:
    return round(gigabytes * 1e9)


def plan_command(config: Config, asked: Asked, show: Callable[[str], None]) -> dict[str, Any]:
    """Plan, write all figures to a file, and show the table.

    Args:
        config: The project's configuration.
        asked: Arguments of the command.
        show: Function that shows lines to the person.

    Returns:
        Figures of the JSON line.

    Raises:
        ConfigError: An argument, or the configuration for so many workers, is not valid.
        DataError: The newest day of the log does not fit the schema, or the model does not fit the workers.
    """
    workers = asked.planned(config)
    workers.check(config)
    check_model(config)
    newest, statistics = check_newest_day(config), read_statistics(config)
    run = DryRun(config, statistics)
    plan, smallest = run.plan(workers), run.smallest(workers)
    cost = _cost(asked, workers.num, newest)
    tables = ids_of_tables(config, statistics)
    warnings = warn_of_inputs(config, tables, run.row, workers.num, workers.on_a_host)
    ids = (
        "ids per row are those of the line's statistics, and max_length for sequences without a mean length"
        if statistics
        else "no statistics of the line: an id counts as always there, a sequence with its max_length"
    )
    log = f"schema checked against {newest.day}" if isinstance(newest, NewestDay) else f"log not checked: {newest}"
    lines = [plan_table(plan, config.log_schema), f"smallest number of workers that fits: {smallest or 'none'}"]
    show("\n".join([*lines, *_cost_lines(cost), f"{ids}; {log}", *(f"warning: {text}" for text in warnings), ""]))
    figures = _line(plan, smallest, cost) | {"warnings": warnings}
    whole = figures | plan_figures(plan) | {"ids": ids, "log": log, "tables": [asdict(table) for table in tables]}
    whole |= {"bytes_per_row": asdict(run.row), "cost": cost and asdict(cost)}
    name = f"plan/{config.line}/{workers.device}_{workers.num}"
    figures |= {"figures": write_figures(config.root, name, whole)}
    if not plan.fits:
        raise DoesNotFitError(advice(plan, config, smallest), figures)
    return figures


def _line(plan: Plan, smallest: int | None, cost: Cost | None) -> dict[str, Any]:
    return {
        "fits": plan.fits,
        "workers": plan.workers.num,
        "smallest_workers": smallest,
        "bytes_per_rank": used_bytes(plan.workers, plan.fullest),
        "missing_bytes": plan.missing_bytes,
        "saved_copy_bytes": max(rank.saved_copy for rank in plan.ranks),
        "estimated_table_ms": round(sum(plan.milliseconds.values()), 3),
        "bottleneck": plan.bottleneck,
        "rows_per_s": cost and cost.rows_per_s,
        "cost_per_day": cost and cost.cost_per_day,
    }


def _cost(asked: Asked, workers: int, newest: NewestDay | str) -> Cost | None:
    """Return the cost of a day; None without a measured rate, or without the rows of a day."""
    rows = asked.rows_per_day or (newest.rows if isinstance(newest, NewestDay) else None)
    if asked.rows_per_s_per_worker is None:
        if asked.price_per_worker_hour is not None:
            raise ConfigError("--price-per-worker-hour needs --rows-per-s-per-worker, a rate that was measured")
        return None
    if rows is None:
        raise ConfigError(f"a cost needs --rows-per-day, since {newest}")
    return daily_cost(workers, asked.rows_per_s_per_worker, rows, asked.price_per_worker_hour)


def _cost_lines(cost: Cost | None) -> list[str]:
    if cost is None:
        return ["no rate and no cost: give --rows-per-s-per-worker, a rate that was measured"]
    price = "" if cost.cost_per_day is None else f", cost {cost.cost_per_day:,.2f} a day"
    return [
        f"{cost.rows_per_s:,.0f} rows/s if every worker keeps the given rate: {cost.rows_per_day:,} rows in "
        f"{cost.hours_per_day:.2f} h{price}"
    ]
