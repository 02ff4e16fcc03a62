"""Models of a few megabytes for plans, and the bytes that ranks really allocate for them."""

from dataclasses import dataclass
from typing import Any

import torch
from train_steps import make_config

from models.tables import table_of
from pipeline.config.load import parse_config
from pipeline.config.project import Config
from pipeline.trainer.sharding import local_blocks, table_shardings
from pipeline.trainer.worker_setup import Groups, build_state

USER_ROWS, VIDEO_ROWS, DIM = 6001, 3002, 32  # neither is divided by 4


def plan_config(sharding: dict[str, str] | str | None = "row_wise", **sections: Any) -> Config:
    """A config whose tables are most of its memory; None: the planner chooses all shardings."""
    data = make_config(sharding or "row_wise").model_dump(mode="json", by_alias=True)
    for table, rows in zip(data["schema"]["tables"], (USER_ROWS, VIDEO_ROWS), strict=True):
        table.update(num_rows=rows, dim=DIM)
    if sharding is None:
        data["sharding"]["tables"] = {}
    return parse_config(data | sections, "test")


@dataclass(frozen=True)
class Allocate:
    """Allocations of a rank at its start.

    Args:
        config: The project's configuration.
    """

    config: Config

    def __call__(self, rank: int, num_ranks: int) -> dict[str, Any]:
        """Build the state; returns the bytes of all its storages, those of each table's blocks, and the plan."""
        torch.set_num_threads(1)
        state = build_state(self.config, Groups.create(60).training, torch.device("cpu"))
        state.optimizer.materialise()
        storages: dict[int, int] = {}
        tables: dict[str, dict[str, int]] = {}
        for part, tensors in state.tensors().items():
            flat = tensors if part == "model" else {f"{n}/{k}": t for n, s in tensors.items() for k, t in s.items()}
            for name, tensor in flat.items():
                for block, _ in local_blocks(tensor):
                    storage = block.untyped_storage()
                    storages[storage.data_ptr()] = storage.nbytes()
                    if table := table_of(name.replace("/", ".")):
                        of_table = tables.setdefault(table, {"model": 0, "tables": 0})
                        of_table[part] += block.nbytes
        return {"bytes": sum(storages.values()), "tables": tables, "plan": table_shardings(state.model)}
