"""One day of the daily job: preflight, predict, train, gate and publish, whatever was cut off before.

No decision depends on the memory of a process: every step reads the line. A result is stored with its inputs
(`KeptResults`), the training in its checkpoints, the publication in the ledger and then in LATEST. So a job that
was killed at any point and is started again completes the remaining steps, and ends with the same ledger.
"""

import itertools
import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from features.errors import ConfigError, DataError
from features.profile import DayProfile
from pipeline.cluster.failures import RunFailed
from pipeline.config.project import Config
from pipeline.daily.accepted import Acceptance, Accepted, acceptance, user_name
from pipeline.daily.finding import Finding, advice, verdict
from pipeline.daily.gate import check_model, is_judged, may_be_judged
from pipeline.daily.preflight import check_profile
from pipeline.daily.ray_work import Work
from pipeline.daily.refusal import refused
from pipeline.evaluation.evaluate import Measurement
from pipeline.ingest.units import DayLog
from pipeline.lineage.day_entry import trained_entry
from pipeline.lineage.id_sketches import profile_of, store_sketches
from pipeline.lineage.ledger import Ledger
from pipeline.lineage.ledger_entry import HoldoutMetrics, LedgerEntry, Verdict
from pipeline.lineage.line import Line
from pipeline.lineage.log_form import form_changes
from pipeline.lineage.records import Manifest
from pipeline.lineage.retention import retire
from pipeline.storage.kept_results import KeptResults

logger = logging.getLogger(__name__)


@dataclass
class DayJob:
    """Steps of one day, each of which can be cut off and started again.

    Args:
        config: The project's configuration.
        line: The line.
        work: Heavy parts of a day.
        day: ISO date.
        run: Run that holds the line.
        accepted: Acceptances for the day.
    """

    config: Config
    line: Line
    work: Work
    day: str
    run: str
    accepted: Accepted
    seconds: dict[str, float] = field(default_factory=dict)

    def publish(self) -> LedgerEntry:
        """Do the remaining steps of the day, and publish it.

        Raises:
            Refused: A check refused the day.
            DataError: Something else is wrong, or another run has taken the line over.
        """
        ledger = Ledger(self.line)
        parent = ledger.newest()
        entry = self._entered(ledger, self.line.state().serial)
        if entry is not None and self.accepted.skip is not None and entry.skipped is None:
            raise DataError(
                f"{self.day} is trained and entered in the ledger already: publish it with the same command without "
                "--skip-day, and take it back with --rollback"
            )
        if entry is None:
            entry = self._skip(ledger, parent) if self.accepted.skip is not None else self._enter(ledger, parent)
        self.line.publish(entry.published, entry.serial, self.run)
        logger.info("published %s, generation %d: %s", entry.day, entry.generation, entry.checkpoint)
        self.line.tidy(self.day)
        if self.config.checkpoint.keep_days is not None:
            retire(self.line, self.config.checkpoint.keep_days)
        return entry

    def _entered(self, ledger: Ledger, serial: int) -> LedgerEntry | None:
        """Return the day's entry if a job was cut off between it and LATEST; None otherwise."""
        known = ledger.generations(self.day)
        if not known or known[-1].serial != serial:
            return None
        manifest = self.line.read_manifest(known[-1].checkpoint)
        return known[-1] if manifest is not None and self.line.damage(manifest) is None else None

    def _enter(self, ledger: Ledger, parent: LedgerEntry | None) -> LedgerEntry:
        logs = self._listed()
        files = {day: log.files for day, log in logs.items()}
        self._forget_what_was_read_before(files)
        state = self.line.state()
        steps, base = self._steps(state.serial), state.checkpoint
        trained = self.line.read_manifest(base) if base else None
        changes = form_changes(self.config, trained, [logs[day] for day in sorted(logs)])
        preflight = self._preflight(ledger, steps, logs[self.day], changes)
        predicted = self._predict(steps, base, files)
        manifest = self._train(files[self.day])
        late = [day for day in logs if day != self.day]
        held_out = self._may_be_judged(ledger, preflight["profile"], manifest, late)
        gate = self._gate(ledger, steps, base, manifest, predicted, measure_held_out=held_out)
        self.line.check_run(self.run)
        entry = trained_entry(self.line, manifest, self.run, "daily")
        profile, sketches = store_sketches(self.line, self.day, preflight["profile"])
        found = preflight | gate | {"profile": profile, "sketches": sketches}
        found |= {"before": predicted, "seconds": self.seconds, "at": datetime.now(UTC).isoformat()}
        return ledger.enter(entry.model_copy(update=found), parent, state.serial)

    def _steps(self, serial: int) -> KeptResults:
        """Return the kept results under LATEST's serial: after a publication or a rollback all steps begin anew."""
        return KeptResults(self.line.storage, f"steps/{self.day}/{serial}")

    def _skip(self, ledger: Ledger, parent: LedgerEntry | None) -> LedgerEntry:
        state = self.line.state()
        if parent is None:
            raise ConfigError(f"{self.day} cannot be skipped: nothing is published, so begin with a later day")
        entry = LedgerEntry(
            kind="skip",
            day=self.day,
            checkpoint=state.checkpoint or "",
            skipped=self.accepted.skip,
            by=user_name(),
            run=self.run,
            at=datetime.now(UTC).isoformat(),
        )
        return ledger.enter(entry, parent, state.serial)

    def _forget_what_was_read_before(self, files: Mapping[str, dict[str, str]]) -> None:
        """Begin again if the day's log has been written anew since its training began."""
        begun, latest = self.line.newest(), self.line.latest()
        if begun is None or begun.day != self.day or (latest is not None and begun.checkpoint == latest.checkpoint):
            return
        if begun.files_of_log != files.get(begun.log_day):
            logger.warning("the log of %s has changed since %s: it is begun again", self.day, begun.checkpoint)
            self.line.restart(self.run)

    def _listed(self) -> dict[str, DayLog]:
        marker = self.config.daily.preflight.success_marker
        if marker and not self.work.has_success_marker(self.day):
            problem = "its folder has no _SUCCESS (daily.preflight.success_marker)"
            raise refused(self.line, self.day, "preflight", [problem], can_be_accepted=False)
        try:
            return self.work.logs(self.day)
        except DataError as error:
            raise refused(self.line, self.day, "preflight", [str(error)], can_be_accepted=False) from error

    def _preflight(self, ledger: Ledger, steps: KeptResults, log: DayLog, changes: Sequence[str]) -> dict[str, Any]:
        """Compare the profile of the day's log with those of the days before; `changes` are those of its form."""
        config = self.config.daily.preflight
        inputs = {"files": log.files, "schema": self.config.log_schema.fingerprint()}
        holdout = self.config.holdout.model_dump() if self.config.holdout else None
        read = inputs | ({"holdout": holdout} if holdout else {})
        found = self._timed("preflight", steps, read, lambda: self.work.profile(log).to_json())
        known = (entry for entry in ledger.chain() if entry.profile is not None)
        profiles = (profile_of(self.line, entry) for entry in itertools.islice(known, config.window))
        earlier = [DayProfile.from_json(profile) for profile in profiles if profile is not None]
        findings = [Finding(change) for change in changes]
        findings += check_profile(config, self.config.log_schema, DayProfile.from_json(found), earlier)
        accepted = acceptance(steps, "anomaly", inputs, self.accepted.anomaly)
        then = (entry.preflight for entry in ledger.chain() if entry.preflight is not None)
        return {"profile": found, "preflight": self._decide("preflight", findings, accepted, then)}

    def _decide(
        self, step: str, findings: Sequence[Finding], accepted: Acceptance | None, earlier: Iterable[Verdict]
    ) -> Verdict:
        """Return the verdict of a check that lets the day pass; raise the refusal of one that does not."""
        if findings and accepted is None:
            said = [finding.text for finding in findings]
            raise refused(self.line, self.day, step, [*said, *advice(findings, earlier, accepted_today=False)])
        decided = verdict(findings, accepted, earlier)
        for line in decided.advice:
            logger.warning("%s: %s", self.day, line)
        return decided

    def _predict(self, steps: KeptResults, base: str | None, files: Any) -> dict[str, Any] | None:
        """Measure yesterday's model on today's log, before training on it."""
        if base is None:
            return None
        inputs = {"checkpoint": base, "files": files} | self._asked
        measure = lambda: _kept(self.work.measure([base], self.day, "all"))  # noqa: E731
        return self._timed("predict", steps, inputs, measure)["checkpoints"][0]["tasks"]

    def _train(self, files: Mapping[str, str]) -> Manifest:
        """Train the day, or find it trained."""
        started = time.monotonic()
        manifest = self.work.train(self.day, self.run)
        self.seconds["train"] = round(time.monotonic() - started, 1)
        if manifest.files_of_log != files:
            self.line.restart(self.run)
            raise RunFailed(f"the log of {self.day} was written while it was trained: start the same command again")
        return manifest

    def _may_be_judged(
        self, ledger: Ledger, profile: Mapping[str, Any], manifest: Manifest, late: Sequence[str]
    ) -> bool:
        """Return True if a task has enough held-out rows to be judged, or may have.

        A profile does not count late labels. Their rows are at most the held-out rows of their days.
        """
        if self.config.holdout is None:
            return False
        config, counted = self.config.daily.gate, DayProfile.from_json(profile).held_out
        entries = [ledger.find(day) for day in late]
        most = manifest.held_out + sum((entry.held_out or 0) for entry in entries if entry is not None)
        for task in self.config.log_schema.tasks:
            if task.name in counted and not task.delay_days:
                if is_judged(config, task.name, task.kind, *counted[task.name]):
                    return True
            elif may_be_judged(config, task.name, task.kind, most):
                return True
        logger.info("no task of %s has enough held-out rows (daily.gate.min_positives): not measured", self.day)
        return False

    def _gate(
        self,
        ledger: Ledger,
        steps: KeptResults,
        base: str | None,
        manifest: Manifest,
        predicted: Any,
        *,
        measure_held_out: bool,
    ) -> dict[str, Any]:
        """Compare the new model with its parent on rows that trained neither, and the day with other days."""
        config = self.config.daily.gate
        checkpoints = [manifest.checkpoint, *([base] if base else [])]
        measured: list[dict[str, Any]] = []
        if measure_held_out:
            inputs = {"checkpoints": checkpoints, "files": manifest.files_of_log} | self._asked
            measure = lambda: _kept(self.work.measure(checkpoints, self.day, "held_out"))  # noqa: E731
            measured = self._timed("gate", steps, inputs, measure)["checkpoints"]
        new, parent = ([one["tasks"] for one in measured] + [None, None])[:2]
        known = (entry.before for entry in ledger.chain() if entry.before)
        usual = list(itertools.islice(known, config.window))
        held = (entry.holdout for entry in ledger.chain() if entry.holdout is not None and entry.holdout.new)
        earlier = list(itertools.islice(held, config.window))
        findings = check_model(config, predicted, usual, new, parent, earlier)
        accepted = acceptance(steps, "gate", checkpoints, self.accepted.gate)
        then = (entry.gate for entry in ledger.chain() if entry.gate is not None)
        decided = self._decide("gate", findings, accepted, then)
        use = measured[0]["expert_use"] if measured else {}
        return {"gate": decided, "holdout": HoldoutMetrics(new=new, parent=parent), "expert_use": use}

    @property
    def _asked(self) -> dict[str, Any]:
        """Groups and slices that are measured: after a change of them a kept measurement is made again."""
        return {name: value for name, value in self.config.evaluation.asked.items() if name != "bootstrap"}

    def _timed(self, name: str, steps: KeptResults, inputs: Any, work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        started = time.monotonic()
        found = steps.done(name, inputs, work)
        self.seconds[name] = round(time.monotonic() - started, 1)
        return found


def _kept(measured: Sequence[Measurement]) -> dict[str, Any]:
    """Return the part of measurements for the ledger: the model's metrics by task, and the use of its experts."""
    return {
        "checkpoints": [
            {
                "tasks": {entry["task"]: _of_ledger(entry) for entry in one.tasks},
                "expert_use": one.expert_use,
            }
            for one in measured
        ]
    }


def _of_ledger(entry: dict[str, Any]) -> dict[str, Any]:
    """Return a task's metrics for the ledger: its kind, the model's metrics, its curve, and its slices if any."""
    further = {name: entry[name] for name in ("calibration_curve", "slices") if entry.get(name)}
    return {"kind": entry["kind"]} | entry["model"] | further
