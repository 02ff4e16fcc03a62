"""Serve the state of a line to Prometheus: days that it lags behind, its newest day, how the newest job ended."""

import argparse
import sys
import threading
from typing import Any

from features.errors import ConfigError
from jobs.command import add_config, command, read_config


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of the command."""
    add_config(parser)
    parser.add_argument("--port", type=int, default=9400, help="port of the metrics, on all interfaces (9400)")
    parser.add_argument("--address", default="0.0.0.0", help="address to listen on (0.0.0.0)")
    parser.add_argument("--lag-days", type=int, default=1, metavar="N", help="a day is due N days later (1)")
    parser.add_argument("--first-day", metavar="DAY", help="first day of a line that has none")
    parser.add_argument("--time-zone", default="Etc/UTC", help="zone in which the days of the log end (Etc/UTC)")


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Serve until the command is ended."""
    config = read_config(arguments)
    from prometheus_client import CollectorRegistry, start_http_server

    from pipeline.submission.line_metrics import LineMetrics

    registry = CollectorRegistry()
    registry.register(LineMetrics(config, arguments.time_zone, arguments.lag_days, arguments.first_day))
    try:
        start_http_server(arguments.port, arguments.address, registry)
    except (OSError, OverflowError) as error:
        raise ConfigError(f"--port {arguments.port} cannot be opened: {error}") from error
    threading.Event().wait()
    return {"result": "ended"}


if __name__ == "__main__":
    sys.exit(command(add_arguments, run))
