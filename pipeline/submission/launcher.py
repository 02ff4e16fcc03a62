"""Launcher of a schedule: one tick brings a line's RayJobs into agreement with its root.

It keeps no state of its own. It reads the root (published days, records of submissions) and the cluster (RayJobs). So
any number of ticks may be left out, cut off, or run at the same time.
"""

import logging
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from features.errors import ConfigError
from pipeline.config.project import Config
from pipeline.daily.refusal import notify
from pipeline.ingest.day_files import folder_of, has_log
from pipeline.lineage.lease import living_holder
from pipeline.lineage.ledger import Ledger
from pipeline.lineage.ledger_entry import LedgerEntry
from pipeline.lineage.line import Line
from pipeline.storage.files import Storage
from pipeline.submission.attempts import Tried, by_number
from pipeline.submission.job import FOLDER, Job, chain_of, daily_name
from pipeline.submission.kubernetes_api import KubernetesApi
from pipeline.submission.kubernetes_place import KubernetesPlace
from pipeline.submission.place import Submission
from pipeline.submission.rayjob_status import CHAIN_LABEL, submission_of
from pipeline.submission.schedule import Decision, Window, after, decide
from pipeline.submission.submit import records_of

logger = logging.getLogger(__name__)

_LONGEST_LEASE_S = 600.0
_KEPT = 14  # ended RayJobs of published days


class Launcher:
    """Launcher of one line.

    Args:
        config: The project's configuration.
        api: The Kubernetes API.
        place: Place that creates RayJobs.
        job_of: Function that returns the daily job of a day.
    """

    def __init__(
        self, config: Config, api: KubernetesApi, place: KubernetesPlace, job_of: Callable[[str], Job]
    ) -> None:
        self._config, self._api, self._place, self._job_of = config, api, place, job_of
        if config.daily.lease_s > _LONGEST_LEASE_S:
            raise ConfigError(
                f"daily.lease_s is {config.daily.lease_s:g}: expected at most {_LONGEST_LEASE_S:g} for a schedule: "
                "a tick watches the lease of a dead holder for so long"
            )
        self._line = Line.of(config.root, config.line)
        self._chain = chain_of(config, config.line)
        self._logs = Storage(config.logs.path)

    def tick(self, window: Window, *, again: bool = False) -> Decision:
        """Look, decide, and do it: create a RayJob, or say that a person has to act.

        Args:
            window: Days that the schedule is responsible for.
            again: True if a person wants a stopped day to be submitted again.
        """
        while True:
            submissions = self._submissions()
            published = self.published()
            day = window.first if published is None else after(published.day)
            tried = self._tried(submissions, day, (published.at or "") if published else "")
            if self.published() == published:  # else a job has published in between, and its record says done
                break
        newest = published.day if published else None
        decision = decide(window, newest, tried, self._missing_input, lambda: living_holder(self._line), again=again)
        if decision.what == "create":
            decision = self._create(decision)
        if decision.what in {"stopped", "failed"}:
            self._announce(decision)
        self._prune(submissions, newest)
        return decision

    def published(self) -> LedgerEntry | None:
        """Return the newest published entry of the line; None: nothing is published."""
        return Ledger(self._line).newest()

    def _submissions(self) -> list[Submission]:
        rayjobs = self._api.rayjobs(f"{CHAIN_LABEL}={self._chain}")
        return [found for rayjob in rayjobs if (found := submission_of(rayjob)) is not None]

    def _tried(self, submissions: list[Submission], day: str, since: str) -> dict[str, list[Tried]]:
        """Return the outcomes of a day's submissions, and of all that live."""
        name = daily_name(self._chain, day)
        of_day = [submission for submission in submissions if submission.name.startswith(f"{name}-r")]
        others = [one for one in submissions if one not in of_day and one.phase != "ended"]
        tried = {other.day or other.name: by_number([other], {}) for other in others}
        return tried | {day: by_number(of_day, records_of(self._config.root, name), since)}

    def _missing_input(self, day: str) -> str | None:
        if self._config.daily.preflight.success_marker and not self._logs.exists(f"{folder_of(day)}/_SUCCESS"):
            return f"the log of {day} has no _SUCCESS yet"
        return None if has_log(self._logs, day) else f"{day} has no log yet"

    def _create(self, decision: Decision) -> Decision:
        assert decision.day is not None
        job = self._job_of(decision.day)
        name = job.submission(decision.number)
        if self._place.start(job, decision.number):
            logger.info("created RayJob %s: %s", name, decision.text)
            return decision
        return Decision("running", f"{name} was created at the same time", decision.day, decision.number)

    def _announce(self, decision: Decision) -> None:
        """Say by the webhook and an Event that a person has to act; once, unless the tick is cut off meanwhile."""
        assert decision.day is not None
        submission = f"{daily_name(self._chain, decision.day)}-r{decision.number}"
        text = f"{submission} of {decision.day} is the last, no day is trained until a person acts: {decision.text}"
        folder, told = Storage(self._config.root).under(FOLDER), f"{submission}.told"
        if folder.exists(told):
            return
        notify(self._config, {"line": self._line.name, "day": decision.day, "step": "launch", "text": text})
        try:
            self._api.create_event(_event(submission, self._api.namespace, decision.what, text))
        except Exception as error:  # noqa: BLE001 - the exit code says it too
            logger.warning("no Event was written: %s", error)
        folder.create(told, text.encode())

    def _prune(self, submissions: list[Submission], published: str | None) -> None:
        """Delete ended RayJobs of published days, except the newest; their records stay in the root."""
        old = [one for one in submissions if one.phase == "ended" and one.day and published and one.day <= published]
        for one in sorted(old, key=lambda one: (one.day or "", one.number))[:-_KEPT]:
            self._api.delete_rayjob(one.name)


def _event(submission: str, namespace: str, what: str, text: str) -> dict[str, Any]:
    now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    return {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"name": f"{submission}.{what}", "namespace": namespace},
        "involvedObject": {"apiVersion": "ray.io/v1", "kind": "RayJob", "name": submission, "namespace": namespace},
        "reason": "LineStopped",
        "message": text[:1024],
        "type": "Warning",
        "source": {"component": "counterpoise-launcher"},
        "firstTimestamp": now,
        "lastTimestamp": now,
        "count": 1,
    }
