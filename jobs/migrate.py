"""Migrate a line to another schema or model: common parts are kept, the rest starts anew or is dropped."""

import argparse
import sys
from typing import Any

from jobs.command import add_config, command, read_config


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of the command."""
    add_config(parser)
    parser.add_argument(
        "--from", dest="checkpoint", help="the published checkpoint, by name; absent: the published one"
    )
    parser.add_argument("--statistics-days", help="days on which statistics of new features are fitted, if needed")


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Migrate, and show the result for every part on stderr."""
    config = read_config(arguments)
    from pipeline.ingest.units import parse_days
    from pipeline.migration.migrate import migrate
    from pipeline.trainer.model_check import check_model

    check_model(config)
    days = parse_days(arguments.statistics_days) if arguments.statistics_days else []
    result = migrate(config, arguments.checkpoint, days)
    for what in ("kept", "new", "dropped"):
        parts = "".join(f"\n  {part}" for part in result[what])
        sys.stderr.write(f"{what}: {result[f'num_{what}']:,} parameters{parts}\n")
    return result


if __name__ == "__main__":
    sys.exit(command(add_arguments, run))
