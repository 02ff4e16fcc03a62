"""Retention of checkpoints: those of days long past are removed, of whatever pass, part or generation they are."""

import itertools

from pipeline.lineage.ledger import Ledger
from pipeline.lineage.line import Line


def retire(line: Line, keep_days: int) -> None:
    """Remove a line's checkpoints that were written before the oldest of its newest days began; their entries stay.

    So the ends of earlier passes, of late labels and of generations that were rolled back go with the days before them.
    Pinned checkpoints stay.

    Args:
        line: The line.
        keep_days: Number of days whose last checkpoints stay.
    """
    own = (entry for entry in Ledger(line).chain() if entry.line == line.name)
    kept = [entry.checkpoint for entry in itertools.islice(own, keep_days)]
    oldest = line.read_manifest(kept[-1]) if len(kept) == keep_days else None
    if oldest is None:
        return
    for manifest in list(line.manifests()):
        name = manifest.checkpoint
        if manifest.step <= oldest.day_began_at and name not in kept and not line.is_pinned(name):
            line.remove(name)
