"""The workers that train, and the Ray that runs them."""

from typing import Literal

from pydantic import Field, model_validator

from features.declaration import Declaration


class WorkersConfig(Declaration):
    """The workers that train.

    Args:
        num: How many.
        min: Instead of `num`, with `max`: go on with as few as this when nodes are lost, and with more when they come.
        max: As many as this, where the cluster has room.
        resize_every_s: How often a run with `min` and `max` looks for room.
        device: `cpu` with gloo, or `cuda` with NCCL.
        cpus: Logical CPUs of Ray that each of them takes.
        threads: Threads of a worker's matrix products, on the CPU.
        max_failures: How often the group is restarted from its newest checkpoint after a worker died.
        timeout_s: After how many seconds without an answer a collective operation fails.
        precision: Matrix products of the dense part: `float32`, `tf32` (CUDA only) or `bfloat16`.
        deterministic: The same run gives the same bits. On the CPU that is so anyway, for a fixed number of threads;
            on CUDA it makes kernels add in a fixed order and fail where they have none.
    """

    num: int = Field(default=2, ge=1)
    min: int | None = Field(default=None, ge=1)
    max: int | None = Field(default=None, ge=1)
    resize_every_s: float = Field(default=60.0, gt=0)
    device: Literal["cpu", "cuda"] = "cpu"
    cpus: float = Field(default=1.0, gt=0)
    threads: int = Field(default=1, ge=1)
    max_failures: int = Field(default=3, ge=0)
    timeout_s: int = Field(default=300, ge=10)
    precision: Literal["float32", "tf32", "bfloat16"] = "float32"
    deterministic: bool = True

    @model_validator(mode="after")
    def _check_bounds(self) -> "WorkersConfig":
        if (self.min is None) != (self.max is None):
            raise ValueError("min and max belong together: give both, or num")
        # Not model_fields_set: what was written out, defaults and all, must be readable again.
        num_given = self.num != type(self).model_fields["num"].default
        if self.min is not None and self.max is not None and (num_given or self.min > self.max):
            raise ValueError(f"min {self.min} and max {self.max}: min must not be above max, and num not be given too")
        return self

    @property
    def fewest(self) -> int:
        """Workers without which the run does not start."""
        return self.min or self.num

    @property
    def most(self) -> int:
        """Workers that the run uses if it can have them."""
        return self.max or self.num


class RayConfig(Declaration):
    """The Ray that runs it.

    Args:
        address: `local` starts one in this process; `auto` or an address joins an existing cluster.
        num_cpus: Logical CPUs of a local Ray: the workers' and at least one for the data tasks.
        object_store_mb: Object store of a local Ray, in MiB.
    """

    address: str = "local"
    num_cpus: int = Field(default=4, ge=2)
    object_store_mb: int = Field(default=1024, ge=80)
