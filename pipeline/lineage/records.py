"""Records of a line: manifest, LATEST, attempt, lease, pin, move by hand; `ledger_entry` has the ledger's.

`docs/records.md` lists their fields; the page is generated from these classes.
"""

from typing import Any, ClassVar, Literal

from pydantic import Field

from features.ids import IdType
from features.statistics import Statistics
from pipeline.ingest.cursor import MASK, StoredCursor
from pipeline.storage.record import Record, RecordPart


class FileMark(RecordPart):
    """Size and checksum of a file of a checkpoint.

    Args:
        bytes: Size in bytes.
        sha256: SHA-256 of the content, in hexadecimal digits; with `chunks`, of their digits, joined.
        chunk_bytes: Bytes of a chunk, the last one apart; absent: the file is one chunk, or of format 4.
        chunks: SHA-256 of each chunk, in order, in hexadecimal digits; absent as `chunk_bytes` is.
    """

    bytes: int
    sha256: str
    chunk_bytes: int | None = None
    chunks: tuple[str, ...] | None = None


class RunScope(RecordPart):
    """Days that a training command was asked for; the same however often it is started.

    Args:
        days: ISO dates in order.
        passes: Passes over all of them.
    """

    days: tuple[str, ...]
    passes: int


class TableSharding(RecordPart):
    """Placement of a table.

    Args:
        sharding_type: TorchRec's sharding type.
        compute_kernel: TorchRec's compute kernel.
        ranks: Ranks that hold shards.
    """

    sharding_type: str
    compute_kernel: str
    ranks: tuple[int, ...] | None


class AuditFigures(RecordPart):
    """Audit of a day in three figures.

    Args:
        units: Number of units with a row that was stepped.
        rows: Rows stepped.
        sum: Sum modulo 2^64 of hash(unit, row number) over these rows, as 16 hexadecimal digits.
    """

    units: int
    rows: int
    sum: str

    @classmethod
    def of(cls, cursor: StoredCursor) -> "AuditFigures":
        """Add up a cursor."""
        total = sum(sums for _, sums in cursor.units.values()) & MASK
        rows = sum(count for count, _ in cursor.units.values())
        return cls(units=len(cursor.units), rows=rows, sum=f"{total:016x}")


class Manifest(Record):
    """Manifest of a complete checkpoint: enough to restore it, to refuse it, and to know years later what it was.

    Args:
        checkpoint: Name by which the checkpoint was asked for, `checkpoints/<day>/<attempt>/<step>`, with the name of
            another line before it where it is another line's; not written.
        day: ISO date of the day that was trained.
        log_day: ISO date of the log that was read for it; an earlier day's where late labels were trained.
        tasks: Tasks whose labels were read; absent: all.
        pass_index: Pass over the days, from 0.
        complete: True if all rows of the log have been stepped.
        parent: Checkpoint of the finished part or day before it, with the name of its line before it if that is another
            line; absent: none.
        attempt: Fencing number of the attempt that wrote it, in four digits.
        step: Steps that the model has made on its line.
        days_done: Days that the line has finished.
        day_began_at: Step at which the day began.
        rows: Rows stepped of the log.
        held_out: Held-out rows among them.
        rows_in_space: Rows in each task's sample space.
        audit: Audit of the rows stepped; the cursor has it per unit.
        files_of_log: Size in bytes and fingerprint of the Parquet footer, by file of the log, at the time of reading.
        day_files: Rule of the files that were read: `all` below the day's folder but hidden ones, or, before there was
            this field, those `in_folder` whose names end with `.parquet`, hidden ones too.
        id_types: `integer` or `text`, by name of each read column that is one of them; empty before there was this
            field.
        config: The whole configuration.
        schema_fingerprint: Fingerprint of the schema.
        statistics: Statistics of the line; absent: the schema needs none.
        libraries: Versions of the libraries that wrote it.
        sharding: Placement of each table.
        loss_weights: w_k(t) of each task at that step.
        run: Days and passes that the command was asked for.
        new_ids: Figures of the admission of ids on the run's days, by table with a vocabulary.
        seconds: Seconds of training since the log was begun, those of cut-off attempts before it included.
        migrated_from: Checkpoint of another schema or model that it was migrated from; absent: none.
        files: Size and checksum of each file of the checkpoint.
        cursor: Cursor in format 3 alone; later formats have the file `cursor.arrow` instead.
        lanes: Unit keys per rank in format 3 alone; later formats have the file `lanes.arrow` instead.
    """

    VERSION: ClassVar[int] = 5
    VERSION_KEY: ClassVar[str] = "format"

    checkpoint: str = Field(default="", exclude=True)
    day: str
    log_day: str
    tasks: tuple[str, ...] | None = None
    pass_index: int = Field(validation_alias="pass", serialization_alias="pass")
    complete: bool
    parent: str | None = None
    attempt: str
    step: int
    days_done: int
    day_began_at: int
    rows: int
    held_out: int
    rows_in_space: dict[str, int]
    audit: AuditFigures
    files_of_log: dict[str, str]
    day_files: Literal["all", "in_folder"] = "in_folder"
    id_types: dict[str, IdType] = {}
    config: dict[str, Any]
    schema_fingerprint: str
    statistics: Statistics | None = None
    libraries: dict[str, str]
    sharding: dict[str, TableSharding]
    loss_weights: dict[str, float]
    run: RunScope
    new_ids: dict[str, dict[str, int]] = {}
    seconds: float = 0.0
    migrated_from: str | None = None
    files: dict[str, FileMark] = {}
    cursor: StoredCursor | None = None
    lanes: tuple[tuple[str, ...], ...] | None = None

    @classmethod
    def upgraded(cls, content: dict[str, Any], version: int) -> dict[str, Any]:
        """Return the content of format 4, without checksums of chunks, or 3, with cursor and lanes in the manifest.

        Raises:
            ValueError: The manifest is of an earlier format.
        """
        if version == 4:
            return content
        if version != 3:
            raise ValueError(f"it has format {version}, this version of Counterpoise reads 3 to {cls.VERSION}")
        cursor = StoredCursor.from_format_3(content["cursor"])
        return content | {"cursor": cursor, "audit": AuditFigures.of(cursor)}

    @property
    def attempt_number(self) -> int:
        """Fencing number of the attempt that wrote the checkpoint."""
        return int(self.attempt)

    @property
    def is_own_log(self) -> bool:
        """True if the day's own rows were read, not late labels of an earlier day."""
        return self.log_day == self.day


class Published(RecordPart):
    """Published checkpoint of a day.

    Args:
        day: ISO date.
        generation: Number of the day's training on its line, from 1.
        checkpoint: Name of the checkpoint.
    """

    day: str
    generation: int
    checkpoint: str


class EntryReference(RecordPart):
    """Place of a ledger entry.

    Args:
        line: Name of the line.
        day: ISO date.
        generation: Number of the day's training on that line, from 1.
    """

    line: str
    day: str
    generation: int


class Latest(Record):
    """State of a line; moved by compare-and-swap alone.

    Args:
        fence: Number of the newest attempt that began.
        holder: Run that holds the line and may publish, with a random part that makes each taking unique.
        serial: Number of moves of LATEST and of discards. An entry or attempt of another serial does not follow the
            published checkpoint.
        day: ISO date of the newest published entry, `ledger/<day>/<generation>.json`; absent: nothing is published.
        generation: Number of that day's training on its line.
        checkpoint: Name of its checkpoint.
        branch: Entry of another line from which this line continues, until it publishes an entry of its own. Until then
            `checkpoint` has the other line before it, as in `main:checkpoints/...`.
    """

    fence: int = 0
    holder: str = ""
    serial: int = 0
    day: str | None = None
    generation: int | None = None
    checkpoint: str | None = None
    branch: EntryReference | None = None

    @property
    def published(self) -> Published | None:
        """Newest published checkpoint; None: nothing is published."""
        if self.day is None or self.generation is None or self.checkpoint is None:
            return None
        return Published(day=self.day, generation=self.generation, checkpoint=self.checkpoint)

    def is_held_by(self, run: str) -> bool:
        """Return True if a run holds the line."""
        return self.holder.startswith(f"{run}/")


AttemptResult = Literal["done", "failed", "refused", "interrupted", "restarted"]


class Attempt(Record):
    """One attempt to train or migrate: begun with the plan of a training, and again after a restart of its workers.

    Args:
        run: Run that it belongs to.
        attempt: Its fencing number.
        days: ISO dates that it was to train.
        passes: Passes over them; absent: it was a migration.
        start: Checkpoint that it started from; absent: from nothing.
        start_step: Steps of that checkpoint.
        serial: Serial of LATEST when it began.
        migrates: Checkpoint that it migrates; absent: it trains.
        result: `done`: finished its days. `restarted`: its stream was planned again (it lost a worker, was
            resized, or was not planned to the end), and the next attempt continued.
            `interrupted`: was ended by SIGTERM, and saved. `refused`: was stopped by its logs, a loss that is not
            finite, or another attempt. `failed`: ended with an error. Absent: still runs, or was killed.
        reason: Error of an attempt that failed or was refused.
    """

    run: str
    attempt: int
    days: tuple[str, ...]
    passes: int | None = None
    start: str | None = None
    start_step: int = 0
    serial: int
    migrates: str | None = None
    result: AttemptResult | None = None
    reason: str | None = None


class ProcessIdentity(RecordPart):
    """Identity of a process, by which another process of the same machine finds it gone.

    Args:
        pid: Process number.
        started: Ticks since the machine was started.
        host: Name of the machine.
        boot: Identity of the machine's last start.
        pids: Identity of the container's process numbers.
    """

    pid: int | None = None
    started: int | None = None
    host: str | None = None
    boot: str | None = None
    pids: str | None = None


class LeaseRecord(Record):
    """Lease of a line, rewritten by its holder.

    Args:
        run: Run that holds the line.
        what: Description of the run's work.
        seconds: Silence after which the holder is dead.
        process: Process of the holder.
        beat: Number of the write.
        released: Run that gave the lease back; absent: the lease is held.
    """

    run: str = ""
    what: str = ""
    seconds: float = 60.0
    process: ProcessIdentity = ProcessIdentity()
    beat: int = 0
    released: str | None = None


class Pin(Record):
    """Reason for which a checkpoint is not retired.

    Args:
        holder: Name of the job or branch that keeps it.
        until: End of the pin, in seconds since the epoch.
    """

    holder: str
    until: float


class FoundDamage(Record):
    """Damage of a checkpoint that workers met as they loaded it; `found_damage.json` in its folder.

    Args:
        file: Damaged file.
        problem: Difference from the manifest.
    """

    file: str
    problem: str


class MoveByHand(Record):
    """Move of LATEST that a person made.

    Args:
        was: Published checkpoint before the move.
        at: Moment, ISO 8601.
        to: Entry that LATEST moved to; absent: the unpublished work was discarded.
        discarded: True if the unpublished work was discarded.
        reason: Reason that the person gave.
        run: Run that moved it.
    """

    was: Published | None = Field(default=None, validation_alias="from", serialization_alias="from")
    at: str
    to: EntryReference | None = None
    discarded: bool = False
    reason: str
    run: str

    @classmethod
    def upgraded(cls, content: dict[str, Any], version: int) -> dict[str, Any]:
        """Take a move from a line where nothing was published, which had three nulls."""
        return content | ({"from": None} if content["from"]["day"] is None else {})
