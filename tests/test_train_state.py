"""The search for numbers that are not finite, at a day's end."""

import pytest
import torch

from pipeline.trainer import train_state
from pipeline.trainer.train_state import is_finite


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a chunk have 12 numbers."""
    monkeypatch.setattr(train_state, "_FINITE_NUMBERS", 12)


@pytest.mark.parametrize("shape", [(), (1,), (12,), (25,), (7, 4), (3, 40), (10, 2, 3)])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_a_bad_number_at_any_place(few: None, shape: tuple[int, ...], bad: float) -> None:
    """Catches a number at the border of two chunks, in the last one, or in a long row, that is missed."""
    tensor = torch.ones(shape)
    assert is_finite(tensor)
    for place in range(tensor.numel()):
        spoilt = tensor.clone()
        spoilt.view(-1)[place] = bad
        assert not is_finite(spoilt), place


def test_tensors_of_no_numbers(few: None) -> None:
    """Catches a division by a size of zero, and a rank without rows of a table that ends the day."""
    assert all(is_finite(torch.ones(shape)) for shape in [(0,), (0, 8), (8, 0)])
    assert is_finite(torch.ones(100, dtype=torch.int64))


def test_it_needs_little_memory(few: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a mask as large as a shard: on a device that its tables fill, the day ends without memory."""
    sizes: list[int] = []
    isfinite = torch.isfinite
    monkeypatch.setattr(torch, "isfinite", lambda piece: sizes.append(piece.numel()) or isfinite(piece))
    assert is_finite(torch.ones(1000, 3))
    assert sum(sizes) == 3000
    assert max(sizes) <= 12
