"""Inheritance of a model from a checkpoint of another: tables whole, the dense part label by label.

Optimizer state is inherited with its weights. All other parts stay as in a fresh model.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from features.errors import DataError
from features.schema import Schema
from features.tables import TableConfig, VocabularyConfig
from models.assembly import declared_layout
from models.balancing import SCHEDULE, LossBalancingConfig
from models.loss_combination import JointLoss
from models.parameter_names import Layout, LayoutChange, compare_layouts, copy_matches, match_layouts
from models.tables import parameter_of, table_of
from pipeline.checkpoint.read import load_tensors
from pipeline.config.project import Config, ModelConfig
from pipeline.storage.files import Storage
from pipeline.trainer.train_state import TrainState


@dataclass(frozen=True, slots=True)
class Declared:
    """Declared meaning of a checkpoint's tensors.

    Args:
        log_schema: Tables, features and tasks.
        model: The dense part.
        balancing: Balancing of the tasks' losses.
    """

    log_schema: Schema
    model: ModelConfig
    balancing: LossBalancingConfig = SCHEDULE

    @classmethod
    def by(cls, config: Config) -> "Declared":
        """Return the declarations of a configuration."""
        return cls(config.log_schema, config.model, config.loss_balancing)

    def layout(self) -> Layout:
        """Return the owner of every number of the dense part."""
        model = self.model
        return declared_layout(
            self.log_schema, model.network, model.towers, JointLoss(balancing=self.balancing), around=model
        )


def check_stored(checkpoint: str, declared: Declared, stored: Mapping[str, Tensor]) -> None:
    """Check the tensors of a checkpoint against the declarations of its manifest.

    Args:
        checkpoint: Name of the checkpoint.
        declared: Declarations of its manifest.
        stored: Tensors as in `pipeline.checkpoint.read.stored_tensors`.

    Raises:
        DataError: A dense parameter or a table is missing, or has another shape.
    """
    expected = {f"model.{name}": parts[0].parameter.shape for name, parts in declared.layout().items()}
    for table in declared.log_schema.tables:
        expected[f"model.{parameter_of(declared.log_schema, table)}"] = torch.Size([table.num_rows, table.dim])
    for name, shape in expected.items():
        found = tuple(stored[name].shape) if name in stored else None
        if found != tuple(shape):
            raise DataError(
                f"checkpoint {checkpoint} has {name} of shape {found}, its config declares {tuple(shape)}: it was "
                "written by another version, train with that one or start a new root"
            )


def compare(old: Declared, new: Declared) -> LayoutChange:
    """Compare a model with the one that it inherits from, tables included."""
    before, after = old.layout(), new.layout()
    dense = compare_layouts(before, after, match_layouts(before, after))
    then, now = ({table.name: table for table in declared.log_schema.tables} for declared in (old, new))
    kept = kept_tables(old, new)
    num_kept = sum(_size(then[name]) for name in kept)
    return LayoutChange(
        kept=[*(f"table {name}" for name in kept), *dense.kept],
        new=[*(f"table {n}{_why_new(table, then.get(n))}" for n, table in now.items() if n not in kept), *dense.new],
        dropped=[*(f"table {name}" for name in then if name not in kept), *dense.dropped],
        num_kept=dense.num_kept + num_kept,
        num_new=dense.num_new + sum(map(_size, now.values())) - num_kept,
        num_dropped=dense.num_dropped + sum(map(_size, then.values())) - num_kept,
    )


def kept_tables(old: Declared, new: Declared) -> list[str]:
    """Return the tables of the same name, width and mapping of ids, whose rows still belong to the same ids.

    Hashing spreads ids over all rows: another number of rows changes the id of each. A vocabulary may have grown.
    """
    then = {table.name: table for table in old.log_schema.tables}
    return [table.name for table in new.log_schema.tables if _why_new(table, then.get(table.name)) is None]


def _why_new(table: TableConfig, old: TableConfig | None) -> str | None:
    """Return the reason for which a table cannot be kept; None if it can."""
    if old is None:
        return ""
    if old.dim != table.dim:
        return f" (it had {old.dim} columns and has {table.dim})"
    before, after = old.id_mapping, table.id_mapping
    if before.kind != after.kind:
        return f" (its id_mapping was {before.kind} and is {after.kind})"
    if isinstance(before, VocabularyConfig) and isinstance(after, VocabularyConfig):
        if before.tail_rows != after.tail_rows:
            return f" (it had {before.tail_rows:,} tail_rows and has {after.tail_rows:,})"
        shrunk = old.num_rows > table.num_rows
        return f" (it had {old.num_rows:,} rows and has {table.num_rows:,}: ids would lose theirs)" if shrunk else None
    if old.num_rows != table.num_rows:
        return f" (it had {old.num_rows:,} rows and has {table.num_rows:,}: ids are hashed over all of them)"
    return None


def _size(table: TableConfig) -> int:
    return table.num_rows * table.dim


def inherit(
    state: TrainState, old: Declared, new: Declared, line: Storage, checkpoint: str, group: dist.ProcessGroup
) -> None:
    """Load from a checkpoint all that a fresh model shares with it; collective.

    Every rank loads tables into its own shards, and the dense part in full.

    Args:
        state: Freshly built state; overwritten.
        old: Declarations of the checkpoint's tensors.
        new: Declarations of `state`.
        line: The folder of the line.
        checkpoint: Name of the checkpoint, below that folder.
        group: A process group that only checkpoints use.
    """
    allocate_optimizers(state)
    live, before = state.tensors(), old.layout()
    weights = {name: torch.empty(parts[0].parameter.shape) for name, parts in before.items()}
    states = _states_like(weights, live.get("dense", {}))
    kept = _of_tables(live, old, new)
    asked = {"model": kept["model"] | weights, "tables": kept["tables"], "dense": states}
    load_tensors({part: found for part, found in asked.items() if found}, line, checkpoint, group, new.log_schema)
    matches = match_layouts(before, new.layout())
    copy_matches(matches, weights, live["model"])
    for kind in _kinds(live.get("dense", {})):
        sources = {name: of_one[kind] for name, of_one in states.items()}
        copy_matches(matches, sources, {name: of_one[kind] for name, of_one in live["dense"].items()})


@torch.no_grad()
def allocate_optimizers(state: TrainState) -> None:
    """Allocate the optimizers' state in its form before the first step.

    Torch allocates it by a step without gradients, which counts as a step, and changes weights that decay.
    """
    named = state.model.named_parameters()
    dense = [parameter for name, parameter in named if table_of(name) is None]
    before = [parameter.clone() for parameter in dense]
    state.optimizer.materialise()
    for parameter, value in zip(dense, before, strict=True):
        parameter.copy_(value)
    for of_one in state.tensors().get("dense", {}).values():
        for tensor in of_one.values():
            tensor.zero_()


def _of_tables(live: Mapping[str, Any], old: Declared, new: Declared) -> dict[str, dict[str, Any]]:
    """Return the live tensors of the kept tables, weights and optimizer state, by the names in the checkpoint.

    A table that an unpooled sequence has begun or ceased to read is in another collection and so has another name.
    """
    then, now = ({table.name: table for table in declared.log_schema.tables} for declared in (old, new))
    saved = {
        parameter_of(new.log_schema, now[name]): parameter_of(old.log_schema, then[name])
        for name in kept_tables(old, new)
    }
    return {
        part: {saved[name]: tensors for name, tensors in live.get(part, {}).items() if name in saved}
        for part in ("model", "tables")
    }


def _kinds(states: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Return one tensor of each kind that a dense optimizer keeps of every parameter."""
    return dict(next(iter(states.values()), {}))


def _states_like(
    weights: Mapping[str, Tensor], states: Mapping[str, Mapping[str, Tensor]]
) -> dict[str, dict[str, Tensor]]:
    """Allocate an optimizer's state for some weights; its counts are numbers, all else has the weights' shape."""
    kinds = _kinds(states)
    return {
        name: {kind: torch.empty_like(weight if tensor.dim() else tensor) for kind, tensor in kinds.items()}
        for name, weight in weights.items()
        if kinds
    }
