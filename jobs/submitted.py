"""Jobs that a command submits: another command's arguments, read by its own parser."""

import argparse
import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from features.errors import ConfigError
from jobs.__main__ import names
from jobs.command import Parser, read_config

if TYPE_CHECKING:  # `--help` answers without torch
    from pipeline.submission.job import Job

_NEVER = ("config_reference", "demo", "exporter", "import_aliccp", "import_kuairand", "launch", "make_logs")
_NEVER += ("record_reference", "submit")  # without a configuration, or for the machine of a person
_TRAINS_LINE = ("daily", "migrate", "train")


def parsed(command: str, words: Sequence[str]) -> argparse.Namespace:
    """Return the arguments of a command.

    Args:
        command: Name of the command, with `_` or `-`.
        words: Arguments after the name.

    Raises:
        ConfigError: There is no such command, it is not for a cluster, or an argument is wrong.
    """
    name = command.removeprefix("jobs.").replace("-", "_")
    if name not in names() or name in _NEVER:
        raise ConfigError(f"{command!r} is no command that can be submitted: those are {_submittable()}")
    parser = Parser(prog=f"python -m jobs.{name}")
    importlib.import_module(f"jobs.{name}").add_arguments(parser)
    parser.add_argument("--verbose", action="store_true")
    return parser.parse_args(list(words))


def job_of(command: str, words: Sequence[str]) -> tuple["Job", Path]:
    """Return a job, and the file of its configuration.

    Raises:
        ConfigError: As `parsed`, or the configuration is wrong.
    """
    arguments = parsed(command, words)
    if "config" not in arguments:  # an experiment names several
        raise ConfigError(f"{command} has no single configuration, so no root for the record of a job: run it itself")
    config = read_config(arguments)
    from pipeline.ingest.units import parse_days
    from pipeline.submission.job import Job

    name = command.removeprefix("jobs.").replace("-", "_")
    line = (getattr(arguments, "branch", None) or config.line) if name in _TRAINS_LINE else None
    day = getattr(arguments, "day", None)
    days = parse_days(day) if name == "daily" and day else []
    return Job(name, tuple(words), config, line, tuple(days)), Path(arguments.config)


def _submittable() -> str:
    return ", ".join(name for name in names() if name not in _NEVER)
