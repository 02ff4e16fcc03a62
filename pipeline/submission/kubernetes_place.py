"""Jobs on Kubernetes: a RayJob each, which the KubeRay operator gives a Ray cluster of its own."""

import json
import os
from pathlib import Path
from typing import Any

from features.errors import ConfigError
from pipeline.submission.job import Job
from pipeline.submission.kubernetes_api import KubernetesApi
from pipeline.submission.place import Submission
from pipeline.submission.rayjob import config_map, has_volume, mounted_config, render, worker_gb
from pipeline.submission.rayjob_rules import problems
from pipeline.submission.rayjob_status import JOB_LABEL, submission_of

_TOKEN_VARIABLE = "RAY_AUTH_TOKEN"
_DASHBOARD = 8265


class KubernetesPlace:
    """RayJobs of a namespace.

    Args:
        api: The Kubernetes API.
        template: RayJob of a rendered overlay.
        config_path: File that the jobs' `--config` names; None: only state is asked for.
    """

    def __init__(self, api: KubernetesApi, template: dict[str, Any], config_path: Path | None) -> None:
        self._api, self._template, self._config_path = api, template, config_path

    def worker_gb(self, workers: int) -> float | None:
        """Return the memory of a worker in the training pods, in 10^9 bytes; None: there are none."""
        return worker_gb(self._template, workers)

    def find(self, job_name: str) -> list[Submission]:
        """Return the submissions of a job that have a RayJob, in the order of their numbers."""
        rayjobs = self._api.rayjobs(f"{JOB_LABEL}={job_name}")
        seen = [found for rayjob in rayjobs if (found := submission_of(rayjob)) is not None]
        return sorted(seen, key=lambda submission: submission.number)

    def start(self, job: Job, number: int) -> bool:
        """Create a RayJob; return False if one of that name exists already."""
        *config_maps, rayjob = self.objects(job, number)
        for content in config_maps:
            self._api.create_config_map(content)
        return self._api.create_rayjob(rayjob)

    def objects(self, job: Job, number: int) -> list[dict[str, Any]]:
        """Return what a submission creates, in order: the ConfigMap of its configuration, if any, and the RayJob.

        Raises:
            ConfigError: The template cannot run the job.
        """
        for key, url in (("root", job.config.root), ("logs.path", job.config.logs.path)):
            if not url.startswith("s3://") and not has_volume(self._template, url):
                raise ConfigError(
                    f"{key} is {url!r}, and no persistent volume is mounted there in the head of the template: what a "
                    "pod writes there is lost; use s3://, or mount a claim"
                )
        if job.config.daily.on_refusal.webhook is not None:
            raise ConfigError(
                "daily.on_refusal.webhook is a secret, and configurations and arguments stand in plain sight here: "
                "leave it out, and make the Secret counterpoise-webhook with COUNTERPOISE_WEBHOOK"
            )
        mounted = mounted_config(self._template)
        own = self._config_path is not None and self._config_path != mounted
        if own and mounted is None:
            raise ConfigError("the head of the template mounts no volume run-config, so the job has no configuration")
        content = [self._config_map()] if own else []
        rayjob = render(self._template, job, number, content[0]["metadata"]["name"] if content else None, mounted)
        if found := problems(rayjob):
            raise ConfigError(f"RayJob {rayjob['metadata']['name']}: {'; '.join(found)}")
        for created in content:
            created["metadata"]["namespace"] = self._api.namespace
        rayjob["metadata"]["namespace"] = self._api.namespace
        return [*content, rayjob]

    def _config_map(self) -> dict[str, Any]:
        assert self._config_path is not None
        return config_map(self._config_path.read_text())

    def look(self, submission: str) -> Submission | None:
        """Return the state of a submission; None: there is no RayJob of that name."""
        rayjob = self._api.rayjob(submission)
        return submission_of(rayjob) if rayjob is not None else None

    def wait(self, submission: str, seconds: float) -> None:
        """Wait until the RayJob changes, or for some seconds."""
        rayjob = self._api.rayjob(submission)
        if rayjob is not None:
            self._api.changed(submission, rayjob["metadata"]["resourceVersion"], seconds)

    def log(self, submission: str) -> str | None:
        """Return the whole log of the command, through the head's stable service; None: it does not answer."""
        rayjob = self._api.rayjob(submission)
        ray_id = (rayjob or {}).get("status", {}).get("jobId")
        if not ray_id:
            return None
        token = os.environ.get(_TOKEN_VARIABLE)
        headers = {"X-Ray-Authorization": f"Bearer {token}"} if token else {}
        text = self._api.service_text(f"{submission}-head-svc:{_DASHBOARD}", f"api/jobs/{ray_id}/logs", headers)
        try:
            return json.loads(text)["logs"] if text else None
        except (ValueError, KeyError, TypeError):
            return None

    def advice(self, submission: str) -> str:
        """Return how to see the log of a submission, and how to stop it."""
        names = f"-n {self._api.namespace} "
        return (
            f"kubectl {names}logs -f --tail=-1 -l job-name={submission} shows its log; "
            f"kubectl {names}delete rayjob {submission} stops it"
        )
