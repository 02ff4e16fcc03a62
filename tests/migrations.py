"""Changes of a configuration, and a migration on ranks."""

import contextlib
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import pytest
import torch
from records import manifest_of
from train_steps import Run, assert_tables_moved, blocks_of, make_config, whole

from pipeline.checkpoint.read import stored_tensors
from pipeline.checkpoint.write import write_checkpoint
from pipeline.config.load import parse_config
from pipeline.config.project import Config
from pipeline.migration.inheritance import Declared, check_stored, inherit
from pipeline.storage.files import Storage
from pipeline.trainer.worker_setup import Groups, build_state

SOME = range(4)
Tensors = dict[str, torch.Tensor]


def changed(config: Config, change: Callable[[dict[str, Any]], None]) -> Config:
    """A configuration with something else in it."""
    data = json.loads(config.model_dump_json(by_alias=True))
    data["optimizer"]["dense"]["betas"] = tuple(data["optimizer"]["dense"]["betas"])
    change(data)
    return parse_config(data, "test")


def old_config(sharding: Any = "row_wise", **options: Any) -> Config:
    return make_config(sharding, weight_decay=0.01, **options)


# Where the old model's indices are in the new one, counted by hand; None: all of them stay where they are.
COLUMNS = [*range(8), *range(12, 28), 29]  # user, (author), video, watched, (plays), age
EXPERTS = [0, 2, 3, 4, 5]  # click, (like), share, completion, two shared ones, (a third)
UPPER = [0, 2, 3, 4]
ROWS = [0, 1, 2, 8, 9, 10, 12, 13, 14, 16, 18, 19, 20, 21]  # each task's own and the shared ones; the shared gate's
TASKS = [0, 2, 3]
PLACES: dict[str, list[list[int] | None]] = {
    "head.network.levels.0.experts.0.weight": [EXPERTS, None, COLUMNS],
    "head.network.levels.0.experts.0.bias": [EXPERTS, None],
    "head.network.levels.0.gates.logits.weight": [ROWS, COLUMNS],
    "head.network.levels.1.experts.0.weight": [UPPER, None, None],
    "head.network.levels.1.experts.0.bias": [UPPER, None],
    "head.network.levels.1.gates.logits.weight": [[0, 1, 4, 5, 6, 7], None],
    "head.towers.hidden.0.weight": [TASKS, None, None],
    "head.towers.hidden.0.bias": [TASKS, None],
    "head.towers.outputs.weight": [TASKS, None],
    "head.towers.outputs.bias": [TASKS],
    "inputs.missing_values.values": [[1]],
}


@dataclass(frozen=True)
class Migrate:
    """Work of each rank: build the new model, inherit, and save.

    Args:
        old: The configuration of the checkpoint.
        new: Of the model.
        load: Folder of the checkpoint.
        save: Folder of the one to write.
        patches: Attributes to replace meanwhile, by dotted name.
    """

    old: Config
    new: Config
    load: str
    save: str | None = None
    patches: dict[str, Any] = field(default_factory=dict)

    def __call__(self, rank: int, num_ranks: int) -> dict[str, Any]:
        """Migrate on one rank; returns its blocks of every tensor as a fresh model has them, and after."""
        torch.set_num_threads(1)
        groups = Groups.create(60)
        state = build_state(self.new, groups.training, torch.device("cpu"))
        fresh = blocks_of({"model": state.model.state_dict()})
        with contextlib.ExitStack() as stack:
            for name, value in self.patches.items():
                stack.enter_context(mock.patch(name, value))
            old, new = (Declared(config.log_schema, config.model) for config in (self.old, self.new))
            check_stored("checkpoint", old, stored_tensors(Storage(self.load), "checkpoint"))
            inherit(state, old, new, Storage(self.load), "checkpoint", groups.saving)
        if self.save:
            manifest = manifest_of() if rank == 0 else None
            write_checkpoint(state.tensors(), Storage(self.save), "checkpoint", manifest, groups.saving)
        return {"fresh": fresh, "after": blocks_of(state.tensors())}


@pytest.fixture(scope="module")
def trained(run_ranks: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Tensors]:
    """A checkpoint of 2 ranks, with weight decay, and its tensors."""
    folder = str(tmp_path_factory.mktemp("trained"))
    results = run_ranks(Run(old_config(), steps=SOME, save=folder), 2)
    assert_tables_moved(results)
    tensors = whole(results, "after")
    moments = [tensor for name, tensor in tensors.items() if name.endswith(("exp_avg", "exp_avg_sq", "momentum1"))]
    assert len(moments) == 2 * len(PLACES) + 2
    assert all(tensor.abs().max() > 0 for tensor in moments)
    return folder, tensors
