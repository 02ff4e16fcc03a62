"""Launch jobs of days on Kubernetes: one tick of a schedule, which may be repeated at any time.

The days are those of a line, one after the other. With `--command` they are independent of one another.
"""

import argparse
import sys
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from features.errors import ConfigError
from jobs.command import add_config, command, read_config
from jobs.submitted import job_of

if TYPE_CHECKING:  # `--help` answers without torch
    from pipeline.submission.schedule import Decision, Window


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of the command."""
    add_config(parser)
    parser.add_argument("--template", required=True, help="a file with the rendered RayJob")
    parser.add_argument("--namespace", help="absent: that of the pod")
    parser.add_argument("--first-day", metavar="DAY", help="first day of a line that has none; needed for a line")
    parser.add_argument("--last-day", metavar="DAY", help="last day to train; absent: no end")
    parser.add_argument("--lag-days", type=int, default=1, metavar="N", help="a day is due N days later (1)")
    parser.add_argument("--time-zone", default="Etc/UTC", help="zone in which the days of the log end (Etc/UTC)")
    parser.add_argument("--submissions", type=int, default=3, metavar="N", help="most failed submissions of a day (3)")
    parser.add_argument("--again", metavar="REASON", help="submit what waits for a person once more")
    parser.add_argument(
        "--command", choices=["backfill", "evaluate"], help="instead of a line: a job for each of --days"
    )
    parser.add_argument("--days", help="with --command: YYYY-MM-DD..YYYY-MM-DD")
    parser.add_argument("--at-most", type=int, default=1, metavar="N", help="with --command: jobs at the same time (1)")
    parser.add_argument("words", nargs="*", metavar="-- ARGUMENT", help="with --command: further arguments of it")


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Make one tick."""
    for option, value in (("--submissions", arguments.submissions), ("--at-most", arguments.at_most)):
        if value < 1:
            raise ConfigError(f"{option} is {value}, expected at least 1")
    if arguments.command is None:
        return _launch_line(arguments)
    return _launch_each(arguments)


def _launch_line(arguments: argparse.Namespace) -> dict[str, Any]:
    if arguments.first_day is None or arguments.days or arguments.words:
        raise ConfigError(
            "a line needs --first-day, and takes no --days and no further arguments: those need --command"
        )
    config = read_config(arguments)
    from pipeline.cluster.failures import RunFailed
    from pipeline.submission.launcher import Launcher
    from pipeline.submission.schedule import LineStopped

    place, api = _place(arguments)
    daily = lambda day: job_of("daily", _words(arguments, "--day", day, "--max-catch-up", "0"))[0]  # noqa: E731
    decision = Launcher(config, api, place, daily).tick(_window(arguments), again=arguments.again is not None)
    said = {"result": decision.what, "line": config.line, "day": decision.day, "reason": decision.text}
    said |= {"again": arguments.again} if arguments.again is not None else {}
    if decision.what == "stopped":
        raise LineStopped(f"{decision.day} waits for a person: {decision.text}; then --again REASON submits it", said)
    if decision.what == "failed":
        raise RunFailed(f"{decision.day}: {decision.text}; --again REASON submits it once more")
    return said


def _window(arguments: argparse.Namespace) -> "Window":
    from pipeline.ingest.units import parse_days
    from pipeline.submission.schedule import Window, due_day

    if arguments.lag_days < 0:
        raise ConfigError(f"--lag-days is {arguments.lag_days}, expected at least 0")
    last = due_day(datetime.now(UTC), arguments.time_zone, arguments.lag_days)
    last = min(last, parse_days(arguments.last_day)[0]) if arguments.last_day else last
    return Window(parse_days(arguments.first_day)[0], last, arguments.submissions)


def _launch_each(arguments: argparse.Namespace) -> dict[str, Any]:
    if arguments.days is None:
        raise ConfigError(f"--command {arguments.command} needs --days")
    from pipeline.ingest.units import parse_days
    from pipeline.submission.each_day import launch_each

    place, _ = _place(arguments)
    words = arguments.words
    jobs = {
        day: job_of(arguments.command, _words(arguments, "--days", day, *words))[0]
        for day in parse_days(arguments.days)
    }
    decisions = launch_each(place, jobs, arguments.at_most, arguments.submissions, again=arguments.again is not None)
    return _said(arguments.command, decisions)


def _said(name: str, decisions: "Sequence[Decision]") -> dict[str, Any]:
    """Return the figures of all days; raise if a day waits for a person, or has failed."""
    from pipeline.cluster.failures import RunFailed
    from pipeline.submission.schedule import LineStopped

    counted = dict(Counter(decision.what for decision in decisions))
    said = {"result": "nothing" if set(counted) == {"nothing"} else "launched", "command": name, "days": counted}
    for what in ("stopped", "failed"):
        found = [decision for decision in decisions if decision.what == what]
        if found:
            text = f"{len(found)} days: {found[0].day}: {found[0].text}; --again REASON submits them once more"
            raise LineStopped(text, said) if what == "stopped" else RunFailed(text)
    return said


def _place(arguments: argparse.Namespace) -> Any:
    from pipeline.submission.kubernetes_api import KubernetesApi
    from pipeline.submission.kubernetes_place import KubernetesPlace
    from pipeline.submission.rayjob import template_of

    api = KubernetesApi(arguments.namespace)
    return KubernetesPlace(api, template_of(None, arguments.template), Path(arguments.config)), api


def _words(arguments: argparse.Namespace, *more: str) -> list[str]:
    settings = [word for setting in arguments.set for word in ("--set", setting)]
    return ["--config", arguments.config, *settings, *more]


if __name__ == "__main__":
    sys.exit(command(add_arguments, run))
