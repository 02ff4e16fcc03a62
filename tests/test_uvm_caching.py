"""Tables in the host's memory with a cache on the GPU: the settings, and the caches after a table has changed.

A CPU has no such cache. Here the tables' modules note when theirs would be emptied; `test_cuda.py` has the real ones.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from records import manifest_of
from train_steps import Run, blocks_of, make_config

from features.errors import ConfigError
from models.tables import table_of
from pipeline.checkpoint.write import write_checkpoint
from pipeline.config.load import parse_config
from pipeline.storage.files import Storage
from pipeline.trainer.sharding import initialise_tables, table_kernels
from pipeline.trainer.train_state import TrainState
from pipeline.trainer.worker_setup import Groups, build_state


@dataclass(frozen=True)
class Emptied(Run):
    """Changes tables in every way, and notes the tables' contents when the caches are emptied."""

    def __call__(self, rank: int, num_ranks: int) -> dict[str, Any]:
        """Returns, by change, the sum of all weights when caches were emptied last, and at the end of the change."""
        groups, schema = Groups.create(60), self.config.log_schema
        state = build_state(self.config, groups.training, torch.device("cpu"))
        state.optimizer.materialise()
        storage = Storage(self.save or "")
        write_checkpoint(state.tensors(), storage, "checkpoint", manifest_of(), groups.control)
        changes: dict[str, Callable[[], Any]] = {
            "draw": lambda: initialise_tables(state.model, schema, seed=77),
            "reset": lambda: state.reset_rows(schema, {"user": np.array([1, 2]), "video": np.array([3])}),
            "load": lambda: state.load(storage, "checkpoint", groups.control, schema),
        }
        return {name: _around(state, change) for name, change in changes.items()}


def _around(state: TrainState, change: Callable[[], Any]) -> tuple[float, float, float]:
    noted, before = [float("nan")], _sum_of_weights(state)
    for kernel in table_kernels(state.model):
        kernel.reset_cache_states = lambda: noted.append(_sum_of_weights(state))
    change()
    return before, noted[-1], _sum_of_weights(state)


def _sum_of_weights(state: TrainState) -> float:
    blocks = blocks_of({"model": state.model.state_dict()})
    tables = [found for name, found in blocks.items() if table_of(name)]
    return sum(float(block.double().abs().sum()) for found in tables for _, block in found)


def test_caches_are_emptied_after_a_table_has_changed(run_ranks: Any, tmp_path: Any) -> None:
    """Catches rows that are drawn, reset or loaded in the host's memory while the GPU goes on with the old ones."""
    (found,) = run_ranks(Emptied(make_config(), save=str(tmp_path)), 1)
    for before, emptied, after in found.values():
        assert before != after
        assert emptied == after
    assert set(found) == {"draw", "reset", "load"}


@pytest.mark.parametrize(
    ("sharding", "device", "said"),
    [
        ({"uvm_caching": {"users": 0.1}}, "cuda", r"sharding.uvm_caching names \['users'\], declared tables are"),
        ({"uvm_caching": {"user": 1.0}}, "cuda", "sharding.uvm_caching.user"),
        ({"uvm_caching": {"user": 0.1}, "tables": {"user": "data_parallel"}}, "cuda", "every GPU holds it whole"),
        ({"uvm_caching": {"user": 0.1}}, "cpu", "set workers.device to cuda, or leave it out"),
    ],
)
def test_a_cache_that_cannot_be(sharding: dict[str, Any], device: str, said: str) -> None:
    """Catches a setting that is taken and changes nothing."""
    content = make_config().model_dump(mode="json", by_alias=True)
    content |= {"sharding": sharding, "workers": {"num": 1, "device": device}}
    with pytest.raises(ConfigError, match=said):
        parse_config(content, "test")
