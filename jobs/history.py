"""List the days of a line: rows, quality before training, verdicts, acceptances, checkpoint; one row a day."""

import argparse
import sys
from typing import Any

from features.errors import ConfigError
from jobs.command import add_config, command, read_config, show


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of the command."""
    add_config(parser)
    parser.add_argument("--days", help="YYYY-MM-DD or YYYY-MM-DD..YYYY-MM-DD, several with commas; absent: all")


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Read the ledger, and show the table on stderr."""
    config = read_config(arguments)
    from pipeline.ingest.units import parse_days
    from pipeline.lineage.line import Line
    from pipeline.report.history import history, history_table

    line = Line.of(config.root, config.line)
    if line.latest() is None and line.state().branch is None:
        raise ConfigError(f"{line.storage.url}: nothing is published: train first, or name a line with --set line=NAME")
    rows = history(line, set(parse_days(arguments.days)) if arguments.days else None)
    show(f"\n{history_table(rows)}")
    return {"result": "listed", "line": line.name, "days": rows}


if __name__ == "__main__":
    sys.exit(command(add_arguments, run))
