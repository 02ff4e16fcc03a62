"""Rows that start anew: an id that is given an evicted one's row finds nothing of it, whatever the sharding."""

from typing import Any

import numpy as np
import pytest
import torch
from table_changes import ResetRun
from train_steps import NUM_STEPS, SGD, assert_tables_moved, make_config, whole

from features.tables import TableConfig
from models.tables import initial_rows, initial_rows_at

# Across the borders between two ranks' rows, the first and the last; of one table none, in another test.
ROWS = {"user": np.array([0, 15, 16, 30], np.int32), "video": np.array([3, 24, 25, 26, 49], np.int32)}


def _table(name: str) -> str | None:
    return name.split("embedding_bags.")[1].split(".", maxsplit=1)[0] if "embedding_bags." in name else None


@pytest.mark.parametrize(
    ("sharding", "tables", "num_ranks"),
    [
        ("row_wise", "rowwise_adagrad", 2),
        ("table_wise", "rowwise_adagrad", 2),
        ("data_parallel", "rowwise_adagrad", 2),
        ("row_wise", "rowwise_adagrad", 3),
        ("column_wise", "adagrad", 2),
        ("row_wise", "sgd", 2),
    ],
)
@pytest.mark.parametrize(
    "rows", [ROWS, {"video": ROWS["video"]}, {"user": np.empty(0, np.int32)}], ids=["both", "one", "none"]
)
def test_nothing_is_left_of_an_evicted_row(
    run_ranks: Any, sharding: str, tables: str, num_ranks: int, rows: dict[str, np.ndarray]
) -> None:
    """Catches weights or momentum that the next id of a row inherits, a neighbour's row that is lost instead, and a
    copy that is reset in the place of the live tensor.
    """
    config = make_config(sharding, tables=tables, rate=SGD["rate"] if tables == "sgd" else 0.05)
    results = run_ranks(ResetRun(config, range(NUM_STEPS // 2), rows=rows), num_ranks)
    assert set(results[0]["plan"].values()) == {sharding}
    assert_tables_moved(results)
    start, trained, reset = (whole(results, when) for when in ("before", "after", "reset"))
    assert set(trained) == set(reset)
    accumulators = [name for name in trained if name.startswith("tables:") and _table(name)]
    assert len(accumulators) == (0 if tables == "sgd" else 2)
    for name, tensor in trained.items():
        table = _table(name)
        if table is None:
            assert torch.equal(reset[name], tensor)
            continue
        again = torch.zeros(len(tensor), dtype=torch.bool)
        again[torch.from_numpy(rows.get(table, np.empty(0)).astype(np.int64))] = True
        assert torch.equal(reset[name][~again], tensor[~again])
        if name in accumulators:
            assert (reset[name][again] == 0).all()
            assert (tensor[again].sum(1) > 0).all(), "these rows have not been trained: the test would see nothing"
        else:
            assert torch.equal(reset[name][again], start[name][again])
            assert (tensor[again] != start[name][again]).any(1).all()


@pytest.mark.parametrize("init", [{"kind": "uniform"}, {"kind": "normal", "scale": 0.5}])
def test_single_rows_start_as_blocks_do(init: dict[str, Any]) -> None:
    """Catches a row that starts otherwise when it is asked for alone, at the borders of the chunks that are drawn."""
    table = TableConfig.model_validate({"name": "video", "num_rows": 12_289, "dim": 6, "init": init})
    rows = torch.tensor([0, 1, 4095, 4096, 4097, 8191, 12_287, 12_288])
    block = initial_rows(table, 7, range(12_289), range(6))
    assert torch.equal(initial_rows_at(table, 7, rows, range(6)), block[rows])
    assert torch.equal(initial_rows_at(table, 7, rows, range(2, 5)), block[rows][:, 2:5])
    assert initial_rows_at(table, 7, rows[:0], range(2, 5)).shape == (0, 3)
    assert len(torch.unique(block[:, 0])) > 12_000
