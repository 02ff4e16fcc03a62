"""Record of one training of a day, with the verdicts and metrics that stand in it."""

from typing import Any, ClassVar, Literal

from pydantic import Field

from pipeline.lineage.records import AuditFigures, EntryReference, Published
from pipeline.storage.record import Record, RecordPart


class Verdict(RecordPart):
    """Verdict of a check.

    Args:
        problems: One line for each finding; empty: none.
        accepted: Reason for which a person accepted the findings; absent: there were none.
        by: Name of that person, as the environment gave it; absent: it gave none, or there was no such field.
        checks: Key of the config and subject of each finding that a limit made, as in `daily.preflight.nulls of column
            'age'`; empty before there was this field.
        advice: One line for each finding that was accepted three times in a row: the key to change.
    """

    problems: tuple[str, ...]
    accepted: str | None = None
    by: str | None = None
    checks: tuple[str, ...] = ()
    advice: tuple[str, ...] = ()


Metrics = dict[str, dict[str, Any]]
"""Metrics of `evaluation.metrics.TaskMetrics.result` with the task's kind, by task name.

`calibration_curve` has the points of the curve; `slices` the metrics by the name and the value of declared slices."""


class HoldoutMetrics(RecordPart):
    """Metrics on the hold-out.

    Args:
        new: Metrics of the new model; absent: nothing is held out, or too little to judge a task.
        parent: Metrics of its parent on the same rows; absent: there is none.
    """

    new: Metrics | None = None
    parent: Metrics | None = None


class SketchFile(RecordPart):
    """File with the samples of a day's ids.

    Args:
        line: Name of the line that has it.
        file: Path below that line.
        bytes: Size in bytes.
        sha256: Checksum of the content, in hexadecimal digits.
    """

    line: str
    file: str
    bytes: int
    sha256: str


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
        kind: Command that made it: `daily`; `train` (no checks, no metrics, no `seconds`, no `at`); `migrate` (the
            content of the day's entry before it, with another checkpoint); or `skip` for a day that was left out.
        line: Name of the line.
        day: ISO date.
        generation: Number of the day's training on its line, from 1.
        checkpoint: Its checkpoint, as its own line names it; of a day that was left out, that of the day before.
        parent: Entry that it follows; absent: it is the first.
        serial: Serial of LATEST when it was begun.
        run: Run that made it.
        at: Moment of writing by that machine's clock, ISO 8601; nothing reads it.
        skipped: Reason for which the day was left out; absent: it was trained.
        by: Name of the person that left it out, as the environment gave it.
        rows: Rows stepped.
        held_out: Rows among them that are held out.
        rows_in_space: Rows in each task's sample space.
        schema_fingerprint: Fingerprint of the schema.
        step: Steps that the model has made on its line.
        days_done: Days that the line has finished.
        loss_weights: w_k(t) of each task.
        pass_index: Pass over the days, from 0.
        new_ids: Figures of the admission of ids (seen, admitted, evicted and more), by table with a vocabulary.
        attempt: Fencing number of the attempt that trained it.
        logs: Size and fingerprint of the Parquet footer, for each file of the log.
        quarantined: Reason why a unit could not be read, by unit.
        audit: Audit of the day.
        config: Twelve hexadecimal digits that identify the configuration, which the checkpoint's manifest has in full.
        train_seconds: Seconds of stepping over the day's own rows, those before a restart included, none counted twice.
        late: Late labels of earlier days that were trained with it, by ISO date.
        profile: Profile of the log by preflight, `features.profile.DayProfile`: rows; nulls by column; by task rows in
            space, sum and sum of squares of labels; by task held-out rows and positives.
        sketches: File with the samples of ids of the profile; absent: the profile has them itself, under `ids`, as
            versions before 3 wrote it.
        preflight: Verdict of preflight.
        gate: Verdict of the gate.
        before: Metrics of the parent's checkpoint on the day's log, before training on it; absent: there is no parent,
            or no daily job trained the day.
        holdout: Metrics on the hold-out.
        expert_use: Mean weight of each expert per gate, by module of gates, on the held-out rows.
        seconds: Seconds of preflight, predict, train and gate, in the command that published.
        migrated_from: Checkpoint that it was migrated from.
    """

    VERSION: ClassVar[int] = 3

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
    by: str | None = None
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
    sketches: SketchFile | None = None
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
        """Return the fields of LATEST for the published entry."""
        return Published(day=self.day, generation=self.generation, checkpoint=self.checkpoint)
