"""Evaluate a checkpoint on a day: metrics per task in its own space, beside popularity and the best reachable."""

import argparse
import sys
from typing import Any

from jobs.command import add_config, add_skip_missing, asked_days, command, read_config, show


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of the command."""
    add_config(parser)
    parser.add_argument("--days", required=True, help="YYYY-MM-DD or YYYY-MM-DD..YYYY-MM-DD, measured together")
    parser.add_argument("--checkpoint", help="a checkpoint below the line; absent: the newest published")
    parser.add_argument("--held-out", action="store_true", help="only the rows that are never trained")
    parser.add_argument("--popularity-days", help="days of the popularity baseline; absent: none")
    add_skip_missing(parser)


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Evaluate, write all metrics, and show the table on stderr."""
    config = read_config(arguments)
    from pipeline.evaluation.evaluate import evaluate
    from pipeline.evaluation.table import metrics_table
    from pipeline.report.figures import report_evaluation
    from pipeline.trainer.model_check import check_model

    check_model(config)
    (days, history), left_out = asked_days(config, arguments, "days", "popularity_days")
    rows = "held_out" if arguments.held_out else "all"
    result = evaluate(config, days, arguments.checkpoint, history, rows) | left_out
    show(metrics_table(result))
    return report_evaluation(config.root, config.line, result, rows)


if __name__ == "__main__":
    sys.exit(command(add_arguments, run))
