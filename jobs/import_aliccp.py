"""Import Ali-CCP, a public log of clicks and purchases, into the day partitions that jobs/configs/aliccp.yaml reads."""

import argparse
import sys
from typing import Any

from jobs.command import command


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of the command."""
    parser.epilog = "NOT RUN HERE: the data set was not on the machine on which this was written."
    parser.add_argument("--source", required=True, help="directory with the data set's four CSV files, unpacked")
    parser.add_argument("--logs", required=True, help="local directory to write the two days to")


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Write both days, or none."""
    from features.aliccp.partitions import import_aliccp
    from pipeline.config.urls import local_directory

    logs = local_directory(arguments.logs, "--logs")
    imported = import_aliccp(local_directory(arguments.source, "--source"), logs)
    days = list(imported.rows)
    return {
        "logs": arguments.logs,
        "days": f"{days[0]}..{days[-1]}",
        "rows": sum(imported.rows.values()),
        "impossible_rows": imported.num_impossible,
        "rows_with_unknown_fields": imported.unknown_fields,
    }


if __name__ == "__main__":
    sys.exit(command(add_arguments, run))
