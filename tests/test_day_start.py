"""Changes between two days: accumulators shrink, the dense part warms up again; on real gloo ranks."""

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from train_steps import Run, assert_tables_moved, blocks_of, make_config, whole

from pipeline.config.optimizer import LearningRateConfig
from pipeline.config.project import Config
from pipeline.trainer.worker_setup import Groups, build_state

KEPT, WARM = 0.25, 4


def _config(sharding: str, tables: str = "rowwise_adagrad") -> Config:
    config = make_config(sharding, tables=tables)
    changed = config.optimizer.model_copy(
        update={
            "tables": config.optimizer.tables.model_copy(update={"keep_per_day": KEPT}),
            "schedule": LearningRateConfig(day_warmup_steps=WARM),
        }
    )
    return config.model_copy(update={"optimizer": changed})


@dataclass(frozen=True)
class TwoDays(Run):
    """A run whose second day begins after its last step."""

    def _train(self, rank: int, num_ranks: int) -> dict[str, Any]:
        groups = Groups.create(60)
        state = build_state(self.config, groups.training, torch.device("cpu"))
        start = blocks_of(state.tensors())
        state.optimizer.begin_day()  # the line's first: nothing happens
        self._step(state, groups, lambda step: self.make_batch(rank, num_ranks, step))
        trained = blocks_of(state.tensors())
        state.optimizer.begin_day()
        rates = []
        for _ in range(WARM + 1):
            state.optimizer.zero_grad()
            groups_of_dense: Any = state.optimizer.dense.param_groups
            groups_of_tables: Any = (state.optimizer.replicated or state.optimizer.tables).param_groups
            rates.append((groups_of_dense[0]["lr"], groups_of_tables[0]["lr"]))
            state.optimizer.num_steps += 1
        return {"before": start, "after": trained, "began": blocks_of(state.tensors()), "rates": rates}


@pytest.mark.parametrize("sharding", ["row_wise", "table_wise", "data_parallel"])
def test_a_day_begins(run_ranks: Any, sharding: str) -> None:
    """Catches a decay of weights or of Adam's moments, one of some shards only, and a warm-up of the tables too."""
    config = _config(sharding)
    found = run_ranks(TwoDays(config), 2)
    assert_tables_moved(found)
    after, began = (whole(found, when) for when in ("after", "began"))
    assert set(after) == set(began)
    accumulators = {name for name in after if name.startswith("tables:") and "embedding_bags" in name}
    assert len(accumulators) == 2
    for name in after:
        expected = after[name] * KEPT if name in accumulators else after[name]
        assert torch.equal(expected, began[name]), name
    assert any(bool((after[name] > 0).any()) for name in accumulators)
    dense, tables = config.optimizer.dense.learning_rate, config.optimizer.tables.learning_rate
    for rank in found:
        assert [rate for rate, _ in rank["rates"]] == pytest.approx([dense * step / WARM for step in (1, 2, 3, 4, 4)])
        assert {rate for _, rate in rank["rates"]} == {tables}
