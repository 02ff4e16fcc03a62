"""Reading of the log: size of units, order, and bounds on memory."""

from typing import Literal

from pydantic import Field

from features.declaration import Declaration
from pipeline.config.node_labels import LabelSelector


class UnitConfig(Declaration):
    """Units of reading.

    Args:
        max_rows: Larger row groups are cut into ranges of this many rows; memory has to hold many units.
    """

    max_rows: int = Field(default=65_536, ge=1, le=2**24)


class ShuffleConfig(Declaration):
    """Order of rows, drawn from (seed, pass, day, unit).

    Args:
        units: True to deal the day's row groups in a random order.
        rows: True to permute the rows within each unit.
        interleave: Number of open units of a rank that every batch mixes: logs are often sorted by user or by time.
    """

    units: bool = True
    rows: bool = True
    interleave: int = Field(default=1, ge=1, le=64)


class IngestConfig(Declaration):
    """Reading of the log.

    Args:
        batch_size: Number of rows of a batch, per worker; always full, the last ones padded.
        unit: Units of reading.
        shuffle: Order of rows.
        read_tasks: Maximum number of concurrent data tasks; absent: as many as there are free CPUs.
        read_cpus: Logical CPUs of Ray per data task, and per task of the passes beside training.
        label_selector: Labels of the Ray nodes on which data tasks run, e.g. `{group: data}`; empty: all nodes. A value
            is a label's, `"!VALUE"`, or `in(A, B)`.
        object_store_mb: Maximum size of encoded units that wait in the object store, in MiB.
        prefetch_units: Number of units, or blocks of small units, that a worker fetches ahead.
        lookahead: Number of batches of a block. A thread makes the next block, and its denominators are summed over the
            workers in one call, while the workers train the block before. With 1, on a CPU, each batch is made and
            summed one step ahead, without a thread. Larger hides the reading, and the latency of many workers. A
            worker holds three blocks in the host's memory. A signal to end is heeded at the begin of the next block but
            one, so two blocks must take less than the time that a pod has to end.
        on_bad_unit: Action for a unit that cannot be read or encoded: `fail` stops the run and names the unit;
            `quarantine` records unit and error in the checkpoint, continues without it, and names it at the end.
        max_quarantined: The largest share of a day's rows that may be quarantined; more stops the run, or refuses the
            measurement.
    """

    batch_size: int = Field(default=1024, ge=1, le=2**20)
    unit: UnitConfig = UnitConfig()
    shuffle: ShuffleConfig = ShuffleConfig()
    read_tasks: int | None = Field(default=None, ge=1)
    read_cpus: float = Field(default=1.0, gt=0)
    label_selector: LabelSelector = {}
    object_store_mb: int = Field(default=512, ge=1)
    prefetch_units: int = Field(default=2, ge=0, le=64)
    lookahead: int = Field(default=1, ge=1, le=64)
    on_bad_unit: Literal["fail", "quarantine"] = "fail"
    max_quarantined: float = Field(default=0.01, ge=0, lt=1)
