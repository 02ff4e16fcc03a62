"""Write the vector of each user of some days to Parquet, for a model with a user tower."""

import argparse
import sys
from typing import Any

from jobs.command import add_config, add_skip_missing, asked_days, command, read_config


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of the command."""
    add_config(parser)
    parser.add_argument("--days", required=True, help="YYYY-MM-DD or YYYY-MM-DD..YYYY-MM-DD; a user's last row counts")
    add_skip_missing(parser)
    parser.add_argument("--out", required=True, help="an empty directory or s3:// prefix for the Parquet files")
    parser.add_argument("--user-column", default="user_id", help="the log's column of users' ids; absent: user_id")
    parser.add_argument("--checkpoint", help="a checkpoint below the line; absent: the newest published")


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Compute and write the vectors."""
    config = read_config(arguments)
    from pipeline.scoring.user_vectors import write_user_vectors
    from pipeline.trainer.model_check import check_model

    check_model(config)
    (days,), left_out = asked_days(config, arguments, "days")
    return write_user_vectors(config, days, arguments.out, arguments.user_column, arguments.checkpoint) | left_out


if __name__ == "__main__":
    sys.exit(command(add_arguments, run))
