"""Search the exponents of the config's ranking score on predictions of past days; nothing is trained."""

import argparse
import sys
from typing import Any

from jobs.command import add_config, command, read_config, show


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of the command."""
    add_config(parser)
    parser.add_argument("--predictions", required=True, help="what jobs.predict wrote, with labels")
    parser.add_argument("--days", required=True, help="YYYY-MM-DD or YYYY-MM-DD..YYYY-MM-DD, several with commas")
    parser.add_argument("--objectives", help="e.g. click:gauc,share:ndcg@10; absent: GAUC of every binary task")
    parser.add_argument("--constraint", action="append", default=[], help="e.g. 'share:gauc>=current'; any number")
    parser.add_argument("--trials", type=int, default=200, help="number of trials (200)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the sampler (0)")
    parser.add_argument("--most", type=float, help="largest exponent; absent: twice the largest present one")
    parser.add_argument("--rows", type=int, default=1_000_000, help="rows held in memory, about (1000000)")
    parser.add_argument("--out", required=True, help="an empty directory or s3:// prefix")


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Search, show the table on stderr, and write the section of the config and the picture."""
    config = read_config(arguments)
    from pipeline.ingest.units import parse_days
    from pipeline.report.weight_search import empty_target, search_table, write_search
    from pipeline.scoring.objectives import Constraint, Objective
    from pipeline.scoring.weight_search import SearchPlan, search_weights

    days = parse_days(arguments.days)
    plan = SearchPlan(
        objectives=tuple(Objective.parse(text) for text in (arguments.objectives or "").split(",") if text),
        constraints=tuple(Constraint.parse(text) for text in arguments.constraint),
        trials=arguments.trials,
        seed=arguments.seed,
        most=arguments.most,
        most_rows=arguments.rows,
    )
    target = empty_target(arguments.out)
    search = search_weights(config, arguments.predictions, days, plan)
    show(f"\n{search_table(search)}")
    return write_search(search, target) | {"days": days}


if __name__ == "__main__":
    sys.exit(command(add_arguments, run))
