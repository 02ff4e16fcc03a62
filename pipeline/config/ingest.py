"""How much of the log is read at a time, in what order, and within which bounds of memory."""

from typing import Literal

from pydantic import Field

from features.declaration import Declaration


class UnitConfig(Declaration):
    """Units.

    Args:
        max_rows: Larger row groups are cut into ranges of this many rows; a unit has to fit into memory many times.
    """

    max_rows: int = Field(default=65_536, ge=1, le=2**24)


class ShuffleConfig(Declaration):
    """The order of rows; all of it is drawn from (seed, pass, day, unit).

    Args:
        units: Deal the day's row groups in a random order.
        rows: Permute the rows within each unit.
        interleave: Mix this many open units of a rank in every batch: logs are often sorted by user or by time.
    """

    units: bool = True
    rows: bool = True
    interleave: int = Field(default=1, ge=1, le=64)


class IngestConfig(Declaration):
    """Reading.

    Args:
        batch_size: Rows of a batch, per worker; always full, the last ones padded.
        unit: Units.
        shuffle: Their order.
        read_tasks: Data tasks that run at once, at most; absent: as many as there are free CPUs.
        read_cpus: Logical CPUs of Ray that each data task takes.
        object_store_mb: Encoded units that may wait in the object store, in MiB.
        prefetch_units: Units that a worker fetches ahead.
        on_bad_unit: A unit that cannot be read or encoded: `fail` stops the run, which names it; `quarantine` records
            unit and error in the checkpoint, goes on without it, and the run names it when it ends.
        max_quarantined: The largest share of a day's rows that may be quarantined; more stops the run.
    """

    batch_size: int = Field(default=1024, ge=1, le=2**20)
    unit: UnitConfig = UnitConfig()
    shuffle: ShuffleConfig = ShuffleConfig()
    read_tasks: int | None = Field(default=None, ge=1)
    read_cpus: float = Field(default=1.0, gt=0)
    object_store_mb: int = Field(default=512, ge=1)
    prefetch_units: int = Field(default=2, ge=0, le=64)
    on_bad_unit: Literal["fail", "quarantine"] = "fail"
    max_quarantined: float = Field(default=0.01, ge=0, lt=1)
