"""Import KuaiRand-Pure, a real short-video log, into the day partitions that jobs/configs/kuairand.yaml reads."""

import argparse
import sys
from typing import Any

from jobs.command import command


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of the command."""
    parser.add_argument("--source", required=True, help="directory with the data set's files")
    parser.add_argument("--logs", required=True, help="local directory to write the days to")
    parser.add_argument(
        "--with-random", action="store_true", help="also import the impressions of randomly exposed videos"
    )


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Write all days, or none."""
    from features.kuairand.partitions import import_kuairand
    from pipeline.config.urls import local_directory

    logs = local_directory(arguments.logs, "--logs")
    imported = import_kuairand(local_directory(arguments.source, "--source"), logs, with_random=arguments.with_random)
    days = list(imported.rows)
    return {
        "logs": arguments.logs,
        "days": f"{days[0]}..{days[-1]}",
        "rows": sum(imported.rows.values()),
        "repeated_rows": imported.num_repeated,
    }


if __name__ == "__main__":
    sys.exit(command(add_arguments, run))
