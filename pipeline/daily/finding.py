"""Findings of a check: the text, the key of the config that limits the figure, and the value that would allow it."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from pipeline.daily.accepted import Acceptance
from pipeline.lineage.ledger_entry import Verdict

_IN_A_ROW = 3  # acceptances of one check, after which its limit is taken to be wrong


@dataclass(frozen=True, slots=True)
class Finding:
    """Difference that a check refuses.

    Args:
        text: One line: the figure, the expected figure, and the key.
        key: Dotted key of the limit; empty: no limit is concerned.
        subject: Column, feature or task, by which findings of one key differ.
        needed: Value of the key from which on the day would have passed; infinite: there is none.
        own_key: Dotted key that limits this subject alone; empty: there is none.
    """

    text: str
    key: str = ""
    subject: str = ""
    needed: float = math.inf
    own_key: str = ""

    @property
    def check(self) -> str:
        """Name of the check, the same on every day: the key and the subject."""
        return f"{self.key} of {self.subject}" if self.subject else self.key


def verdict(findings: Sequence[Finding], accepted: Acceptance | None, earlier: Iterable[Verdict]) -> Verdict:
    """Return the verdict of a check that let a day pass.

    Args:
        findings: Its findings.
        accepted: Acceptance of them by a person; None: there are none.
        earlier: Verdicts of the same check on earlier days, the newest first.
    """
    return Verdict(
        problems=tuple(finding.text for finding in findings),
        accepted=accepted.reason if findings and accepted else None,
        by=accepted.by if findings and accepted else None,
        checks=tuple(finding.check for finding in findings if finding.key),
        advice=tuple(advice(findings, earlier, accepted_today=True)),
    )


def advice(findings: Sequence[Finding], earlier: Iterable[Verdict], *, accepted_today: bool) -> list[str]:
    """Return one line for each finding that has been accepted three times in a row: the key to change.

    Args:
        findings: Findings of today.
        earlier: Verdicts of the same check on earlier days, the newest first.
        accepted_today: True if a person accepts today's too.
    """
    known, lines = list(earlier), []
    for finding in findings:
        times = _times_accepted(finding.check, known) + accepted_today
        if finding.key and times >= _IN_A_ROW:
            lines.append(f"{finding.check} was accepted {times} times in a row: {_remedy(finding)}")
    return lines


def _times_accepted(check: str, earlier: Iterable[Verdict]) -> int:
    """Return the number of newest verdicts, one after the other, in which a person accepted a finding of a check."""
    times = 0
    for verdict_then in earlier:
        if verdict_then.accepted is None or check not in verdict_then.checks:
            break
        times += 1
    return times


def _remedy(finding: Finding) -> str:
    key = finding.own_key or finding.key
    if not math.isfinite(finding.needed):
        return f"no value of {key} would have let the day pass, look at the log"
    return f"set {key} to {math.ceil(finding.needed * 100) / 100:g} or more if the log is right"
