"""Refusal of a day by a check: its text, and its report to a webhook."""

import http.client
import json
import logging
import os
import urllib.request
from collections.abc import Mapping, Sequence

from features.errors import DataError
from pipeline.config.project import Config
from pipeline.lineage.line import Line

logger = logging.getLogger(__name__)

WEBHOOK_VARIABLE = "COUNTERPOISE_WEBHOOK"
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
    step = refusal.step if isinstance(refusal, Refused) else None
    notify(config, {"line": line.name, "day": day, "step": step, "text": str(refusal)})


def notify(config: Config, said: Mapping[str, str | None]) -> None:
    """Send a JSON object to the webhook of the config or of the environment, if there is one.

    Args:
        config: The project's configuration.
        said: Content, beside the project's name.
    """
    url = config.daily.on_refusal.webhook or os.environ.get(WEBHOOK_VARIABLE)
    if not url:
        return
    body = json.dumps({"project": config.name, **said}).encode()
    try:
        request = urllib.request.Request(url, body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=_WEBHOOK_S):
            pass
    except (OSError, ValueError, http.client.HTTPException) as error:
        logger.warning("the webhook was not told: %s", type(error).__name__)
