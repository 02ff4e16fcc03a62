"""All tensors of a run: the sharded model and its optimizers."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torchrec.distributed.model_parallel import DistributedModelParallel

from features.errors import DataError
from features.schema import Schema
from pipeline.checkpoint.read import load_tensors
from pipeline.storage.files import Storage
from pipeline.trainer.optimizer import StepOptimizer


@dataclass(frozen=True, slots=True)
class TrainState:
    """All tensors of a run.

    Args:
        model: The sharded model.
        optimizer: Optimizers of the model.
    """

    model: DistributedModelParallel
    optimizer: StepOptimizer

    def tensors(self) -> dict[str, Any]:
        """Return tensors by part and name, views of the live ones; tables and their optimizer state are sharded."""
        return {"model": self.model.state_dict()} | self.optimizer.tensors()

    def not_finite(self) -> list[str]:
        """Return the names of tensors in which this rank holds a NaN or an infinite number."""
        return sorted({name for name, tensor in _locals("", self.tensors()) if not bool(torch.isfinite(tensor).all())})

    def load(self, line: Storage, name: str, group: dist.ProcessGroup, schema: Schema | None = None) -> None:
        """Load a checkpoint into the live tensors, for any ranks and shardings that wrote it; collective.

        Args:
            line: The folder of its line.
            name: Name of the checkpoint, below that folder.
            group: A process group that only checkpoints use.
            schema: Schema whose tables with a vocabulary may have more rows than in the checkpoint: their first rows
                are loaded, the others, with their optimizer state, stay as they are. None: no table may.

        Raises:
            DataError: One of these has fewer rows.
        """
        self.optimizer.materialise()
        load_tensors(self.tensors(), line, name, group, schema)


def _locals(name: str, value: Any) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield this rank's tensors of a tree, with their dotted names."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _locals(f"{name}.{key}" if name else str(key), inner)
    elif hasattr(value, "local_shards"):
        yield from ((name, shard.tensor) for shard in value.local_shards())
    elif isinstance(value, torch.Tensor):
        yield name, value


def check_finite(found: Iterable[list[str]], day: str) -> None:
    """Check that the next day can be trained from these tensors.

    Args:
        found: Results of `TrainState.not_finite` of all ranks.
        day: The day that ends with them.

    Raises:
        DataError: A tensor is not finite; names the tensors.
    """
    bad = sorted({name for names in found for name in names})
    if bad:
        raise DataError(
            f"{day} ends with NaN or infinite numbers in {', '.join(bad[:5])} ({len(bad)} tensors), and is not saved: "
            "lower the learning rates or set optimizer.clip_norm, and begin again with jobs.daily --discard REASON"
        )
