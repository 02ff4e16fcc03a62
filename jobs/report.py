"""Write the report of a line: one HTML file that needs no network, with alarms, metrics, experts and the ledger."""

import argparse
import sys
from typing import Any

from jobs.command import add_config, command, read_config


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of the command."""
    add_config(parser)
    parser.add_argument("--line", help="name of the line; absent: that of the configuration")
    parser.add_argument("--days", help="YYYY-MM-DD or YYYY-MM-DD..YYYY-MM-DD, several with commas; absent: all")
    parser.add_argument("--out", help="a file; absent: ROOT/reports/LINE.html")


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Read the line, and write its page."""
    config = read_config(arguments)
    if arguments.line:
        config = config.model_copy(update={"line": arguments.line})
    from pipeline.ingest.units import parse_days
    from pipeline.report.write_line_report import write_line_report

    return write_line_report(config, parse_days(arguments.days) if arguments.days else None, arguments.out)


if __name__ == "__main__":
    sys.exit(command(add_arguments, run))
