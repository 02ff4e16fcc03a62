"""Launch the daily jobs of a line on Kubernetes: one tick of a schedule, which may be repeated at any time."""

import argparse
import sys
from datetime import UTC, datetime
from typing import Any

from features.errors import ConfigError
from jobs.command import add_config, command, read_config
from jobs.submitted import job_of


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of the command."""
    add_config(parser)
    parser.add_argument("--template", required=True, help="a file with the rendered RayJob")
    parser.add_argument("--namespace", help="absent: that of the pod")
    parser.add_argument("--first-day", required=True, metavar="DAY", help="first day of a line that has none")
    parser.add_argument("--last-day", metavar="DAY", help="last day to train; absent: no end")
    parser.add_argument("--lag-days", type=int, default=1, metavar="N", help="a day is due N days later (1)")
    parser.add_argument("--time-zone", default="Etc/UTC", help="zone in which the days of the log end (Etc/UTC)")
    parser.add_argument("--submissions", type=int, default=3, metavar="N", help="most failed submissions of a day (3)")
    parser.add_argument("--again", metavar="REASON", help="submit the day that waits for a person once more")


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Make one tick."""
    config = read_config(arguments)
    from pipeline.cluster.failures import RunFailed
    from pipeline.ingest.units import parse_days
    from pipeline.submission.kubernetes_api import KubernetesApi
    from pipeline.submission.kubernetes_place import KubernetesPlace
    from pipeline.submission.launcher import Launcher
    from pipeline.submission.rayjob import template_of
    from pipeline.submission.schedule import LineStopped, Window, due_day

    if arguments.lag_days < 0 or arguments.submissions < 1:
        raise ConfigError("--lag-days must be at least 0, and --submissions at least 1")
    last = due_day(datetime.now(UTC), arguments.time_zone, arguments.lag_days)
    last = min(last, parse_days(arguments.last_day)[0]) if arguments.last_day else last
    window = Window(parse_days(arguments.first_day)[0], last, arguments.submissions)
    api = KubernetesApi(arguments.namespace)
    overrides = [word for setting in arguments.set for word in ("--set", setting)]
    words = ["--config", arguments.config, *overrides]
    daily = lambda day: job_of("daily", [*words, "--day", day, "--max-catch-up", "0"])[0]  # noqa: E731
    place = KubernetesPlace(api, template_of(None, arguments.template), None)
    decision = Launcher(config, api, place, daily).tick(window, again=arguments.again is not None)
    said = {"result": decision.what, "line": config.line, "day": decision.day, "reason": decision.text}
    if decision.what == "stopped":
        raise LineStopped(f"{decision.day} waits for a person: {decision.text}; then --again REASON submits it", said)
    if decision.what == "failed":
        raise RunFailed(f"{decision.day}: {decision.text}; --again REASON submits it once more")
    return said


if __name__ == "__main__":
    sys.exit(command(add_arguments, run))
