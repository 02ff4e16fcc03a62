"""Plan a training without its workers: placement and memory of the tables, time, cost, and whether it fits."""

import argparse
import sys
from typing import Any

from jobs.command import add_config, command, read_config, show


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of the command."""
    add_config(parser)
    parser.add_argument("--workers", type=int, help="number of workers; absent: that of the config")
    parser.add_argument("--device", choices=["cpu", "cuda"], help="absent: that of the config")
    parser.add_argument("--hbm-gb", type=float, help="memory of a GPU, in 10^9 bytes; needed with cuda")
    parser.add_argument("--ram-gb", type=float, help="memory of a host per worker, in 10^9 bytes; needed with cpu")
    parser.add_argument("--workers-per-host", type=int, default=8, help="most workers on one host (8)")
    parser.add_argument("--rows-per-day", type=int, help="absent: the rows of the log's newest day")
    parser.add_argument("--rows-per-s-per-worker", type=float, help="a rate that was measured")
    parser.add_argument("--price-per-worker-hour", type=float, help="in any currency")


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Plan, write all figures, and show the table on stderr; refuse what does not fit."""
    if arguments.device is not None:  # with the defaults of that device
        arguments.set = [*arguments.set, f"workers.device={arguments.device}"]
    config = read_config(arguments)
    from pipeline.report.plan_command import Asked, plan_command

    names = ("workers", "device", "hbm_gb", "ram_gb", "workers_per_host")
    names += ("rows_per_day", "rows_per_s_per_worker", "price_per_worker_hour")
    return plan_command(config, Asked(**{name: getattr(arguments, name) for name in names}), show)


if __name__ == "__main__":
    sys.exit(command(add_arguments, run))
