"""Records of a line for tests that need only some of their fields."""

import hashlib
from typing import Any

from pipeline.ingest.cursor import StoredCursor, lanes_to_arrow
from pipeline.lineage.line import Line
from pipeline.lineage.records import AuditFigures, FileMark, Manifest, RunScope
from pipeline.lineage.stored_checkpoint import CURSOR, LANES, MANIFEST, read_manifest

DAY = "2026-01-01"


def manifest_of(**fields: Any) -> Manifest:
    """Return a manifest with the given fields, and for the others what no test looks at."""
    others: dict[str, Any] = {
        "day": DAY,
        "pass_index": 0,
        "complete": False,
        "attempt": "0001",
        "step": 0,
        "days_done": 0,
        "day_began_at": 0,
        "rows": 0,
        "held_out": 0,
        "rows_in_space": {},
        "audit": AuditFigures(units=0, rows=0, sum="0" * 16),
        "files_of_log": {},
        "config": {"seed": 1, "ingest": {"shuffle": {"rows": True}}},
        "schema_fingerprint": "000000000000",
        "libraries": {},
        "sharding": {},
        "loss_weights": {},
        "run": RunScope(days=(DAY,), passes=1),
        "new_ids": {},
    }
    given = others | fields
    return Manifest(**{"log_day": given["day"]} | given)


def write_manifest(line: Line, name: str, manifest: Manifest, **changes: Any) -> None:
    """Write a manifest, with changes that nobody validates: a test may need what no version wrote.

    Cursor and lanes stand beside it, empty ones where there are none yet.
    """
    written = manifest.model_copy(update=changes)
    for file, empty in ((CURSOR, StoredCursor().to_arrow()), (LANES, lanes_to_arrow([["unit"]]))):
        if not line.storage.exists(f"{name}/{file}"):
            line.storage.write(f"{name}/{file}", empty)
        data = line.storage.read(f"{name}/{file}")
        written.files[file] = FileMark(bytes=len(data), sha256=hashlib.sha256(data).hexdigest())
    line.storage.write(f"{name}/{MANIFEST}", written.to_bytes())


def write_position(line: Line, name: str, cursor: StoredCursor, lanes: list[list[str]]) -> None:
    """Write cursor and lanes of a checkpoint, before its manifest or in the place of what it has."""
    line.storage.write(f"{name}/{CURSOR}", cursor.to_arrow())
    line.storage.write(f"{name}/{LANES}", lanes_to_arrow(lanes))
    written = read_manifest(line.storage, name, name)
    if written is not None:
        write_manifest(line, name, written)
