"""Train several networks on the same days, measure them on others, and say which task gains and which pays."""

import argparse
import sys
from typing import Any

from jobs.command import add_config, add_skip_missing, asked_days, command, read_config, show


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of the command."""
    add_config(parser)
    parser.add_argument("--models", required=True, help="kinds of networks, and single: e.g. single,hard_sharing,ple")
    parser.add_argument("--train-days", required=True, help="YYYY-MM-DD..YYYY-MM-DD")
    parser.add_argument("--test-days", required=True, help="YYYY-MM-DD or YYYY-MM-DD..YYYY-MM-DD, measured together")
    parser.add_argument("--epochs", type=int, default=1, help="passes over the training days (1)")
    parser.add_argument("--seeds", type=int, default=1, help="number of seeds, from the config's seed on")
    parser.add_argument("--trials", type=int, default=1, help="sizes of each model to choose from, at most 4")
    parser.add_argument("--choose-days", help="the last of the training days; sizes are chosen on them")
    add_skip_missing(parser)
    parser.add_argument("--name", default="compare", help="name of the folder below ROOT/comparisons")
    parser.add_argument("--keep-checkpoints", action="store_true", help="else they are removed once measured")


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Run the missing trainings, write table and page, and show the table on stderr."""
    config = read_config(arguments)
    from pipeline.report.comparison import to_markdown
    from pipeline.report.write_comparison import write_report
    from pipeline.studies.comparison import Comparison, ComparisonPlan
    from pipeline.studies.gains import model_rows
    from pipeline.studies.verdicts import verdicts
    from pipeline.trainer.model_check import check_model

    check_model(config)
    named = ("train_days", "test_days", "choose_days")
    (train_days, test_days, choose_days), left_out = asked_days(config, arguments, *named)
    plan = ComparisonPlan(
        name=arguments.name,
        models=tuple(arguments.models.split(",")),
        train_days=tuple(train_days),
        test_days=tuple(test_days),
        choose_days=tuple(choose_days),
        passes=arguments.epochs,
        seeds=arguments.seeds,
        trials=arguments.trials,
        keep_checkpoints=arguments.keep_checkpoints,
        least_gain=config.evaluation.least_gain,
        min_positives=config.evaluation.min_positives,
    )
    comparison = Comparison(config, plan)
    outcomes = comparison.run()
    rows, kinds = model_rows(outcomes), {task.name: task.kind for task in config.log_schema.tasks}
    show(f"\n{to_markdown(outcomes, rows, kinds, plan)}")
    written = write_report(comparison.storage, outcomes, rows, kinds, plan)
    return {"result": "compared", "verdicts": verdicts(rows, plan.least_gain), **written, **left_out}


if __name__ == "__main__":
    sys.exit(command(add_arguments, run))
