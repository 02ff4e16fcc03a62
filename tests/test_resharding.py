"""Checkpoints of the real step: loaded by other ranks and shardings to the last bit, and trained on as before."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torchrec.distributed.model_parallel import DefaultDataParallelWrapper
from train_steps import (
    FIRST,
    NONE,
    SECOND,
    Run,
    assert_equal,
    assert_tables_moved,
    largest_difference,
    make_config,
    whole,
)

from pipeline.trainer.optimizer import StepOptimizer

MIXED = {"user": "table_wise", "video": "row_wise"}
PARTLY_REPLICATED = {"user": "data_parallel", "video": "row_wise"}
PARTLY_CUT = {"user": "column_wise", "video": "row_wise"}


# --- The same ranks ---


@pytest.mark.parametrize("sharding", ["row_wise", "data_parallel"])
@pytest.mark.parametrize("num_ranks", [1, 2, 3])
def test_a_resume_is_bit_identical(run_ranks: Any, tmp_path: Path, num_ranks: int, sharding: str) -> None:
    """Catches state that is not saved or not loaded, and sums that are added up in another order than before."""
    undisturbed, resumed = _with_and_without_a_stop(run_ranks, make_config(sharding), tmp_path, num_ranks)
    assert_equal(undisturbed, resumed)


def _step_after_ddp(optimizer: StepOptimizer) -> None:
    optimizer.dense.step()
    optimizer.num_steps += 1


def _clear_before_ddp(optimizer: StepOptimizer, set_to_none: bool = True) -> None:
    _leave_to_ddp(optimizer)


def _leave_to_ddp(optimizer: StepOptimizer) -> None:
    for parameter in optimizer.dense_parameters:
        parameter.grad = None


@pytest.mark.parametrize("num_ranks", [2, 3])
def test_ddp_is_not_bit_identical(run_ranks: Any, tmp_path: Path, num_ranks: int) -> None:
    """The negative control: DDP orders its buckets anew after the first step, and three numbers have no one sum."""
    ddp = {
        "pipeline.trainer.sharding.NoDataParallel": DefaultDataParallelWrapper,
        "pipeline.trainer.optimizer.StepOptimizer.step": _step_after_ddp,
        "pipeline.trainer.optimizer.StepOptimizer.zero_grad": _clear_before_ddp,
        "pipeline.trainer.optimizer.StepOptimizer.bind_gradients": _leave_to_ddp,
    }
    undisturbed, resumed = _with_and_without_a_stop(run_ranks, make_config(), tmp_path, num_ranks, ddp)
    if num_ranks == 2:  # it is the order that does it, not what this test has put into DDP's place
        assert_equal(undisturbed, resumed)
        return
    assert 0 < largest_difference(undisturbed, resumed, "model:") < 1e-5


def _with_and_without_a_stop(
    run_ranks: Any, config: Any, folder: Path, num_ranks: int, patches: dict[str, Any] | None = None
) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    patches = patches or {}
    run_ranks(Run(config, steps=FIRST, save=str(folder), patches=patches), num_ranks)
    resumed = run_ranks(Run(config, steps=SECOND, load=str(folder), patches=patches), num_ranks)
    undisturbed = run_ranks(Run(config, patches=patches), num_ranks)
    return whole(undisturbed, "after"), whole(resumed, "after")


# --- Other ranks, another sharding ---


@pytest.mark.parametrize(
    ("tables", "here", "there", "num_ranks"),
    [
        ("rowwise_adagrad", "row_wise", "row_wise", 1),
        ("rowwise_adagrad", "row_wise", "row_wise", 3),
        ("rowwise_adagrad", "row_wise", "table_wise", 2),
        ("rowwise_adagrad", "row_wise", "table_wise", 3),
        ("rowwise_adagrad", "row_wise", MIXED, 3),
        ("rowwise_adagrad", "row_wise", "data_parallel", 3),
        ("rowwise_adagrad", "row_wise", PARTLY_REPLICATED, 2),
        ("rowwise_adagrad", "table_wise", "data_parallel", 2),
        ("rowwise_adagrad", "data_parallel", "row_wise", 3),
        ("rowwise_adagrad", "data_parallel", "table_wise", 2),
        ("rowwise_adagrad", "data_parallel", "data_parallel", 3),
        ("adagrad", "row_wise", "column_wise", 2),
        ("adagrad", "column_wise", "row_wise", 3),
        ("adagrad", "table_wise", PARTLY_CUT, 3),
        ("adagrad", "column_wise", "table_wise", 1),
        ("sgd", "row_wise", "column_wise", 3),
        ("sgd", "data_parallel", "column_wise", 2),
    ],
)
def test_there_and_back(run_ranks: Any, tmp_path: Path, tables: str, here: Any, there: Any, num_ranks: int) -> None:
    """Catches tensors that are lost, cut or left as they were when a checkpoint changes hands, accumulators included,
    and a model that goes on differently after it.
    """
    home, abroad = make_config(here, tables=tables), make_config(there, tables=tables)
    written, copied = str(tmp_path / "written"), str(tmp_path / "copied")
    first = run_ranks(Run(home, steps=FIRST, save=written), 2)
    assert_state_is_compared(first, tables)
    gone = run_ranks(Run(abroad, steps=NONE, load=written, save=copied), num_ranks)
    assert {name: chosen.sharding_type for name, chosen in gone[0]["plan"].items()} == abroad.sharding.tables
    assert_equal(whole(first, "after"), whole(gone, "before"))
    back = run_ranks(Run(home, steps=SECOND, load=copied), 2)
    assert_equal(whole(first, "after"), whole(back, "before"))
    undisturbed = whole(run_ranks(Run(home), 2), "after")
    assert_equal(undisturbed, whole(back, "after"))
    went_on = whole(run_ranks(Run(abroad, steps=SECOND, load=written), num_ranks), "after")
    assert largest_difference(undisturbed, went_on, "model:") < 2e-6


def assert_state_is_compared(results: list[dict[str, Any]], tables: str) -> None:
    """There is state of the optimizers to be compared, and it is not what it was at the start."""
    if tables != "sgd":
        assert_tables_moved(results)
    state = {name: tensor for name, tensor in whole(results, "after").items() if not name.startswith("model:")}
    accumulators = [tensor for name, tensor in state.items() if name.endswith("momentum1")]
    assert sorted(len(tensor) for tensor in accumulators) == ([] if tables == "sgd" else [31, 50])
    assert all(tensor.max() > 0 for tensor in accumulators)
    assert sum(name.endswith("exp_avg_sq") for name in state) > 5
