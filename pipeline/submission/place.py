"""Place where jobs run: this machine, a Ray cluster or Kubernetes, as one interface."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

from pipeline.submission.code_version import code_version
from pipeline.submission.entry_words import CODE_VARIABLE, CONFIG_VARIABLE, DIGEST_VARIABLE, RECORD_VARIABLE, encode
from pipeline.submission.job import Job, config_digest
from pipeline.submission.job_record import record_url

Phase = Literal["waiting", "running", "ended"]


@dataclass(frozen=True, slots=True)
class Submission:
    """State of a submission in its place.

    Args:
        name: Name of the submission.
        number: Number of the submission of its job, from 1.
        phase: `waiting`: its command does not run yet. `ended`: it will not run any more.
        text: State in the place's own words.
        digest: `Job.digest` of what was submitted; None: not known.
        command: The command with its arguments; empty: not known.
        day: ISO date of a daily job of one day.
        is_refused: True if the place cannot run what was submitted, so that a retry cannot help.
    """

    name: str
    number: int
    phase: Phase
    text: str
    digest: str | None = None
    command: str = ""
    day: str | None = None
    is_refused: bool = False


class Place(Protocol):
    """A place where jobs run."""

    def find(self, job_name: str) -> list[Submission]:
        """Return the submissions of a job that the place knows, in the order of their numbers."""
        ...

    def start(self, job: Job, number: int) -> bool:
        """Start a submission; return False if one of that name exists already.

        Raises:
            ConfigError: The place cannot take the job.
        """
        ...

    def look(self, submission: str) -> Submission | None:
        """Return the state of a submission; None: the place does not know it."""
        ...

    def wait(self, submission: str, seconds: float) -> None:
        """Wait until the state of a submission may have changed, or for some seconds."""
        ...

    def log(self, submission: str) -> str | None:
        """Return the whole log of the command; None: it cannot be read, or there is none yet."""
        ...

    def advice(self, submission: str) -> str:
        """Return how to see the log of a submission, and how to stop it."""
        ...


def environment(job: Job, number: int) -> dict[str, str]:
    """Return the variables of a submission: the place of its record, the code and the configuration that it needs."""
    return {
        RECORD_VARIABLE: record_url(job.config.root, job.submission(number)),
        CODE_VARIABLE: code_version(),
        CONFIG_VARIABLE: config_digest(job.config),
        DIGEST_VARIABLE: job.digest,
    }


def entrypoint(job: Job, config: str | None = None) -> tuple[str, Mapping[str, str]]:
    """Return the command of a job on a cluster as words that no shell changes, and the variables that they name.

    Args:
        job: The job. A Ray of its own would start beside the cluster's, so `ray.address` becomes `auto`.
        config: Path of the configuration on the cluster; None: that of the job.
    """
    words = job.with_config(config)
    joins = () if job.config.ray.address != "local" else ("--set", "ray.address=auto")
    words, variables = encode([*words, *joins])
    return " ".join(["python", "-m", f"jobs.{job.command}", *words]), variables
