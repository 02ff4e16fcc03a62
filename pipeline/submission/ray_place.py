"""Jobs on a running Ray cluster, through Ray's Jobs API."""

import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import requests
from ray.dashboard.modules.job.common import JobStatus
from ray.dashboard.modules.job.sdk import JobSubmissionClient
from ray.exceptions import AuthenticationError

from features.errors import ConfigError
from pipeline.submission.job import Job, parse_submission
from pipeline.submission.place import Phase, Submission, entrypoint, environment

_PROJECT = Path(__file__).parents[2]
# Not uploaded; a cluster takes at most 512 MiB.
_EXCLUDES = ["/.*", "/runs", "/data", "/tests", "/docs", "/benchmarks", "**/__pycache__"]
_PHASES: dict[str, Phase] = {"PENDING": "waiting", "RUNNING": "running"}
_DIGEST = "digest"
_NO_AGENT = "No available agent"  # Ray's answer of a head whose agents have not said yet that they are there


def once_there(submit: Callable[[], str], within_s: float = 180.0) -> str:
    """Submit a job as soon as the cluster has an agent that takes it: its head answers some seconds earlier.

    Args:
        submit: Submits; returns the job's id.
        within_s: Time after which the refusal is raised.

    Raises:
        RuntimeError: The cluster refuses the job.
        ConfigError: No agent of its head came.
    """
    until = time.monotonic() + within_s
    while True:
        try:
            return submit()
        except RuntimeError as error:
            if _NO_AGENT not in str(error):
                raise
            if time.monotonic() > until:
                raise ConfigError(
                    f"the cluster's head has had no agent that takes jobs for {within_s:.0f} s: read its "
                    "dashboard_agent.log; if another Ray on its machine holds the agent's port, start the head with "
                    "--dashboard-agent-listen-port=0"
                ) from error
        time.sleep(1)


class RayPlace:
    """A running Ray cluster.

    Args:
        address: Address of its dashboard, `http://HOST:8265`.
        upload: True to run this checkout, uploaded; False to run the code in the cluster's image.

    Raises:
        ConfigError: The cluster has another version of Ray.
        ConnectionError: No cluster answers.
    """

    def __init__(self, address: str, *, upload: bool = True) -> None:
        self._address, self._upload = address, upload
        try:
            self._client = JobSubmissionClient(address)
            there = self._client._do_request("GET", "/api/version").json()["ray_version"]
        except (ConnectionError, requests.RequestException) as error:
            raise ConnectionError(f"no Ray answers at {address}: correct --address, or start the cluster") from error
        except AuthenticationError as error:
            raise ConfigError(
                f"the cluster at {address} wants a token: set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN"
            ) from error
        if there != version("ray"):
            raise ConfigError(
                f"the cluster at {address} has Ray {there}, this machine has {version('ray')}: use the same version"
            )

    def find(self, job_name: str) -> list[Submission]:
        """Return the submissions of a job that the cluster knows, in the order of their numbers."""
        known = [job for job in self._client.list_jobs() if job.submission_id]
        found = [(parse_submission(str(job.submission_id)), job) for job in known]
        seen = [_seen(job) for parsed, job in found if parsed is not None and parsed[0] == job_name]
        return sorted(seen, key=lambda submission: submission.number)

    def start(self, job: Job, number: int) -> bool:
        """Start a submission; return False if one of that name exists already."""
        command, variables = entrypoint(job)
        runtime_env: dict[str, Any] = {"env_vars": {**variables, **environment(job, number)}}
        if self._upload:
            runtime_env |= {"working_dir": str(_PROJECT), "excludes": _EXCLUDES}
        name = job.submission(number)
        try:
            once_there(
                lambda: self._client.submit_job(
                    entrypoint=command,
                    submission_id=name,
                    runtime_env=runtime_env,
                    metadata={_DIGEST: job.digest},
                )
            )
        except RuntimeError as error:
            if self.look(name) is not None:
                return False
            raise ConfigError(f"the cluster refuses {name}: {error}") from error
        return True

    def look(self, submission: str) -> Submission | None:
        """Return the state of a submission; None: the cluster does not know it."""
        found = [job for job in self._client.list_jobs() if job.submission_id == submission]
        return _seen(found[0]) if found else None

    def wait(self, submission: str, seconds: float) -> None:
        """Wait a moment."""
        time.sleep(min(1.0, seconds))

    def log(self, submission: str) -> str | None:
        """Return the whole log of the command."""
        try:
            return self._client.get_job_logs(submission)
        except RuntimeError:
            return None

    def advice(self, submission: str) -> str:
        """Return how to see the log of a submission, and how to stop it."""
        return (
            f"ray job logs --address {self._address} {submission} shows its log; "
            f"ray job stop --address {self._address} {submission} stops it"
        )


def _seen(job: Any) -> Submission:
    status = JobStatus(job.status).value
    _, number = parse_submission(job.submission_id) or ("", 0)
    text = f"{status}: {job.message}" if job.message else status
    return Submission(job.submission_id, number, _PHASES.get(status, "ended"), text, (job.metadata or {}).get(_DIGEST))
