"""Real GPUs and NCCL: `make test-cuda`. No machine on which this was written had one, so none of it has been run."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from small_runs import DAYS, logs, make_config
from train_steps import Run, assert_equal, relative_difference, whole
from train_steps import make_config as make_step_config

from models.dupn import DUPN
from models.gradnorm import GradNorm
from models.inputs import sum_of_bags
from models.pcgrad import PCGrad
from pipeline.checkpoint.host_copy import HostCopy
from pipeline.lineage.audit import audit_line
from pipeline.trainer.train_line import train

__all__ = ["logs"]  # fixtures

GPUS = torch.cuda.device_count()
pytestmark = [pytest.mark.cuda, pytest.mark.skipif(GPUS == 0, reason="there is no GPU on this machine")]
ON_GPUS = min(GPUS, 2)


@contextmanager
def no_wait() -> Iterator[None]:
    """Fail where the host waits for the GPU."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("pipeline", ["base", "sparse_dist"])
def test_steps_are_those_of_a_cpu(run_ranks: Any, pipeline: str) -> None:
    """Catches a kernel, an exchange or a flat batch that gives another step on a GPU; up to float32's rounding."""
    config = make_step_config(pipeline=pipeline)
    assert relative_difference(run_ranks(Run(config), 1), run_ranks(Run(config, device="cuda"), ON_GPUS)) < 1e-4


def test_a_checkpoint_of_gpus_is_loaded_by_others(run_ranks: Any, tmp_path: Path) -> None:
    """Catches a shard that a GPU saves or loads at another place."""
    config = make_step_config()
    saved = run_ranks(Run(config, save=str(tmp_path), device="cuda"), ON_GPUS)
    for device, ranks in (("cpu", 2), ("cuda", 1)):
        loaded = run_ranks(Run(config, steps=range(0), load=str(tmp_path), device=device), ranks)
        assert_equal(whole(saved, "after"), whole(loaded, "before"))


def test_a_copy_through_page_locked_buffers_is_the_tensors() -> None:
    """Catches a piece that is taken out of a buffer before the GPU has filled it."""
    tensors = {"model": {str(size): torch.randn(size, device="cuda") for size in (1, 1013, 1 << 22)}}
    copy = HostCopy(tensors, 1 << 20)
    for _ in range(3):
        for tensor in tensors["model"].values():
            tensor.add_(1)
        found = copy.refresh(tensors)["model"]
        assert all(torch.equal(found[name], tensor.cpu()) for name, tensor in tensors["model"].items())


def test_no_method_waits_for_the_gpu() -> None:
    """Catches a size or a number that the host reads within a step, for which it would wait."""
    gram = torch.eye(3, device="cuda", dtype=torch.float64).expand(2, -1, -1)
    losses, present = torch.ones(3, device="cuda").double(), torch.ones(3, device="cuda", dtype=torch.bool)
    rules = [GradNorm(3, 1.5, 0.025).cuda(), PCGrad().cuda()]
    dupn = DUPN(4, 2, 3, 1, 5, 8, [4]).cuda()
    lengths = torch.tensor([2, 0, 5], device="cuda")
    items, properties = torch.randn(7, 4, device="cuda"), torch.randn(7, 2, device="cuda")
    query, user = torch.randn(3, 1, device="cuda"), torch.randn(3, 3, device="cuda")
    dupn(items, properties, lengths, query, user).sum().backward()  # the libraries set themselves up
    with no_wait():
        for rule in rules:
            rule(gram, losses, present)
        dupn(items, properties, lengths, query, user).sum().backward()
        sum_of_bags(items, lengths)


def test_a_whole_day_and_the_next(logs: Path, tmp_path: Path, ray_cluster: None) -> None:
    """Catches a run that CUDA's defaults, NCCL, the thread of batches or the page-locked memory break."""
    config = make_config(logs, tmp_path, workers={"num": ON_GPUS, "device": "cuda", "timeout_s": 60})
    assert (config.workers.precision, config.ingest.lookahead) == ("tf32", 4)
    for day in DAYS:
        result = train(config, [day], passes=1)
        assert result["rows"] > 0
    assert audit_line(config, None)["rows"] == 2 * 3000
