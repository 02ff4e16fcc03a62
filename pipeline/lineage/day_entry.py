"""Ledger entries made from the checkpoints of a finished day."""

import itertools
from collections.abc import Iterator, Sequence
from typing import Literal

from pipeline.lineage.ledger import config_hash
from pipeline.lineage.ledger_entry import LateLabels, LedgerEntry
from pipeline.lineage.line import Line
from pipeline.lineage.records import Manifest


def parts_of_run(line: Line, finished: Manifest) -> Iterator[Manifest]:
    """Yield the finished parts of a run, the newest first."""
    return itertools.takewhile(lambda manifest: manifest.run == finished.run, line.lineage(finished))


def quarantined(line: Line, manifests: Sequence[Manifest]) -> dict[str, str]:
    """Return the units that could not be read, with their reasons."""
    found = (line.cursor(manifest).quarantined for manifest in manifests)
    return {key: reason for units in found for key, reason in units.items()}


def trained_entry(line: Line, manifest: Manifest, run: str, kind: Literal["train", "daily", "migrate"]) -> LedgerEntry:
    """Make the entry of a finished day from its checkpoint, and from those of late labels that were trained before it.

    Args:
        line: The line.
        manifest: Manifest of the day's checkpoint.
        run: Run that enters it.
        kind: Command that enters it.
    """
    late = [part for part in parts_of_run(line, manifest) if part.day == manifest.day and not part.is_own_log]
    return LedgerEntry(
        kind=kind,
        day=manifest.day,
        checkpoint=manifest.checkpoint,
        run=run,
        rows=manifest.rows,
        held_out=manifest.held_out,
        rows_in_space=manifest.rows_in_space,
        schema_fingerprint=manifest.schema_fingerprint,
        step=manifest.step,
        days_done=manifest.days_done,
        loss_weights=manifest.loss_weights,
        pass_index=manifest.pass_index,
        new_ids=manifest.new_ids,
        attempt=manifest.attempt,
        logs=manifest.files_of_log,
        quarantined=line.cursor(manifest).quarantined,
        audit=manifest.audit,
        config=config_hash(manifest.config),
        train_seconds=manifest.seconds,
        late={part.log_day: _late_labels(part) for part in late},
    )


def _late_labels(part: Manifest) -> LateLabels:
    return LateLabels(tasks=part.tasks, rows=part.rows, rows_in_space=part.rows_in_space, logs=part.files_of_log)
