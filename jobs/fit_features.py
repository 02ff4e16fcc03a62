"""Fit the statistics that encoding needs (means, quantiles, null rates, distinct ids) in one pass over days."""

import argparse
import sys
from typing import Any

from jobs.command import add_config, add_skip_missing, asked_days, command, read_config


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of the command."""
    add_config(parser)
    parser.add_argument("--days", required=True, help="YYYY-MM-DD or YYYY-MM-DD..YYYY-MM-DD; several with commas")
    add_skip_missing(parser)


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Write the line's statistics."""
    config = read_config(arguments)
    from pipeline.log_passes.statistics import fit_statistics

    (days,), left_out = asked_days(config, arguments, "days")
    return fit_statistics(config, days) | left_out


if __name__ == "__main__":
    sys.exit(command(add_arguments, run))
