"""Fit the statistics that encoding needs (means, quantiles, null rates, distinct ids) in one pass over days."""

import argparse
import sys
from typing import Any

from jobs.command import add_config, command
from pipeline.config import load_config
from pipeline.fit import fit_statistics
from pipeline.units import parse_days


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of the command."""
    add_config(parser)
    parser.add_argument("--days", required=True, help="YYYY-MM-DD or YYYY-MM-DD..YYYY-MM-DD")


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Write the line's statistics."""
    return fit_statistics(load_config(arguments.config, arguments.set), parse_days(arguments.days))


if __name__ == "__main__":
    sys.exit(command(add_arguments, run))
