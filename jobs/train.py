"""Train a range of days on a line, starting at the line's newest checkpoint."""

import argparse
import sys
from typing import Any

from features.errors import ConfigError
from jobs.command import add_config, add_skip_missing, asked_days, command, read_config


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of the command."""
    add_config(parser)
    parser.add_argument("--days", required=True, help="YYYY-MM-DD or YYYY-MM-DD..YYYY-MM-DD; several with commas")
    add_skip_missing(parser)
    parser.add_argument("--epochs", type=int, default=1, help="passes over all the days (1)")


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Train the days."""
    if arguments.epochs < 1:
        raise ConfigError(f"--epochs is {arguments.epochs}, expected at least 1")
    config = read_config(arguments)
    from pipeline.report.figures import first_units
    from pipeline.trainer.model_check import check_model
    from pipeline.trainer.train_line import train

    check_model(config)
    (days,), left_out = asked_days(config, arguments, "days")
    result = train(config, days, arguments.epochs)
    return result | left_out | (first_units(result["quarantined"]) if "quarantined" in result else {})


if __name__ == "__main__":
    sys.exit(command(add_arguments, run))
