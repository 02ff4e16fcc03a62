"""Audit a line: compare the rows that its checkpoints were trained on with the logs, every row once."""

import argparse
import sys
from typing import Any

from jobs.command import add_config, command
from pipeline.config import load_config
from pipeline.lineage.audit import audit_line


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of the command."""
    add_config(parser)
    parser.add_argument("--checkpoint", help="a checkpoint below the line; absent: the newest published")


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Audit the checkpoint and its parents."""
    return audit_line(load_config(arguments.config, arguments.set), arguments.checkpoint)


if __name__ == "__main__":
    sys.exit(command(add_arguments, run))
