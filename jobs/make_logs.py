"""Make synthetic logs with known probabilities or means, day by day: of videos, or of two regression tasks."""

import argparse
import logging
import sys
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any

from features.errors import ConfigError
from jobs.command import command

if TYPE_CHECKING:  # `--help` answers without numpy and pyarrow
    from features.synthetic.regression import RegressionConfig
    from features.synthetic.world import SyntheticConfig

logger = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of the command."""
    parser.add_argument("--world", required=True, help="a YAML file with the world, e.g. jobs/configs/demo_world.yaml")
    parser.add_argument("--days", required=True, help="YYYY-MM-DD or YYYY-MM-DD..YYYY-MM-DD")
    parser.add_argument("--logs", required=True, help="local directory to write the days to")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="replace one setting of the world"
    )


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Write the missing days."""
    from pipeline.config.urls import local_directory
    from pipeline.ingest.units import parse_days

    logs = Path(local_directory(arguments.logs, "--logs"))
    world = load_world(arguments.world, arguments.set)
    written, skipped = [], []
    for day in parse_days(arguments.days):
        if (logs / f"dt={day}").exists():
            skipped.append(day)
            continue
        write_day(world, day, logs)
        written.append(day)
        logger.info("%s: %d rows", day, world.rows_per_day)
    return {"logs": arguments.logs, "written": written, "there_already": skipped, "rows_per_day": world.rows_per_day}


def write_day(world: "SyntheticConfig | RegressionConfig", day: str, directory: str | Path) -> None:
    """Write the log of a day, an ISO date."""
    from features.synthetic import logs, regression
    from features.synthetic.regression import RegressionConfig

    if isinstance(world, RegressionConfig):
        regression.write_day(world, date.fromisoformat(day), directory)
    else:
        logs.write_day(world, date.fromisoformat(day), directory)


def load_world(path: str, overrides: Sequence[str] = ()) -> "SyntheticConfig | RegressionConfig":
    """Read a world: of regression tasks if it has a correlation, of videos otherwise.

    Raises:
        ConfigError: The file is missing, or not a world.
    """
    from pydantic import ValidationError

    from features.synthetic.regression import RegressionConfig
    from features.synthetic.world import SyntheticConfig
    from pipeline.config.yaml_text import read_yaml, read_yaml_file

    found = read_yaml_file(path, "world")
    for override in overrides:
        key, separator, value = override.partition("=")
        if not separator:
            raise ConfigError(f"override {override!r}: expected key=value")
        found[key] = read_yaml(value, f"override {override!r}")
    try:
        return (RegressionConfig if "correlation" in found else SyntheticConfig).model_validate(found)
    except ValidationError as error:
        raise ConfigError(f"world {path}: {' '.join(str(error).split())}") from error


if __name__ == "__main__":
    sys.exit(command(add_arguments, run))
