"""Record of one training of a day, with the verdicts and metrics that stand in it."""

from typing import Any, Literal

from pydantic import Field

from pipeline.lineage.records import AuditFigures, EntryReference, Published
from pipeline.storage.record import Record, RecordPart


class Verdict(RecordPart):
    """Verdict of a check.

    Args:
        problems: One line for each finding; empty: none.
        accepted: Reason for which a person accepted the findings; absent: there were none.
    """

    problems: tuple[str, ...]
    accepted: str | None = None


Metrics = dict[str, dict[str, Any]]
"""By task name: the metrics of `evaluation.metrics.TaskMetrics.result`, with the task's kind."""


class HoldoutMetrics(RecordPart):
    """Metrics on the hold-out.

    Args:
        new: Metrics of the new model; absent: nothing is held out.
        parent: Metrics of its parent on the same rows; absent: there is none.
    """

    new: Metrics | None = None
    parent: Metrics | None = None


class LateLabels(RecordPart):
    """Late labels of an earlier day, trained with a day.

    Args:
        tasks: Tasks whose labels were read.
        rows: Rows stepped.
        rows_in_space: Rows in each task's sample space.
        logs: Size and fingerprint of each file of that day's log.
    """

    tasks: tuple[str, ...] | None = None
    rows: int
    rows_in_space: dict[str, int]
    logs: dict[str, str]


class LedgerEntry(Record):
    """Entry of the ledger: one training of a day; written once, before LATEST moves to it, and never changed.

    Args:
        kind: Command that made it: `train`, `daily`, `migrate`, or `skip` for a day that was left out.
        line: Name of the line.
        day: ISO date.
        generation: Number of the day's training on its line, from 1.
        checkpoint: Its checkpoint, as its own line names it; of a day that was left out, that of the day before.
        parent: Entry that it follows; absent: it is the first.
        serial: Serial of LATEST when it was begun.
        run: Run that made it.
        at: Moment, ISO 8601.
        skipped: Reason for which the day was left out; absent: it was trained.
        rows: Rows stepped.
        held_out: Rows among them that are held out.
        rows_in_space: Rows in each task's sample space.
        schema_fingerprint: Fingerprint of the schema.
        step: Steps that the model has made on its line.
        days_done: Days that the line has finished.
        loss_weights: w_k(t) of each task.
        pass_index: Pass over the days, from 0.
        new_ids: By table with a vocabulary: figures of the admission of ids.
        attempt: Fencing number of the attempt that trained it.
        logs: Size and fingerprint of each file of the log.
        quarantined: By unit: why it could not be read.
        audit: Audit of the day.
        config: Twelve hexadecimal digits of the configuration.
        train_seconds: Seconds of training.
        late: By ISO date: late labels of earlier days that were trained with it.
        profile: Profile of the log, `features.profile.DayProfile`.
        preflight: Verdict of preflight.
        gate: Verdict of the gate.
        before: Metrics of the parent's checkpoint on the day's log, before it was trained.
        holdout: Metrics on the hold-out.
        expert_use: By module of gates: mean weight of each expert, per gate.
        seconds: Seconds of the job's steps.
        migrated_from: Checkpoint that it was migrated from.
    """

    kind: Literal["train", "daily", "migrate", "skip"]
    line: str = ""
    day: str
    generation: int = 0
    checkpoint: str
    parent: EntryReference | None = None
    serial: int = 0
    run: str
    at: str | None = None
    skipped: str | None = None
    rows: int | None = None
    held_out: int | None = None
    rows_in_space: dict[str, int] = {}
    schema_fingerprint: str | None = None
    step: int | None = None
    days_done: int | None = None
    loss_weights: dict[str, float] = {}
    pass_index: int | None = Field(default=None, validation_alias="pass", serialization_alias="pass")
    new_ids: dict[str, dict[str, int]] = {}
    attempt: str | None = None
    logs: dict[str, str] = {}
    quarantined: dict[str, str] = {}
    audit: AuditFigures | None = None
    config: str | None = None
    train_seconds: float | None = None
    late: dict[str, LateLabels] = {}
    profile: dict[str, Any] | None = None
    preflight: Verdict | None = None
    gate: Verdict | None = None
    before: Metrics | None = None
    holdout: HoldoutMetrics | None = None
    expert_use: dict[str, Any] = {}
    seconds: dict[str, float] = {}
    migrated_from: str | None = None

    @property
    def reference(self) -> EntryReference:
        """Place of the entry, as the next entry names its parent."""
        return EntryReference(line=self.line, day=self.day, generation=self.generation)

    @property
    def published(self) -> Published:
        """What LATEST says of the entry once it is published."""
        return Published(day=self.day, generation=self.generation, checkpoint=self.checkpoint)
