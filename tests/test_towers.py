"""The towers against one nn.Sequential per task."""

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from models.experts import GroupedLayer
from models.towers import Towers

CASES = {
    "binary": ([7, 4], [1, 1, 1]),
    "classes": ([7], [1, 5, 2]),
    "no hidden layer": ([], [1, 1, 3]),
    "one task": ([7], [1]),
}


def _pair(case: str, dtype: torch.dtype) -> tuple[Towers, list[nn.Sequential]]:
    """Towers, and the same towers as one network per task."""
    torch.manual_seed(2)
    layers, num_outputs = CASES[case]
    towers = Towers(6, layers, num_outputs).to(dtype)
    loop = []
    starts = torch.tensor([0, *num_outputs]).cumsum(0).tolist()
    for task, start in enumerate(starts[:-1]):
        stack: list[nn.Module] = []
        for fused in towers.hidden:
            if isinstance(fused, GroupedLayer):
                stack += [_linear(fused.weight[task], fused.bias[task]), nn.ReLU()]
        rows = slice(start, starts[task + 1])
        assert towers.outputs.bias is not None
        stack.append(_linear(towers.outputs.weight[rows], towers.outputs.bias[rows]))
        loop.append(nn.Sequential(*stack))
    return towers, loop


def _linear(weight: Tensor, bias: Tensor) -> nn.Linear:
    linear = nn.Linear(weight.shape[1], weight.shape[0], dtype=weight.dtype)
    linear.weight.data.copy_(weight)
    linear.bias.data.copy_(bias)
    return linear


def _grads_of(loop: Sequence[nn.Sequential]) -> list[Tensor]:
    """Gradients of the loop in the order and shape of the towers' parameters."""
    linears = [[layer for layer in tower if isinstance(layer, nn.Linear)] for tower in loop]
    found = []
    for layers in list(zip(*linears, strict=True))[:-1]:
        found += [torch.stack([getattr(layer, name).grad for layer in layers]) for name in ("weight", "bias")]
    return found + [torch.cat([getattr(layers[-1], name).grad for layers in linears]) for name in ("weight", "bias")]


@pytest.mark.parametrize(("dtype", "atol"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
@pytest.mark.parametrize("case", CASES)
def test_equals_a_tower_per_task_in_values_and_all_gradients(case: str, dtype: torch.dtype, atol: float) -> None:
    """Catches a tower that reads another task's representation, and outputs in another order than the tasks'."""
    towers, loop = _pair(case, dtype)
    fused = torch.randn(9, len(loop), 6, dtype=dtype, requires_grad=True)
    same = fused.detach().clone().requires_grad_()
    output = towers(fused)
    expected = torch.cat([tower(same[:, task]) for task, tower in enumerate(loop)], dim=1)
    assert output.shape == (9, sum(CASES[case][1]))
    torch.testing.assert_close(output, expected, rtol=0, atol=atol)
    weights = torch.randn_like(output)
    (output * weights).sum().backward()
    (expected * weights).sum().backward()
    torch.testing.assert_close(fused.grad, same.grad, rtol=0, atol=atol)
    for parameter, grad in zip(towers.parameters(), _grads_of(loop), strict=True):
        torch.testing.assert_close(parameter.grad, grad, rtol=0, atol=atol)


def test_a_task_reads_its_own_representation_only() -> None:
    """Catches leaks between tasks through the zeros of the fused layers: the gradients must be exactly 0."""
    towers, _ = _pair("classes", torch.float32)
    fused = torch.randn(9, 3, 6, requires_grad=True)
    towers(fused)[:, 1:6].square().sum().backward()
    assert fused.grad is not None
    assert fused.grad.abs().sum((0, 2)).gt(0).tolist() == [False, True, False]
    assert towers.hidden[0].weight.grad.abs().sum((1, 2)).gt(0).tolist() == [False, True, False]


def test_dropout_is_for_training_and_behind_hidden_layers() -> None:
    """Catches dropout that is left on when the model is measured, and that is never on."""
    towers = Towers(6, [32], [1, 1], dropout=0.5)
    fused = torch.randn(4, 2, 6)
    assert not torch.equal(towers(fused), towers(fused))
    towers.eval()
    assert torch.equal(towers(fused), towers(fused))


class _CountProducts(TorchDispatchMode):
    """Counts the matrix kernels that are dispatched."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func._schema.name.split("::")[1] in {"mm", "addmm", "bmm", "baddbmm"}
        return func(*args, **(kwargs or {}))


def test_the_number_of_matrix_kernels_does_not_grow_with_tasks() -> None:
    """Catches a loop over tasks or classes: two layers, forward once and backward twice, whatever the tasks."""
    for num_outputs in ([1, 1], [1, 4, 1, 1, 9, 1, 1]):
        fused = torch.randn(8, len(num_outputs), 6, requires_grad=True)
        towers = Towers(6, [5], num_outputs)
        with _CountProducts() as products:
            towers(fused).sum().backward()
        assert products.count == 6


def test_symbolic_trace() -> None:
    """Catches what TorchRec's pipelines cannot trace."""
    towers, _ = _pair("classes", torch.float32)
    fused = torch.randn(3, 3, 6)
    torch.testing.assert_close(torch.fx.symbolic_trace(towers)(fused), towers(fused))
