"""Make synthetic video logs, day by day, whose every probability is known."""

import argparse
import logging
import sys
from datetime import date
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from features.errors import ConfigError
from features.synthetic.logs import SyntheticConfig, write_day
from jobs.command import command
from pipeline.units import parse_days

logger = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command."""
    parser.add_argument("--world", required=True, help="a YAML file with the world, e.g. jobs/configs/demo_world.yaml")
    parser.add_argument("--days", required=True, help="YYYY-MM-DD or YYYY-MM-DD..YYYY-MM-DD")
    parser.add_argument("--logs", required=True, help="local directory to write the days to")


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Write the days that are not there yet."""
    world = load_world(arguments.world)
    written, skipped = [], []
    for day in parse_days(arguments.days):
        if (Path(arguments.logs) / f"dt={day}").exists():
            skipped.append(day)
            continue
        write_day(world, date.fromisoformat(day), arguments.logs)
        written.append(day)
        logger.info("%s: %d rows", day, world.rows_per_day)
    return {"logs": arguments.logs, "written": written, "there_already": skipped, "rows_per_day": world.rows_per_day}


def load_world(path: str) -> SyntheticConfig:
    """Read a world.

    Raises:
        ConfigError: It is missing, or not a world.
    """
    try:
        return SyntheticConfig.model_validate(yaml.safe_load(Path(path).read_text()))
    except FileNotFoundError as error:
        raise ConfigError(f"world {path} is missing") from error
    except (yaml.YAMLError, ValidationError) as error:
        raise ConfigError(f"world {path}: {' '.join(str(error).split())}") from error


if __name__ == "__main__":
    sys.exit(command(add_arguments, run))
