"""Runs on ranks in which a table changes: rows that start anew, and tables that have grown."""

from dataclasses import dataclass
from typing import Any

import torch
from train_steps import Run, blocks_of

from features.errors import DataError
from models.tables import table_of
from pipeline.config.project import Config
from pipeline.storage.files import Storage
from pipeline.trainer.sharding import local_blocks, reset_rows
from pipeline.trainer.train_state import TrainState
from pipeline.trainer.worker_setup import Groups, build_state


@dataclass(frozen=True)
class ResetRun(Run):
    """A run that resets rows after its last step.

    Args:
        rows: By table.
    """

    rows: Any = None

    def _train(self, rank: int, num_ranks: int) -> dict[str, Any]:
        """Train; returns the blocks at the start, before the reset, after it, and after one more step."""
        groups = Groups.create(60)
        state = build_state(self.config, groups.training, torch.device("cpu"))
        start = blocks_of(state.tensors())
        self._step(state, groups, lambda step: self.make_batch(rank, num_ranks, step))
        trained = blocks_of(state.tensors())
        reset_rows(state.tensors(), self.config.log_schema, self.config.seed, self.rows)
        return {"before": start, "after": trained, "reset": blocks_of(state.tensors()), "plan": _plan_of(state)}


def _plan_of(state: TrainState) -> dict[str, str]:
    return {name: chosen.sharding_type for plan in state.model.plan.plan.values() for name, chosen in plan.items()}  # type: ignore


@dataclass(frozen=True)
class GrownLoad:
    """Loads a checkpoint into tables that may have grown.

    Args:
        config: Of today.
        folder: Where the checkpoint is.
        growing: Whether tables with a vocabulary may have grown.
    """

    config: Config
    folder: str
    growing: bool = True

    def __call__(self, rank: int, num_ranks: int) -> dict[str, Any]:
        """Returns the blocks before and after; or what was said instead."""
        groups = Groups.create(60)
        state = build_state(self.config, groups.training, torch.device("cpu"))
        before = blocks_of(state.tensors())
        for name, tensor in state.model.state_dict().items():
            for block, _ in local_blocks(tensor) if table_of(name) else []:
                block.fill_(torch.nan)  # as the memory of a table that is not drawn, or of another model
        try:
            schema = self.config.log_schema if self.growing else None
            state.load(Storage(self.folder), "checkpoint", groups.control, schema)
        except (DataError, RuntimeError) as error:
            return {"refused": f"{type(error).__name__}: {error}"}
        return {"before": before, "after": blocks_of(state.tensors())}
