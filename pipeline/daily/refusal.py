"""Refusal of a day by a check: its text, and its report to a webhook."""

import json
import logging
import urllib.request
from collections.abc import Sequence

from features.errors import DataError
from pipeline.config.project import Config
from pipeline.lineage.line import Line

logger = logging.getLogger(__name__)

_WEBHOOK_S = 10
_ACCEPT = {
    "preflight": "go on with --accept-anomaly REASON, or ",
    "gate": "go on with --accept-gate REASON, or ",
}
_DONE = {"preflight": "nothing of it is trained", "gate": "what was trained of it is kept, unpublished"}
_AGAIN = {
    "preflight": "write the log again and start the same command",
    "gate": "if the log is wrong, write it again; if the config is, change it and use --discard REASON",
}


class Refused(DataError):  # noqa: N818 - it is what the command says
    """Refusal by a check: LATEST stays, and later days wait."""

    def __init__(self, day: str, step: str, text: str) -> None:
        super().__init__(text)
        self.day, self.step = day, step


def refused(line: Line, day: str, step: str, problems: Sequence[str], *, can_be_accepted: bool = True) -> Refused:
    """Return the refusal of a day.

    Args:
        line: The line.
        day: ISO date.
        step: Step that refuses, `preflight` or `gate`.
        problems: One line for each finding.
        can_be_accepted: True if a person may continue in spite of them.
    """
    latest = line.latest()
    return Refused(
        day,
        step,
        f"{day} is refused by {step}: {'; '.join(problems)}. {_DONE[step]}, LATEST stays at "
        f"{latest.day if latest else 'nothing'}, later days wait: {_AGAIN[step]}; or "
        f"{_ACCEPT[step] if can_be_accepted else ''}leave the day out with --skip-day REASON",
    )


def tell(config: Config, line: Line, day: str, refusal: DataError) -> None:
    """Report a refusal to the configured receivers; a failure to report is only logged."""
    url = config.daily.on_refusal.webhook
    if url is None:
        return
    step = refusal.step if isinstance(refusal, Refused) else None
    said = {"project": config.name, "line": line.name, "day": day, "step": step, "text": str(refusal)}
    request = urllib.request.Request(url, json.dumps(said).encode(), {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=_WEBHOOK_S):
            pass
    except (OSError, ValueError) as error:
        logger.warning("the webhook was not told: %s", type(error).__name__)
