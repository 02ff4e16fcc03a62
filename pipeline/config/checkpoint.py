"""Schedule and retention of checkpoints."""

from pydantic import Field

from features.declaration import Declaration


class CheckpointConfig(Declaration):
    """Schedule and retention of checkpoints; the end of a day always has one.

    Args:
        every_steps: Number of steps after which another is written; absent: only at the end of a day.
        keep: Number of checkpoints within a day that stay, per attempt, beside the finished day's; two, since another
            attempt may be starting from the last but one.
        keep_days: Number of days whose last checkpoints stay; all that a line wrote before the oldest of them began is
            removed after a publication, except where a branch began; absent: all stay. Entries in the ledger stay, but
            a rollback to a day without its checkpoint is impossible.
        background: True to write during training, from a copy of the tensors in memory; else training waits.
        writer_threads: Number of threads of a rank that write its tensors, each a file of its own.
        timeout_s: Time in seconds for which a rank waits for another in a write before it fails.
    """

    every_steps: int | None = Field(default=None, ge=1)
    keep: int = Field(default=2, ge=2)
    keep_days: int | None = Field(default=None, ge=2)
    background: bool = True
    writer_threads: int = Field(default=1, ge=1, le=64)
    timeout_s: int = Field(default=1800, ge=10)
