"""MRAN against loops over rows, heads and tokens; padding and the number of ranks do not reach its statistics."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.all_reduce import Ranks
from models.mran import MRAN, SelfAttention
from models.norm import RealRowsNorm

FIELDS = [3, 1, 2]


def _network() -> MRAN:
    torch.manual_seed(2)
    network = MRAN(FIELDS, 2, width=4, num_heads=2).double()
    for parameter in network.parameters():
        nn.init.normal_(parameter)
    return network


def _attend(attention: SelfAttention, tokens: list[Tensor]) -> list[Tensor]:
    """Head by head and token by token."""
    query, key, value, output = attention.projections
    size = len(query) // attention.num_heads
    found = []
    for token in tokens:
        heads = []
        for start in range(0, len(query), size):
            q, k, v = (of[start : start + size] for of in (query, key, value))
            shares = torch.stack([(q @ token) @ (k @ other) / math.sqrt(size) for other in tokens]).softmax(0)
            heads.append(sum((s * (v @ o) for s, o in zip(shares, tokens, strict=True)), torch.zeros(())))
        found.append(token + output @ torch.cat(heads))
    return found


def _normal(norm: RealRowsNorm, rows: Tensor) -> Tensor:
    flat = F.batch_norm(rows.flatten(0, 1), None, None, norm.weight, norm.bias, training=True, eps=norm.eps)
    return flat.view_as(rows)


def _loops(net: MRAN, x: Tensor) -> Tensor:
    weights = net.columns.split(FIELDS)
    rows = []
    for row in x:
        parts = zip(row.split(FIELDS), weights, net.offsets, strict=True)
        rows.append(torch.stack(_attend(net.among_fields, [part @ weight + offset for part, weight, offset in parts])))
    fields = _normal(net.norm_of_fields, torch.stack(rows))
    tasks = _attend(net.among_tasks, list(net.tasks))
    outputs = []
    for row in fields:
        shares = [torch.stack([task @ net.alignment @ field for field in row]).softmax(0) for task in tasks]
        outputs.append(torch.stack([share @ row + row.mean(0) for share in shares]))
    return _normal(net.norm_of_outputs, torch.stack(outputs))


def _grads(output: Tensor, of: list[Tensor]) -> list[Tensor]:
    weighed = (output * torch.arange(output.numel(), dtype=output.dtype).view_as(output).cos()).sum()
    return [output.detach(), *torch.autograd.grad(weighed, of)]


def test_equals_the_loops_in_values_and_all_gradients() -> None:
    """Catches heads, fields or projections that are mixed up, and statistics whose gradient is cut."""
    network = _network()
    x = torch.randn(7, 6, dtype=torch.float64, requires_grad=True)
    of = [x, *network.parameters()]
    for mine, expected in zip(_grads(network(x), of), _grads(_loops(network, x), of), strict=True):
        torch.testing.assert_close(mine, expected, rtol=0, atol=1e-9)


def test_padding_reaches_nothing() -> None:
    """Catches padding in means, variances or running averages; without the mask it is seen, as the control shows."""
    network, other = _network(), _network()
    x = torch.randn(6, 6, dtype=torch.float64)
    padded = torch.cat([x, 9 * torch.ones(3, 6, dtype=torch.float64)])
    is_real = torch.arange(9) < 6
    of, of_other = list(network.parameters()), list(other.parameters())
    alone = _grads(network(x), of)
    beside = _grads(other(padded, is_real)[:6], of_other)
    for mine, expected in zip(beside, alone, strict=True):
        torch.testing.assert_close(mine, expected, rtol=0, atol=1e-10)
    for mine, expected in zip(network.buffers(), other.buffers(), strict=True):
        torch.testing.assert_close(mine, expected)
    assert not torch.allclose(network(padded)[:6], alone[0], atol=1e-3)


def test_evaluation_uses_what_training_has_seen() -> None:
    """Catches a score that depends on the rows it is computed beside."""
    network = _network()
    for _ in range(3):
        network(torch.randn(7, 6, dtype=torch.float64))
    network.eval()
    x = torch.randn(5, 6, dtype=torch.float64)
    torch.testing.assert_close(network(x)[:2], network(x[:2]))
    assert network.norm_of_fields.running_mean.abs().max() > 0.01


def test_statistics_by_hand_over_two_ranks() -> None:
    """Catches a rank's own statistics: rows 1 and 3 here, 8 there, which make mean 4 and variance (9 + 1 + 16) / 3.

    What the other rank has to add is in the order of the sums: its count, its sum, its squares.
    """
    theirs = iter([torch.tensor(1.0), torch.tensor([8.0]), torch.tensor([16.0])])
    norm = RealRowsNorm(1, Ranks(2, lambda tensor: tensor + next(theirs)), momentum=1.0, eps=0.0)
    found = norm(torch.tensor([[[1.0]], [[3.0]], [[99.0]]]), torch.tensor([True, True, False]))
    assert norm.running_mean.tolist() == [4.0]
    torch.testing.assert_close(norm.running_var, torch.tensor([26 / 3]))
    torch.testing.assert_close(found[:2, 0, 0], torch.tensor([-3.0, -1.0]) / math.sqrt(26 / 3))
