"""The host's copy of the tensors that a checkpoint is written from, and several writers of one rank."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from records import manifest_of
from train_steps import Run, make_config, whole

from pipeline.checkpoint.host_copy import HostCopy
from pipeline.checkpoint.write import write_checkpoint
from pipeline.storage.files import Storage
from pipeline.trainer.worker_setup import Groups, build_state


def _tensors() -> dict[str, Any]:
    """Tensors of odd sizes and several types, one of them not contiguous, one without a number, one a scalar."""
    torch.manual_seed(0)
    wide = torch.randn(7, 6)
    return {
        "model": {"odd": torch.randn(1013), "wide": wide.t(), "none": torch.empty(0, 4), "ids": torch.arange(33)},
        "dense": {"of": {"step": torch.tensor(3.0), "half": torch.randn(5, 3).bfloat16()}},
    }


def _assert_same(found: Any, expected: Any) -> None:
    if isinstance(expected, dict):
        assert found.keys() == expected.keys()
        for name, inner in expected.items():
            _assert_same(found[name], inner)
    else:
        assert found.dtype == expected.dtype
        assert torch.equal(found, expected)


@pytest.mark.parametrize("piece_bytes", [8, 64, 1000, 1 << 20])
def test_pieces_through_two_buffers_are_the_tensors(piece_bytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a piece that is lost, that goes to another's place, or that is overwritten before it was taken out."""
    tensors = _tensors()
    copy = HostCopy(tensors, piece_bytes)
    monkeypatch.setattr(HostCopy, "refresh", lambda self, _: pytest.fail("not in use"))
    pairs = [(tensors[part][name], copy._copy[part][name]) for part, name in [("model", n) for n in tensors["model"]]]
    pairs += [(tensors["dense"]["of"][name], copy._copy["dense"]["of"][name]) for name in tensors["dense"]["of"]]
    for _ in range(2):
        for tensor, _ in pairs:
            tensor.add_(1)
        copy.copy_through_buffers(pairs)
        _assert_same(copy._copy, tensors)


def test_a_copy_stays_as_it_was() -> None:
    """Catches a copy that shares memory with the live tensors, or is made anew at every save."""
    tensors = _tensors()
    copy = HostCopy(tensors)
    first = copy.refresh(tensors)
    expected, place = first["model"]["odd"].clone(), first["model"]["odd"].data_ptr()
    tensors["model"]["odd"] += 1
    assert torch.equal(first["model"]["odd"], expected)
    assert copy.refresh(tensors)["model"]["odd"].data_ptr() == place


def _save_with_threads(rank: int, num_ranks: int, folder: str, threads: int) -> None:
    groups = Groups.create(60)
    state = build_state(make_config("row_wise"), groups.training, torch.device("cpu"))
    state.optimizer.materialise()
    manifest = manifest_of() if rank == 0 else None
    write_checkpoint(state.tensors(), Storage(folder), "checkpoint", manifest, groups.control, threads=threads)


@pytest.mark.parametrize("threads", [2, 5])
def test_files_of_several_threads_are_one_checkpoint(run_ranks: Any, tmp_path: Path, threads: int) -> None:
    """Catches a thread's file that is not in the manifest, or tensors that only one thread writes."""
    run_ranks(partial(_save_with_threads, folder=str(tmp_path), threads=threads), 2)
    assert len(list((tmp_path / "checkpoint").glob("*.distcp"))) == 2 * threads
    loaded = run_ranks(Run(make_config("table_wise"), steps=range(0), load=str(tmp_path)), 1)
    drawn = run_ranks(Run(make_config("table_wise"), steps=range(0)), 1)
    first, second = whole(loaded, "before"), whole(drawn, "before")
    assert [name for name in second if not torch.equal(first[name], second[name])] == []
