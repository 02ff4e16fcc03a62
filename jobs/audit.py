"""Audit a line: compare the rows that its checkpoints were trained on with the logs, every row once."""

import argparse
import sys
from typing import Any

from jobs.command import add_config, command, read_config


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of the command."""
    add_config(parser)
    parser.add_argument("--checkpoint", help="a checkpoint below the line; absent: the newest published")


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Audit the checkpoint and its parents."""
    config = read_config(arguments)
    from pipeline.lineage.audit import audit_line

    return audit_line(config, arguments.checkpoint)


if __name__ == "__main__":
    sys.exit(command(add_arguments, run))
