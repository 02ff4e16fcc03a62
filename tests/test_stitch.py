"""Cross-stitch and sluice: numbers worked out by hand, how they start, and the penalty's way into the loss."""

from itertools import combinations

import pytest
import torch
from torch import Tensor, nn
from torchrec.modules.embedding_configs import EmbeddingBagConfig
from torchrec.modules.embedding_modules import EmbeddingBagCollection
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from models.batch import RankingBatch
from models.inputs import InputArch
from models.loss import UnionSpaceLoss
from models.ranker import Head, Ranker, RankerTrain
from models.stitch import Sluice, StitchedColumns, StitchUnit, starting_shares
from models.tasks import TaskHead
from models.towers import Towers


def test_a_unit_by_hand() -> None:
    """Catches alpha transposed, and subspaces that are not halves of a column: 2 tasks, 2 subspaces of 2."""
    unit = StitchUnit(2, 2, 0.9)
    unit.alpha.data = torch.tensor([[1.0, 10, 0, 0], [0, 1, 0, 0], [0, 0, 0, 1], [100, 0, 1, 0]])
    columns = torch.tensor([[[1.0, 2, 3, 4], [5, 6, 7, 8]]])
    # Task 0: first half 1 2 + 10 (3 4), second half its own; task 1: its second half, then 100 (1 2) + its first.
    expected = torch.tensor([[[31.0, 42, 3, 4], [7, 8, 105, 206]]])
    assert torch.equal(unit(columns), expected)


def test_cross_stitch_of_two_layers_by_hand() -> None:
    """Catches a layer that reads its own column unmixed: 3 tasks, widths 1."""
    network = StitchedColumns(1, 3, [1, 1])
    values = [
        [[[1]], [[2]], [[3]]],  # layers: x times 1, 2, 3 ...
        [[0], [0], [0]],
        [[[1]], [[1]], [[2]]],
        [[0], [-9], [0]],
        [[1, 1, 0], [0, 1, 1], [1, 0, 1]],
        [[1, 0, 0], [0, 1, 2], [-1, 0, 1]],
    ]
    for parameter, value in zip(network.parameters(), values, strict=True):
        parameter.data = torch.tensor(value, dtype=torch.float32).view_as(parameter)
    # x = 2: 2 4 6, mixed 6 10 8; second layer 6 1 16, mixed 6, 1 + 32, -6 + 16.
    assert network(torch.tensor([[2.0]])).flatten().tolist() == [6, 33, 10]


def test_sluice_by_hand() -> None:
    """Catches beta of another task or layer, and a mixture of what is not yet mixed."""
    network = Sluice(1, 2, width=1, num_layers=2, num_subspaces=1)
    values = [
        [[10, 1], [0, 1]],  # beta: task 0, then task 1
        [[[1]], [[2]]],
        [[0], [0]],
        [[[1]], [[3]]],
        [[0], [0]],
        [[0, 1], [1, 0]],
        [[1, 1], [0, 1]],
    ]
    for parameter, value in zip(network.parameters(), values, strict=True):
        parameter.data = torch.tensor(value, dtype=torch.float32).view_as(parameter)
    # x = 1: 1 2, mixed 2 1; second layer 2 3, mixed 5 3; task 0: 10 * 2 + 5, task 1: 3.
    assert network(torch.tensor([[1.0]])).flatten().tolist() == [25, 3]


@pytest.mark.parametrize(("size", "own"), [(1, 0.9), (2, 0.9), (5, 0.9), (4, 0.25)])
def test_shares_start_with_rows_that_sum_to_1(size: int, own: float) -> None:
    """Catches a start that scales every column up, as .1 of each of many tasks would."""
    shares = starting_shares(size, own)
    torch.testing.assert_close(shares.sum(1), torch.ones(size))
    torch.testing.assert_close(shares.diagonal(), torch.full((size,), own if size > 1 else 1.0))
    assert len(shares.unique()) <= 2


def test_how_a_sluice_starts() -> None:
    """Catches `balanced` and `imbalanced` mixed up, or applied to the wrong one of alpha and beta."""
    usual = Sluice(5, 2, width=4, num_layers=3)
    torch.testing.assert_close(usual.columns.units[0].alpha.diagonal(), torch.full((4,), 0.9))
    torch.testing.assert_close(usual.beta, torch.full((2, 3), 1 / 3))
    other = Sluice(5, 2, width=4, num_layers=3, alpha_start="balanced", beta_start="imbalanced")
    torch.testing.assert_close(other.columns.units[0].alpha, torch.full((4, 4), 0.25))
    torch.testing.assert_close(other.beta, torch.tensor([[0.05, 0.05, 0.9]] * 2))


def test_columns_that_do_not_mix_are_tasks_alone() -> None:
    """Catches a layer that reads all columns: with alpha = 1 no gradient reaches another task's."""
    network = StitchedColumns(5, 3, [4, 4], own=1.0)
    network(torch.randn(20, 5))[:, 1].sum().backward()
    for layer in network.layers:
        assert layer.weight.grad.abs().sum((1, 2)).gt(0).tolist() == [False, True, False]


def test_the_penalty_by_hand() -> None:
    """Catches another pair of subspaces, a missing square, or c forgotten: 1 task, 2 layers of 2, 2 inputs."""
    network = Sluice(2, 1, width=2, num_layers=2, orthogonality=0.5)
    network.columns.layers[0].weight.data = torch.tensor([[[1.0, 2], [3, 4]]])  # 1 * 3 + 2 * 4 = 11
    network.columns.layers[1].weight.data = torch.tensor([[[1.0, 1], [2, -4]]])  # 2 - 4 = -2
    torch.testing.assert_close(network.penalty(), torch.tensor(0.5 * (121 + 4)))


@pytest.mark.parametrize(("num_tasks", "num_subspaces"), [(1, 2), (3, 2), (2, 3)])
def test_the_penalty_against_a_loop(num_tasks: int, num_subspaces: int) -> None:
    """Catches tasks, layers or subspaces left out, in the value and in every gradient."""
    torch.manual_seed(2)
    network = Sluice(5, num_tasks, width=6, num_layers=2, num_subspaces=num_subspaces, orthogonality=0.3).double()
    expected = torch.zeros((), dtype=torch.float64)
    for layer in network.columns.layers:
        for weight in layer.weight:
            parts = [part.t() for part in weight.chunk(num_subspaces)]  # (in_features, units of a subspace)
            expected = expected + sum((a.t() @ b).square().sum() for a, b in combinations(parts, 2))
    weights = [layer.weight for layer in network.columns.layers]
    penalty = network.penalty()
    assert penalty is not None
    torch.testing.assert_close(penalty, 0.3 * expected, rtol=0, atol=1e-10)
    for mine, theirs in zip(
        torch.autograd.grad(penalty, weights), torch.autograd.grad(0.3 * expected, weights), strict=True
    ):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-10)


def test_no_penalty_where_there_is_nothing_to_keep_apart() -> None:
    """Catches a zero that is added: the loss must stay as it is, bit by bit."""
    assert Sluice(5, 2, width=4, num_layers=2, num_subspaces=1).penalty() is None
    assert Sluice(5, 2, width=4, num_layers=2, orthogonality=0.0).penalty() is None


def _ranker(orthogonality: float) -> RankerTrain:
    torch.manual_seed(6)
    network = Sluice(5, 2, width=4, num_layers=2, orthogonality=orthogonality)
    tables = EmbeddingBagCollection(
        tables=[EmbeddingBagConfig(name="user", embedding_dim=4, num_embeddings=9, feature_names=["user_id"])]
    )
    head = Head(network, Towers(network.out_features, [3], [1, 1]))
    heads = [TaskHead(name="click", kind="binary"), TaskHead(name="like", kind="binary")]
    return RankerTrain(Ranker(tables, InputArch(["user_id"], [False], 1), head), UnionSpaceLoss(heads))


def _batch(in_space: Tensor) -> RankingBatch:
    rows = len(in_space)
    generator = torch.Generator().manual_seed(7)
    sparse = KeyedJaggedTensor.from_lengths_sync(
        ["user_id"], torch.randint(9, (rows,), generator=generator), torch.ones(rows, dtype=torch.int32)
    )
    return RankingBatch(
        sparse=sparse,
        dense=torch.randn(rows, 1, generator=generator),
        labels=torch.randint(2, (rows, 2), generator=generator).float(),
        in_space=in_space,
        weight=torch.ones(rows, 2),
        slot=torch.zeros(rows, dtype=torch.int32),
        denominators=in_space.sum(0).float(),
        loss_weights=torch.tensor([1.0, 2.0]),
    )


def _step(orthogonality: float, in_space: Tensor) -> tuple[Tensor, Tensor, nn.Module, dict[str, Tensor]]:
    model = _ranker(orthogonality)
    total, output = model(_batch(in_space))
    total.backward()
    grads = {n: torch.zeros_like(p) if p.grad is None else p.grad for n, p in model.named_parameters()}
    return total.detach(), output.losses, model.ranker.head.network, grads


def test_the_penalty_joins_the_loss_and_its_gradients() -> None:
    """Catches a penalty that is declared and never trained, or that is counted among the tasks' losses."""
    in_space = torch.ones(6, 2, dtype=torch.bool)
    plain, losses, network, grads = _step(0.0, in_space)
    torch.testing.assert_close(plain, (losses * torch.tensor([1.0, 2.0])).sum())
    total, same_losses, network, with_penalty = _step(0.4, in_space)
    penalty = network.penalty()
    assert torch.equal(losses, same_losses)
    torch.testing.assert_close(total, plain + penalty)
    penalty.backward()  # on top of the step's gradients, for the difference
    for name, parameter in network.named_parameters():
        mine = with_penalty[f"ranker.head.network.{name}"]
        assert mine is parameter.grad
        before = grads[f"ranker.head.network.{name}"]
        if "layers" in name and "weight" in name:
            torch.testing.assert_close(mine - before, 2 * _penalty_gradient(network, parameter))
            assert (mine - before).abs().max() > 0.01
        else:
            torch.testing.assert_close(mine, before)


def _penalty_gradient(network: nn.Module, parameter: nn.Parameter) -> Tensor:
    return torch.autograd.grad(network.penalty(), parameter)[0]


def test_the_penalty_does_not_depend_on_the_batch() -> None:
    """Catches a penalty that is divided or multiplied by rows: ranks with no row in a space must add the same."""
    for in_space in (torch.zeros(6, 2, dtype=torch.bool), torch.ones(3, 2, dtype=torch.bool)):
        with_penalty, without = _step(0.4, in_space), _step(0.0, in_space)
        torch.testing.assert_close(with_penalty[0] - without[0], with_penalty[2].penalty().detach())


def test_a_penalty_can_be_traced() -> None:
    """Catches a penalty that TorchRec's pipelines cannot trace: they trace the whole step, the penalty in it."""

    class Penalised(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = Sluice(5, 2, width=4, num_layers=2)

        def forward(self, x: Tensor) -> Tensor:
            penalty = self.network.penalty()
            return self.network(x).sum() if penalty is None else self.network(x).sum() + penalty

    module, x = Penalised(), torch.randn(3, 5)
    torch.testing.assert_close(torch.fx.symbolic_trace(module)(x), module(x))
