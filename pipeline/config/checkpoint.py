"""When checkpoints are written and how many are kept."""

from pydantic import Field

from features.declaration import Declaration


class CheckpointConfig(Declaration):
    """When checkpoints are written; the end of a day always has one.

    Args:
        every_steps: Also after this many steps; absent: only at the end of a day.
        keep: Checkpoints within a day that stay, per attempt, beside the finished day's; two, since another attempt may
            just be starting from the last but one.
        keep_days: The daily job keeps the last checkpoints of this many days, but for those that a branch began from;
            absent: of all. Their entries in the ledger stay, and the days cannot be gone back to.
        background: Write while training goes on, from a copy of the tensors in memory; without, training waits.
        timeout_s: A write for which one rank waits longer than this for another has failed.
    """

    every_steps: int | None = Field(default=None, ge=1)
    keep: int = Field(default=2, ge=2)
    keep_days: int | None = Field(default=None, ge=2)
    background: bool = True
    timeout_s: int = Field(default=1800, ge=10)
