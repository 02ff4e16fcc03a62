"""The real train step on 1, 2 and 3 gloo ranks: the number of workers is a matter of speed alone."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
import torch.distributed as dist
from fbgemm_gpu.split_embedding_configs import EmbOptimType
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor
from train_steps import (
    SGD,
    SPACES,
    LocalDenominators,
    Run,
    assert_tables_moved,
    make_config,
    relative_difference,
    whole,
)

from features.hashing import salt_of
from models.batch import LogBatch, RankingBatch
from pipeline.ingest.cursor import BatchCursor, Span
from pipeline.trainer.optimizer import StepOptimizer, build_dense_optimizer
from pipeline.trainer.step_sync import CountedBatches
from pipeline.trainer.worker_setup import Groups, seed_step

# --- The number of ranks ---


@pytest.fixture(scope="module")
def one_rank(run_ranks: Any) -> Callable[..., list[dict[str, Any]]]:
    """Train one rank on the global batches, as any number of ranks has to."""
    return functools.cache(lambda spaces, **optimizers: run_ranks(Run(make_config(**optimizers), spaces=spaces), 1))


@pytest.fixture(scope="module")
def one_rank_sgd(run_ranks: Any) -> Callable[[str], list[dict[str, Any]]]:
    return functools.cache(lambda spaces: run_ranks(Run(make_config(**SGD), spaces=spaces, wide=True), 1))


@pytest.mark.parametrize("spaces", SPACES)
@pytest.mark.parametrize("num_ranks", [2, 3])
@pytest.mark.parametrize("sharding", ["row_wise", "table_wise"])
def test_ranks_agree(run_ranks: Any, one_rank: Any, num_ranks: int, sharding: str, spaces: str) -> None:
    """Catches a loss, a gradient division or an optimizer that depends on how rows are spread over ranks."""
    results = run_ranks(Run(make_config(sharding), spaces=spaces), num_ranks)
    assert {chosen.sharding_type for chosen in results[0]["plan"].values()} == {sharding}
    assert_tables_moved(one_rank(spaces))
    assert relative_difference(one_rank(spaces), results) < 2e-6


@pytest.mark.parametrize("spaces", SPACES)
@pytest.mark.parametrize("num_ranks", [2, 3])
def test_ranks_agree_without_an_epsilon(run_ranks: Any, one_rank: Any, num_ranks: int, spaces: str) -> None:
    """Catches what Adam hides behind an epsilon of 1e-4: a gradient of another size, where it is very small."""
    results = run_ranks(Run(make_config("row_wise", eps=1e-8), spaces=spaces), num_ranks)
    assert relative_difference(one_rank(spaces, eps=1e-8), results) < 1e-4


@pytest.mark.parametrize("spaces", SPACES)
@pytest.mark.parametrize("num_ranks", [2, 3])
@pytest.mark.parametrize("sharding", ["row_wise", "table_wise", "column_wise"])
def test_ranks_agree_under_sgd(run_ranks: Any, one_rank_sgd: Any, num_ranks: int, sharding: str, spaces: str) -> None:
    """Catches a scale of the loss or of the gradients, to which Adam and Adagrad are nearly blind.

    What is left is the rounding of the tables and of the denominators to float32.
    """
    results = run_ranks(Run(make_config(sharding, **SGD), spaces=spaces, wide=True), num_ranks)
    assert_tables_moved(one_rank_sgd(spaces))
    assert relative_difference(one_rank_sgd(spaces), results) < 1e-6


@pytest.mark.parametrize("spaces", SPACES)
def test_per_rank_denominators_differ(run_ranks: Any, one_rank: Any, spaces: str) -> None:
    """The negative control of `test_ranks_agree`: a mean per rank, averaged over ranks, is another loss."""
    results = run_ranks(Run(make_config(), spaces=spaces, batches_class=LocalDenominators), 3)
    assert relative_difference(one_rank(spaces), results) > 1e-2


def test_padding_changes_nothing(run_ranks: Any, one_rank: Any) -> None:
    """Catches padding rows that are counted, pooled or regularised: mean-pooled sequences and dense values included."""
    results = run_ranks(Run(make_config(), padding=32), 1)
    assert relative_difference(one_rank("skewed"), results) < 1e-6


def test_start_does_not_depend_on_the_ranks(run_ranks: Any, one_rank: Any) -> None:
    """Catches tables that are initialised per shard."""
    for sharding in ("table_wise", "column_wise"):
        results = run_ranks(Run(make_config(sharding, tables="adagrad"), steps=range(0)), 2)
        first, second = whole(one_rank("skewed"), "before"), whole(results, "before")
        assert all(torch.equal(first[name], second[name]) for name in first if name.startswith("model:"))


def test_train_pipelines_are_bit_equal(run_ranks: Any) -> None:
    """Catches a pipeline that looks rows up before the last step's update, or steps batches in another order."""
    base = whole(run_ranks(Run(make_config(pipeline="base")), 2), "after")
    sparse = whole(run_ranks(Run(make_config(pipeline="sparse_dist")), 2), "after")
    assert set(base) == set(sparse)
    for name, tensor in base.items():
        assert torch.equal(tensor, sparse[name]), name


# --- Shardings and optimizers ---


@pytest.mark.parametrize("spaces", SPACES)
@pytest.mark.parametrize("num_ranks", [2, 3])
@pytest.mark.parametrize(
    ("sharding", "tables"),
    [
        ("row_wise", "adagrad"),
        ("table_wise", "adagrad"),
        ("column_wise", "adagrad"),
        ("data_parallel", "rowwise_adagrad"),
    ],
)
def test_other_shardings_agree(
    run_ranks: Any, one_rank: Any, sharding: str, tables: str, num_ranks: int, spaces: str
) -> None:
    """Catches a column-wise or data-parallel table that trains with another optimizer than the declared one."""
    results = run_ranks(Run(make_config(sharding, tables=tables), spaces=spaces), num_ranks)
    assert {chosen.sharding_type for chosen in results[0]["plan"].values()} == {sharding}
    assert relative_difference(one_rank(spaces, tables=tables), results) < 1e-5


def test_a_table_that_is_declared_column_wise_is_cut(run_ranks: Any) -> None:
    """Catches narrow tables that stay whole, as the planner leaves them: the tests above would see no pieces."""
    results = run_ranks(Run(make_config("column_wise", tables="adagrad"), steps=range(0)), 2)
    for result in results:
        blocks = {name: found for name, found in result["before"].items() if "embedding_bags" in name}
        assert [block.shape[1] for found in blocks.values() for _, block in found] == [4] * len(blocks) != []


def test_pieces_of_rows_with_row_wise_accumulators_differ(run_ranks: Any, one_rank: Any) -> None:
    """The negative control, past the check that refuses it: an accumulator a piece, where one a row is declared."""
    with mock.patch("pipeline.config.load.check_sharding"):
        config = make_config("column_wise")
    assert relative_difference(one_rank("skewed"), run_ranks(Run(config), 2)) > 1e-2


def adam_of_everything(optimizer: StepOptimizer, parameters: Any) -> torch.optim.Optimizer:
    """Build the dense part's optimizer, which would train a table that has lost its fused one."""
    return build_dense_optimizer(optimizer.config.dense, parameters)


def test_data_parallel_tables_under_adam_differ(run_ranks: Any, one_rank: Any) -> None:
    """The negative control: TorchRec drops a data-parallel table's fused optimizer without a word."""
    patches = {"pipeline.trainer.optimizer.StepOptimizer.replicated_class": adam_of_everything}
    results = run_ranks(Run(make_config("data_parallel"), patches=patches), 2)
    assert relative_difference(one_rank("skewed"), results) > 1e-2


# --- Counts ---


@dataclass(frozen=True)
class Counting:
    """Batches whose denominators are known, while gradients of the vector's size are summed.

    Rank 0 asks for a batch before it sums its gradients, the others after: two threads of a rank would do so by chance.

    Args:
        num_batches: Of each rank.
        one_group: Count in the group of the gradients.
    """

    num_batches: int
    one_group: bool

    def __call__(self, rank: int, num_ranks: int) -> int:
        """Returns the number of this rank's batches with wrong denominators."""
        groups = Groups.create(60)
        training: Any = dist.new_group(backend="gloo", timeout=timedelta(seconds=60))
        counts = training if self.one_group else groups.counts
        batches = CountedBatches(known_batch, 0, lambda _: torch.ones(3), lambda: torch.zeros(3), counts)
        num_wrong = 0
        for _ in range(self.num_batches):
            sums = [] if rank == 0 else [sum_gradients(training)]
            num_wrong += is_wrong(next(batches))
            (sums or [sum_gradients(training)])[0].wait()
        return num_wrong


def sum_gradients(group: Any) -> Any:
    """Start a sum as long as the vector, with zeros for errors and signals: a wrong sum is to end nothing."""
    gradients = torch.tensor([1.0] * 7 + [0.0] + [1.0] * 3 + [0.0] * 2, dtype=torch.float64)
    return dist.all_reduce(gradients, group=group, async_op=True)


def known_batch(step: int) -> LogBatch:
    """Four rows on every rank, so that the mean over the ranks is four."""
    cursor = BatchCursor(step, (Span(0, 0, np.arange(4)),), np.full(3, 4))
    ones = torch.ones(4, 3)
    slot = torch.zeros(4, dtype=torch.int32)
    return LogBatch(KeyedJaggedTensor.empty(), torch.empty(4, 0), ones, ones.bool(), ones, slot, cursor=cursor)


def is_wrong(batch: RankingBatch) -> bool:
    return batch.denominators.tolist() != [4.0, 4.0, 4.0]


def test_counts_have_a_group_of_their_own(run_ranks: Any) -> None:
    """Catches counts in a group that training uses: where ranks differ in the order, sums get mixed up.

    The second half is the negative control: nothing fails there, the sums are silently wrong.
    """
    assert run_ranks(Counting(60, one_group=False), 2) == [0, 0]
    assert min(run_ranks(Counting(60, one_group=True), 2)) > 0


def another_optimizer(tables: Any) -> EmbOptimType:
    """Return an optimizer that is not declared."""
    return EmbOptimType.ADAM


def test_a_table_with_another_optimizer_is_refused(run_ranks: Any) -> None:
    """Catches a check that looks at no table: TorchRec's lookups are not among a module's modules."""
    patches = {"pipeline.trainer.sharding.fused_type": another_optimizer}
    for sharding in ("row_wise", "table_wise"):
        with pytest.raises(AssertionError, match=r"a table trains with .*declared is rowwise_adagrad"):
            run_ranks(Run(make_config(sharding), steps=range(0), patches=patches), 1)


def test_a_step_draws_the_numbers_of_its_seed() -> None:
    """Catches a seed that is cut off, or another draw than the one by which earlier runs were repeated."""
    for step in range(20):
        seed_step(7, step, 1)
        found = torch.rand(3)
        torch.manual_seed(salt_of(f"7/step/{step}/1"))
        assert torch.equal(found, torch.rand(3))
