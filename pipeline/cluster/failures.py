"""Why a run failed, in one line: of what the ranks met, the cause, and not the tracebacks of all of them."""

from collections.abc import Iterator

from ray.train import TrainingFailedError

_CONSEQUENCES = ("Connection closed by peer", "Connection reset by peer")  # a rank that saw another one go


class RunFailed(RuntimeError):  # noqa: N818 - it is what the command says
    """The workers failed more often than they are started again; starting the command again may help."""


def run_failed(error: TrainingFailedError) -> RunFailed:
    """Sum up what Ray Train raised.

    Args:
        error: With the failures of all ranks, each as text with a traceback, or that of the controller.
    """
    failures = getattr(error, "worker_failures", None) or {None: getattr(error, "controller_failure", error)}
    ranks: dict[str, list[str]] = {}
    for rank, failure in failures.items():
        ranks.setdefault(_last_line(str(failure)), []).append(str(rank))
    causes = [line for line in ranks if not any(sign in line for sign in _CONSEQUENCES)] or list(ranks)
    return RunFailed("; ".join(_named(line, ranks[line]) for line in causes))


def _named(line: str, ranks: list[str]) -> str:
    return line if ranks == ["None"] else f"rank {', '.join(ranks)}: {line}"


def _last_line(text: str) -> str:
    """Of a traceback, what was raised; `text` where it has no lines."""
    lines: Iterator[str] = (line.strip() for line in reversed(text.splitlines()))
    return next((line for line in lines if line), text)
