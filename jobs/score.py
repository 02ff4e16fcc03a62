"""Rank predicted rows by the score of the config's section ranking, and write score and rank to Parquet."""

import argparse
import sys
from typing import Any

from jobs.command import add_config, command, read_config


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of the command."""
    add_config(parser)
    parser.add_argument("--predictions", required=True, help="the directory or s3:// prefix that jobs.predict wrote")
    parser.add_argument("--days", required=True, help="YYYY-MM-DD or YYYY-MM-DD..YYYY-MM-DD, several with commas")
    parser.add_argument("--out", required=True, help="an empty directory or s3:// prefix, or one to go on in")
    parser.add_argument("--top", type=int, metavar="K", help="rows kept of each request or user; absent: ranking.top.k")


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Rank the days that are not done."""
    config = read_config(arguments)
    from pipeline.ingest.units import parse_days
    from pipeline.scoring.score import write_scores

    days = parse_days(arguments.days)
    return write_scores(config, days, arguments.predictions, arguments.out, arguments.top)


if __name__ == "__main__":
    sys.exit(command(add_arguments, run))
