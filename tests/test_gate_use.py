"""How much gates use their experts: over all rows of all ranks, however many slabs a batch is computed in."""

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from models.network import build_network
from models.ple import PLEConfig
from pipeline.evaluation.gate_use import GateUse

ROWS, PADDING = 2500, 300  # on a CPU a batch of more than 1,024 rows is computed in slabs
LEVEL = {"expert_layers": [4], "num_experts_per_task": 1, "num_shared_experts": 1}


def _network() -> nn.Module:
    torch.manual_seed(3)
    return build_network(PLEConfig.model_validate({"kind": "ple", "levels": [LEVEL, LEVEL]}), 6, ["a", "b"]).eval()


def _rows(rank: int) -> Tensor:
    return torch.randn(ROWS, 6, generator=torch.Generator().manual_seed(rank)) * 3


@dataclass(frozen=True)
class Watched:
    """Gate use of a rank over two batches, the second of which ends with padding."""

    def __call__(self, rank: int, num_ranks: int) -> Any:
        network = _network()
        use = GateUse(network)
        with torch.no_grad():
            for num_rows in (ROWS, ROWS - PADDING):
                network(_rows(rank))
                use.add(num_rows)
        assert dist.group.WORLD is not None
        return use.moments(dist.group.WORLD)


def test_all_rows_count_and_no_padding(run_ranks: Any) -> None:
    """Catches a mean over the last slab of every batch, one with padding, and one of a single rank."""
    found = run_ranks(Watched(), 2)
    assert found[0] == found[1]
    means, deviations = found[0]
    with torch.no_grad():
        whole = [_network().gate_weights(_rows(rank)) for rank in (0, 1)]
    expected = [
        torch.cat([part for weights in whole for part in (weights[level], weights[level][: ROWS - PADDING])]).double()
        for level in (0, 1)
    ]
    for name, weights in zip(means, expected, strict=True):
        torch.testing.assert_close(torch.tensor(means[name], dtype=torch.float64), weights.mean(0), rtol=0, atol=1e-6)
        spread = weights.std(0, correction=0)
        torch.testing.assert_close(torch.tensor(deviations[name], dtype=torch.float64), spread, rtol=0, atol=1e-6)
        last = weights[-1000:].mean(0)  # the negative control: a slab is seen to differ
        assert float((last - weights.mean(0)).abs().max()) > 1e-4
