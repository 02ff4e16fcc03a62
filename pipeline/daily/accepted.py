"""Acceptances: reasons of a person to continue in spite of a check."""

import getpass
import os
from dataclasses import dataclass
from typing import Any

from pipeline.storage.kept_results import KeptResults
from pipeline.storage.record import RecordPart


@dataclass(frozen=True, slots=True)
class Accepted:
    """Reasons of a person to continue in spite of a check.

    Args:
        anomaly: Reason to accept the findings of preflight.
        gate: Reason to accept the findings of the gate.
        skip: Reason to leave the day out; of one day alone.
    """

    anomaly: str | None = None
    gate: str | None = None
    skip: str | None = None


class Acceptance(RecordPart):
    """Acceptance of a check's findings on one day.

    Args:
        reason: Reason that the person gave.
        by: Name of the person; None: unknown.
    """

    reason: str
    by: str | None = None


def user_name() -> str | None:
    """Return the name of the person who started the command; None if the environment gives none.

    `COUNTERPOISE_USER` counts first, for people who share a login or start commands through a service. The name is what
    the environment says: a help for whoever asks later, and no proof.
    """
    try:
        return os.environ.get("COUNTERPOISE_USER") or getpass.getuser()
    except (KeyError, OSError):  # a container's user that the system does not know
        return None


def acceptance(steps: KeptResults, name: str, inputs: Any, reason: str | None) -> Acceptance | None:
    """Return the acceptance of a check's findings for these inputs; keep one that is given now.

    So a restart needs no reason again, and the name stays that of the person who gave it.

    Args:
        steps: Kept results of the day.
        name: The check's name.
        inputs: Inputs of the check, as JSON.
        reason: Reason given now; None: no reason.
    """
    step = f"accept-{name}"
    if reason is not None:
        given = Acceptance(reason=reason, by=user_name())
        steps.keep(step, inputs, given.model_dump(exclude_none=True))
        return given
    found = steps.found(step, inputs)
    if isinstance(found, str):  # an earlier version kept the reason alone
        return Acceptance(reason=found)
    return None if found is None else Acceptance.model_validate(found)
