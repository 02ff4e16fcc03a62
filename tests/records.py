"""Records of a line for tests that need only some of their fields."""

from typing import Any

from pipeline.ingest.cursor import StoredCursor, lanes_to_arrow
from pipeline.lineage.line import Line
from pipeline.lineage.records import AuditFigures, Manifest, RunScope
from pipeline.lineage.stored_checkpoint import CURSOR, LANES, MANIFEST

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
    """Write a manifest, with changes that nobody validates: a test may need what no version wrote."""
    line.storage.write(f"{name}/{MANIFEST}", manifest.model_copy(update=changes).to_bytes())


def write_position(line: Line, name: str, cursor: StoredCursor, lanes: list[list[str]]) -> None:
    """Write cursor and lanes of a checkpoint."""
    line.storage.write(f"{name}/{CURSOR}", cursor.to_arrow())
    line.storage.write(f"{name}/{LANES}", lanes_to_arrow(lanes))
