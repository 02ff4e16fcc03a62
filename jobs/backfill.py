"""Measure checkpoints on past days, each pair once, and append the metrics to ROOT/metrics."""

import argparse
import sys
from typing import Any

from jobs.command import add_config, add_skip_missing, asked_days, command, read_config, show


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of the command."""
    add_config(parser)
    parser.add_argument("--checkpoints", help="days of the line, as in --days, or names; absent: the newest published")
    parser.add_argument("--days", help="days to measure; absent: all that --lag gives and that have a log")
    parser.add_argument("--lag", help="days from a checkpoint to a measured day, as in 1..7; absent: any")
    parser.add_argument("--against", help="a checkpoint, by its day or name, that the others are held against")
    parser.add_argument("--held-out", action="store_true", help="only the rows that are never trained")
    add_skip_missing(parser)


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Measure what is missing, and show all that was asked for on stderr."""
    config = read_config(arguments)
    from pipeline.evaluation.backfill import backfill
    from pipeline.evaluation.cells import AskedCells, parse_lag
    from pipeline.report.backfill import report_backfill
    from pipeline.trainer.model_check import check_model

    check_model(config)
    lag = parse_lag(arguments.lag) if arguments.lag else None
    (days,), left_out = asked_days(config, arguments, "days")
    rows = "held_out" if arguments.held_out else "all"
    asked = AskedCells(arguments.checkpoints, days, lag, arguments.against, rows, arguments.skip_missing)
    text, result = report_backfill(config, asked, backfill(config, asked))
    show(text)
    return result | left_out


if __name__ == "__main__":
    sys.exit(command(add_arguments, run))
