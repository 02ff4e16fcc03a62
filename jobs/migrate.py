"""Migrate a line to another schema or model: common parts are kept, the rest starts anew or is dropped."""

import argparse
import sys
from typing import Any

from jobs.command import add_config, add_skip_missing, asked_days, command, read_config, show


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of the command."""
    add_config(parser)
    parser.add_argument(
        "--from", dest="checkpoint", help="the published checkpoint, by name; absent: the published one"
    )
    parser.add_argument("--statistics-days", help="days on which statistics of new features are fitted, if needed")
    add_skip_missing(parser)


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Migrate, write and show the result for every part."""
    config = read_config(arguments)
    from pipeline.migration.migrate import migrate
    from pipeline.report.figures import without_tables
    from pipeline.trainer.model_check import check_model

    check_model(config)
    (days,), left_out = asked_days(config, arguments, "statistics_days")
    result = migrate(config, arguments.checkpoint, days) | left_out
    for what in ("kept", "new", "dropped"):
        parts = "".join(f"\n  {part}" for part in result[what])
        show(f"{what}: {result[f'num_{what}']:,} parameters{parts}")
    name = f"migrate/{config.line}/{result['day']}_{result['generation']}"
    return without_tables(config.root, name, result, ("kept", "new", "dropped"))


if __name__ == "__main__":
    sys.exit(command(add_arguments, run))
