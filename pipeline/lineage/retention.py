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
    for name in list(line.checkpoints()):
        if step_of(name) <= oldest.day_began_at and name not in kept and not line.is_pinned(name):
            manifest = line.read_manifest(name)
            # A part of the oldest day without a step of its own ended where the day began.
            if manifest is None or (manifest.day, manifest.pass_index) != (oldest.day, oldest.pass_index):
                line.remove(name)


def step_of(checkpoint: str) -> int:
    """Return the step in a checkpoint's name: ten digits, before what follows a dash."""
    return int(checkpoint.rpartition("/")[2].partition("-")[0])
