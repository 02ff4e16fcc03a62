"""Write the predictions of a checkpoint for every row of some days to Parquet, in the log's own order and files."""

import argparse
import sys
from typing import Any

from jobs.command import add_config, add_skip_missing, asked_days, command, read_config


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of the command."""
    add_config(parser)
    parser.add_argument("--days", required=True, help="YYYY-MM-DD or YYYY-MM-DD..YYYY-MM-DD")
    add_skip_missing(parser)
    parser.add_argument("--out", required=True, help="a directory or s3:// prefix, empty or of the same predictions")
    parser.add_argument("--checkpoint", help="a checkpoint below the line; absent: the newest published")
    parser.add_argument("--labels", action="store_true", help="write the labels and weights too")
    parser.add_argument("--auxiliary", action="store_true", help="predict the auxiliary tasks too")


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Compute and write the predictions."""
    config = read_config(arguments)
    from pipeline.scoring.predictions import predict
    from pipeline.trainer.model_check import check_model

    check_model(config)
    (days,), left_out = asked_days(config, arguments, "days")
    columns = {"labels": arguments.labels, "auxiliary": arguments.auxiliary}
    return predict(config, days, arguments.out, arguments.checkpoint, **columns) | left_out


if __name__ == "__main__":
    sys.exit(command(add_arguments, run))
