"""Find tasks to train together: train each pair briefly, then choose groups under a budget of models."""

import argparse
import sys
from typing import Any

from jobs.command import add_config, add_skip_missing, asked_days, command, read_config


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of the command."""
    add_config(parser)
    parser.add_argument("--train-days", required=True, help="few days: every task and pair of tasks is trained on them")
    parser.add_argument("--test-days", required=True, help="YYYY-MM-DD or YYYY-MM-DD..YYYY-MM-DD, measured together")
    parser.add_argument("--budget", type=int, required=True, help="models that may be served")
    parser.add_argument("--model", default="hard_sharing", help="kind of the groups' networks (hard_sharing)")
    add_skip_missing(parser)
    parser.add_argument("--name", default="groups", help="name of the folder below ROOT/groupings")


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Run the missing measurements, and write a configuration for each group."""
    config = read_config(arguments)
    from pipeline.report.figures import without_tables
    from pipeline.studies.group_tasks import GroupingPlan, group_tasks
    from pipeline.trainer.model_check import check_model

    check_model(config)
    (train_days, test_days), left_out = asked_days(config, arguments, "train_days", "test_days")
    plan = GroupingPlan(
        name=arguments.name,
        model=arguments.model,
        train_days=tuple(train_days),
        test_days=tuple(test_days),
        budget=arguments.budget,
    )
    return without_tables(config.root, f"group_tasks/{plan.name}", group_tasks(config, plan) | left_out, ("pairs",))


if __name__ == "__main__":
    sys.exit(command(add_arguments, run))
