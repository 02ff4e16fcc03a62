"""PLE's speed, forward and backward, over the machine's rate of matrix products and over a loop of nn.Linear."""

import argparse
import json
import statistics
import sys
from collections.abc import Callable, Sequence
from functools import reduce
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.turns import seconds_in_turns
from models.ple import PLE, Level

_BATCHES = (256, 1024, 4096)
_TURNS = 5


def _levels(num_tasks: int, own: int, shared: int, widths: Sequence[int]) -> list[Level]:
    return [
        Level(num_experts_per_task=(own,) * num_tasks, num_shared_experts=shared, expert_layers=(width,))
        for width in widths
    ]


# The paper gives the widths of its levels. It gives numbers of experts only in figure 8: one per module.
_CASES: dict[str, tuple[int, list[Level]]] = {
    "ple, 5 tasks, 12 experts, 256 then 128": (512, _levels(5, 2, 2, [256, 128])),
    "cgc, 5 tasks, 12 experts, 256": (512, _levels(5, 2, 2, [256])),
    "ple, 2 tasks, 3 experts, 256 then 128": (256, _levels(2, 1, 1, [256, 128])),
}


class LoopPLE(nn.Module):
    """Loop-written form of PLE: an nn.Linear for each expert and gate, mixed by adding up weighted outputs.

    Stacking the outputs for an einsum, as most implementations do, was slower at every size tried.

    Args:
        in_features: Width of the input.
        levels: As in `PLE`, with experts of one layer.
    """

    def __init__(self, in_features: int, levels: Sequence[Level]) -> None:
        super().__init__()
        self.levels = levels
        self.choices = [level.choices(is_last=index == len(levels)) for index, level in enumerate(levels, start=1)]
        self.experts, self.gates = nn.ModuleList(), nn.ModuleList()
        width = in_features
        for level, choices in zip(levels, self.choices, strict=True):
            self.experts.extend(nn.Linear(width, level.expert_layers[0]) for _ in range(level.num_experts))
            self.gates.extend(nn.Linear(width, len(chosen), bias=False) for chosen in choices)
            width = level.expert_layers[0]

    def forward(self, x: Tensor) -> Tensor:
        """Fuse x for each task."""
        num_tasks = len(self.levels[0].num_experts_per_task)
        fused = [x] * (num_tasks + 1)
        experts, gates = iter(self.experts), iter(self.gates)
        for level, choices in zip(self.levels, self.choices, strict=True):
            readers = enumerate([*level.num_experts_per_task, level.num_shared_experts])
            outputs = [torch.relu(next(experts)(fused[group])) for group, count in readers for _ in range(count)]
            weights = [next(gates)(fused[index]).softmax(1) for index in range(len(choices))]
            fused = [
                reduce(torch.add, (weight[:, i : i + 1] * outputs[expert] for i, expert in enumerate(chosen)))
                for weight, chosen in zip(weights, choices, strict=True)
            ]
        return torch.stack(fused[:num_tasks], dim=1)


def _products(in_features: int, levels: Sequence[Level], batch: int) -> tuple[Callable[[], None], int]:
    """Return the experts' matrix products, forward and both backward, into allocated memory; and their operations."""
    operands: list[tuple[Tensor, ...]] = []
    width = in_features
    for index, level in enumerate(levels):
        readers = [level.num_experts] if index == 0 else [*level.num_experts_per_task, level.num_shared_experts]
        for count in readers:
            x, weight = torch.randn(batch, width), torch.randn(width, count * level.expert_layers[0])
            output, x_grad, weight_grad = x @ weight, torch.empty_like(x), torch.empty_like(weight)
            operands.append((x, weight, output, x_grad, weight_grad))
        width = level.expert_layers[0]

    def run() -> None:
        for x, weight, output, x_grad, weight_grad in operands:
            torch.mm(x, weight, out=output)
            torch.mm(output, weight.t(), out=x_grad)
            torch.mm(x.t(), output, out=weight_grad)

    return run, sum(6 * x.shape[0] * weight.numel() for x, weight, *_ in operands)


def _step(network: nn.Module, x: Tensor, output_grad: Tensor) -> Callable[[], None]:
    def run() -> None:
        x.grad = None
        network.zero_grad()
        network(x).backward(output_grad)

    return run


def _settle_allocator() -> None:
    """Free one tensor of 31 MiB, to reach the allocator state of a process that has trained for a while.

    Until then glibc returns memory to the kernel at thresholds that depend on the contenders' earlier frees, and the
    resulting page faults are counted against the next contender.
    """
    torch.ones(31 * 2**18)


def _measure(case: str, batch: int) -> dict[str, Any]:
    in_features, levels = _CASES[case]
    num_tasks = len(levels[0].num_experts_per_task)
    torch.manual_seed(0)
    x = torch.randn(batch, in_features, requires_grad=True)
    output_grad = torch.randn(batch, num_tasks, levels[-1].expert_layers[-1])
    products, operations = _products(in_features, levels, batch)
    ple, loop = PLE(in_features, num_tasks, levels), LoopPLE(in_features, levels)
    steps = {"gemm": products, "ple": _step(ple, x, output_grad), "loop": _step(loop, x, output_grad)}
    seconds = seconds_in_turns(steps, _TURNS, repeats=max(1, 4096 // batch))
    ratios = {
        name: [other / mine for other, mine in zip(seconds[name], seconds["ple"], strict=True)]
        for name in ("gemm", "loop")
    }
    return {
        "case": case,
        "in_features": in_features,
        "rows": batch,
        "threads": torch.get_num_threads(),
        "gemm_gflops_per_s": operations / statistics.median(seconds["gemm"]) / 1e9,
        "ple_ms": 1e3 * statistics.median(seconds["ple"]),
        "ple_over_gemm": statistics.median(ratios["gemm"]),
        "ple_over_loop": statistics.median(ratios["loop"]),
    }


def run(quick: bool) -> dict[str, Any]:
    """Measure PLE forward and backward, the gradient of its input included.

    Args:
        quick: One network at one batch size, instead of three at three.

    Returns:
        The unit, and for each network and batch size: rows, threads, and medians of 5 turns of PLE's rate over the rate
        of matrix products of the experts' shapes (only the experts' operations are counted, so gates, mixing and
        activations all cost), and of PLE's rate over the loop's.
    """
    _settle_allocator()
    cases = list(_CASES)[:1] if quick else list(_CASES)
    batches = _BATCHES[:1] if quick else _BATCHES
    return {
        "unit": "ratios of rates, forward + backward, float32; medians of 5 turns",
        "results": [_measure(case, batch) for case in cases for batch in batches],
    }


def _main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one network, one batch size")
    for result in run(parser.parse_args().quick)["results"]:
        sys.stdout.write(json.dumps(result) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    _main()
