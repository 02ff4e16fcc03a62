"""All tensors of a run: the sharded model and its optimizers."""

import logging
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torchrec.distributed.model_parallel import DistributedModelParallel

from features.errors import DataError
from features.schema import Schema
from pipeline.checkpoint.read import load_tensors
from pipeline.lineage.line import Line
from pipeline.lineage.stored_checkpoint import DamagedFile, note_damage
from pipeline.storage.files import Storage
from pipeline.trainer.optimizer import StepOptimizer
from pipeline.trainer.sharding import initialise_tables

logger = logging.getLogger(__name__)

_FINITE_NUMBERS = 1 << 22  # numbers that are looked at together; it takes some 1.5 times their bytes


@dataclass(frozen=True, slots=True)
class TrainState:
    """All tensors of a run.

    Args:
        model: The sharded model.
        optimizer: Optimizers of the model.
        seed: The run's seed, by which rows of tables have their initial values.
    """

    model: DistributedModelParallel
    optimizer: StepOptimizer
    seed: int

    def tensors(self) -> dict[str, Any]:
        """Return tensors by part and name, views of the live ones; tables and their optimizer state are sharded."""
        return {"model": self.model.state_dict()} | self.optimizer.tensors()

    def not_finite(self) -> list[str]:
        """Return the names of tensors in which this rank holds a NaN or an infinite number."""
        return sorted({name for name, tensor in _locals("", self.tensors()) if not is_finite(tensor)})

    def load(self, line: Storage, name: str, group: dist.ProcessGroup, schema: Schema | None = None) -> None:
        """Load a checkpoint into the live tensors, for any ranks and shardings that wrote it; collective.

        Args:
            line: The folder of its line.
            name: Name of the checkpoint, below that folder.
            group: A process group that only checkpoints use.
            schema: Schema whose tables with a vocabulary may have more rows than in the checkpoint: their first rows
                are loaded, the others get their initial values. None: no table may.

        Raises:
            DamagedFile: On all ranks, if a file that any of them needs is not what was written.
            DataError: One of these tables has fewer rows.
        """
        self.optimizer.materialise()
        saved_rows = load_tensors(self.tensors(), line, name, group, schema)
        if schema is not None and saved_rows:
            initialise_tables(self.model, schema, self.seed, saved_rows)

    def load_from(self, line: Line, checkpoint: str, group: dist.ProcessGroup, schema: Schema) -> None:
        """Load a checkpoint of a line, and note damage, so that the next choice sees it; as `load`."""
        storage, name = line.place(checkpoint)
        try:
            self.load(storage, name, group, schema)
        except DamagedFile as error:
            if group.rank() == 0:
                note_damage(storage, name, error)
            dist.barrier(group)  # a rank that ends earlier ends all, and the damage might not be noted
            raise

    def resume(self, line: Line, checkpoint: str, group: dist.ProcessGroup, schema: Schema) -> None:
        """Load the checkpoint that an attempt begins from; as `load_from`.

        The tensors are verified while they are loaded, so the choice of the checkpoint cannot know of their damage. No
        step has been made then. The workers end as after a death of one of them, and the next attempt begins from the
        checkpoint before.

        Raises:
            RuntimeError: On all ranks, if a file that any of them needs is not what was written.
        """
        try:
            self.load_from(line, checkpoint, group, schema)
        except DamagedFile as error:
            if group.rank() == 0:
                logger.warning("%s: the workers are started again, from the checkpoint before", error)
            raise RuntimeError(str(error)) from error


def _locals(name: str, value: Any) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield this rank's tensors of a tree, with their dotted names."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _locals(f"{name}.{key}" if name else str(key), inner)
    elif hasattr(value, "local_shards"):
        yield from ((name, shard.tensor) for shard in value.local_shards())
    elif isinstance(value, torch.Tensor):
        yield name, value


def is_finite(tensor: torch.Tensor) -> bool:
    """Return True if no number of a tensor is NaN or infinite; works on views, since a shard may fill the device."""
    rows = tensor if tensor.dim() else tensor[None]
    at_once = max(1, _FINITE_NUMBERS * len(rows) // max(1, rows.numel()))
    return all(bool(torch.isfinite(piece).all()) for piece in rows.split(at_once))


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
