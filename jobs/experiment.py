"""Run an experiment that a file declares: several comparisons on one base, and one table of them all."""

import argparse
import sys
from typing import Any

from jobs.command import command, show


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of the command."""
    parser.add_argument("--experiment", required=True, help="a YAML file, e.g. jobs/configs/experiments/seesaw.yaml")
    parser.add_argument("--cases", default="", help="names of the only cases to run: A,B")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="a setting for all cases")


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Run the missing trainings, write tables and pages, and show the tables on stderr."""
    from pipeline.report.experiment import experiment_markdown, write_experiment
    from pipeline.studies.experiment import cases_of, load_experiment, run_cases

    experiment = load_experiment(arguments.experiment)
    names = arguments.cases.split(",") if arguments.cases else []
    results = run_cases(cases_of(experiment, arguments.set, names))
    show(f"\n{experiment_markdown(experiment, results)}")
    return {"result": "compared", "cases": [result.case.name for result in results]} | write_experiment(
        experiment, results
    )


if __name__ == "__main__":
    sys.exit(command(add_arguments, run))
