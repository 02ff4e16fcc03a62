"""Bring a line up to a day: check its log, measure, train, check the model, publish."""

import argparse
import contextlib
import sys
from typing import TYPE_CHECKING, Any

from features.errors import ConfigError
from jobs.command import add_config, command, read_config

if TYPE_CHECKING:  # `--help` answers without torch
    from pipeline.config.project import Config
    from pipeline.lineage.line import Line


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of the command."""
    add_config(parser)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--day", help="YYYY-MM-DD; missing days before it are done first")
    what.add_argument("--days", help="YYYY-MM-DD..YYYY-MM-DD, one after the other in one Ray session")
    what.add_argument("--rollback", nargs=2, metavar=("DAY", "REASON"), help="move LATEST back to a done day")
    what.add_argument("--discard", metavar="REASON", help="forget the trained but unpublished days")
    parser.add_argument("--max-catch-up", type=int, metavar="N", help="missing days to do first (daily.max_catch_up)")
    parser.add_argument("--accept-anomaly", metavar="REASON", help="train the days although preflight refuses them")
    parser.add_argument("--accept-gate", metavar="REASON", help="publish the days although the gate refuses them")
    parser.add_argument("--skip-day", metavar="REASON", help="leave the day out for good")
    parser.add_argument("--branch", metavar="NAME", help="on a line of that name, forked before the day if it is new")
    parser.add_argument("--from-nothing", action="store_true", help="a new branch begins without a checkpoint")


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Do the day, or move LATEST."""
    config = read_config(arguments)
    from pipeline.daily.accepted import Accepted
    from pipeline.daily.ray_work import RayWork
    from pipeline.daily.run_days import run_days
    from pipeline.lineage.line import Line
    from pipeline.lineage.manual_moves import branch
    from pipeline.trainer.model_check import check_model

    check_model(config)
    line = Line.of(config.root, config.line)
    if arguments.rollback or arguments.discard is not None:
        return _move(config, Line.of(config.root, arguments.branch or config.line), arguments)
    days = [_one_day("--day", arguments.day)] if arguments.day else _without_gap(arguments.days)
    accepted = Accepted(arguments.accept_anomaly, arguments.accept_gate, arguments.skip_day)
    if accepted.skip is not None and len(days) > 1:
        raise ConfigError("a day is skipped by itself: give --day, not --days")
    if arguments.branch:
        line = branch(line, arguments.branch, days[0], from_nothing=arguments.from_nothing)
    elif arguments.from_nothing:
        raise ConfigError("--from-nothing is for a new --branch NAME")
    config = config.model_copy(update={"line": line.name})
    most = config.daily.max_catch_up if arguments.max_catch_up is None else arguments.max_catch_up
    with contextlib.ExitStack() as stack:
        return run_days(config, line, RayWork(config, line, stack), days, most, accepted)


def _move(config: "Config", line: "Line", arguments: argparse.Namespace) -> dict[str, Any]:
    from pipeline.lineage.manual_moves import discard, rollback

    others = ("max_catch_up", "accept_anomaly", "accept_gate", "skip_day", "from_nothing")
    given = [f"--{name.replace('_', '-')}" for name in others if getattr(arguments, name) not in (None, False)]
    if given:
        raise ConfigError(f"{given[0]} is for --day: leave it out")
    if arguments.discard is not None:
        return discard(config, line, arguments.discard)
    return rollback(config, line, _one_day("--rollback", arguments.rollback[0]), arguments.rollback[1])


def _one_day(option: str, text: str) -> str:
    from pipeline.ingest.units import parse_days

    days = parse_days(text)
    if len(days) > 1:
        raise ConfigError(f"{option} {text}: expected one day, YYYY-MM-DD")
    return days[0]


def _without_gap(text: str) -> list[str]:
    from pipeline.ingest.chosen_days import span
    from pipeline.ingest.units import parse_days

    days = parse_days(text)
    if "," in span(days):
        raise ConfigError(f"days {text}: a line has no gaps: give one range; --skip-day leaves a day out")
    return days


if __name__ == "__main__":
    sys.exit(command(add_arguments, run))
