"""Failure of a run in one line: the cause among the ranks' errors, without all their tracebacks."""

from collections.abc import Iterator

from ray.train import TrainingFailedError

from features.errors import Interrupted
from pipeline.lineage.records import AttemptResult

_CONSEQUENCES = ("Connection closed by peer", "Connection reset by peer")  # error of a rank that lost its peer


class RunFailed(RuntimeError):  # noqa: N818 - it is the command's outcome
    """Failure of the workers, or of planning, beyond the allowed restarts; a restart of the command may help."""


def ending_of(error: BaseException) -> tuple[AttemptResult, str]:
    """Return the result of an attempt that an error has ended, and the reason, in at most 500 characters."""
    if isinstance(error, KeyboardInterrupt | SystemExit | Interrupted):  # Ray turns a SIGTERM into SystemExit
        return "interrupted", str(error) if isinstance(error, Interrupted) else "by Ctrl-C or SIGTERM"
    return "failed", " ".join(str(error).split())[:500]


def cause_of(error: TrainingFailedError) -> str:
    """Return the cause of Ray Train's error in one line.

    Args:
        error: Error with the failures of all ranks, each as text with a traceback, or that of the controller.
    """
    failures = getattr(error, "worker_failures", None) or {None: getattr(error, "controller_failure", error)}
    ranks: dict[str, list[str]] = {}
    for rank, failure in failures.items():
        ranks.setdefault(_last_line(str(failure)), []).append(str(rank))
    causes = [line for line in ranks if not any(sign in line for sign in _CONSEQUENCES)] or list(ranks)
    return "; ".join(_named(line, ranks[line]) for line in causes)


def _named(line: str, ranks: list[str]) -> str:
    return line if ranks == ["None"] else f"rank {', '.join(ranks)}: {line}"


def _last_line(text: str) -> str:
    """Return the last line of a traceback, its error; `text` if it has no lines."""
    lines: Iterator[str] = (line.strip() for line in reversed(text.splitlines()))
    return next((line for line in lines if line), text)
