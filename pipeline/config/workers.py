"""Workers that train, and their Ray."""

from typing import Literal

from pydantic import Field, model_validator

from features.declaration import Declaration
from pipeline.config.node_labels import LabelSelector


class WorkersConfig(Declaration):
    """The workers that train.

    Args:
        num: Number of workers.
        min: Instead of `num`, with `max`: smallest number of workers with which a run continues when nodes are lost.
        max: Largest number of workers, used when the cluster has room.
        resize_every_s: Time in seconds between looks for room, in a run with `min` and `max`.
        device: `cpu` with gloo, or `cuda` with NCCL. With `cuda` some defaults are others: precision `tf32`,
            deterministic false, `ingest.batch_size` 4096, `ingest.lookahead` 4, `checkpoint.writer_threads` 4.
        cpus: Logical CPUs of Ray per worker.
        label_selector: Labels of the Ray nodes on which workers run, e.g. `{group: training}`; empty: all nodes. A
            value is a label's, `"!VALUE"`, or `in(A, B)`.
        threads: Number of threads of a worker's matrix products, on the CPU.
        max_failures: Number of restarts of the group after a worker died, in each training or measurement. A training
            goes on from its newest checkpoint.
        timeout_s: Time in seconds without an answer after which a collective operation fails.
        precision: Precision of the dense part's matrix products: `float32`, `tf32` (CUDA only) or `bfloat16`.
        deterministic: True to repeat a run bit for bit. The CPU always does, for a fixed number of threads; on CUDA
            kernels then add in a fixed order, and fail if they have none.
    """

    num: int = Field(default=2, ge=1)
    min: int | None = Field(default=None, ge=1)
    max: int | None = Field(default=None, ge=1)
    resize_every_s: float = Field(default=60.0, gt=0)
    device: Literal["cpu", "cuda"] = "cpu"
    cpus: float = Field(default=1.0, gt=0)
    label_selector: LabelSelector = {}
    threads: int = Field(default=1, ge=1)
    max_failures: int = Field(default=3, ge=0)
    timeout_s: int = Field(default=300, ge=10)
    precision: Literal["float32", "tf32", "bfloat16"] = "float32"
    deterministic: bool = True

    @model_validator(mode="after")
    def _check_bounds(self) -> "WorkersConfig":
        if (self.min is None) != (self.max is None):
            raise ValueError("min and max belong together: give both, or num")
        # Not model_fields_set: a config that was written out with all defaults must be readable again.
        num_given = self.num != type(self).model_fields["num"].default
        if self.min is not None and self.max is not None and (num_given or self.min > self.max):
            raise ValueError(f"min {self.min} and max {self.max}: min must not be above max, and num not be given too")
        return self

    @property
    def fewest(self) -> int:
        """Number of workers without which the run does not start."""
        return self.min or self.num

    @property
    def most(self) -> int:
        """Number of workers that the run uses if available."""
        return self.max or self.num


class RayConfig(Declaration):
    """The Ray of the commands.

    Args:
        address: `local` starts one in this process; `auto` or an address joins an existing cluster.
        num_cpus: Logical CPUs of a local Ray: the workers' and at least one for the data tasks.
        object_store_mb: Object store of a local Ray, in MiB.
    """

    address: str = "local"
    num_cpus: int = Field(default=4, ge=2)
    object_store_mb: int = Field(default=1024, ge=80)
