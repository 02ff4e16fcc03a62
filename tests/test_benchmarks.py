"""The benchmarks: all of them are listed, say what they measure, and can be run by name."""

import importlib

import pytest

from benchmarks.__main__ import NAMES


@pytest.mark.parametrize("name", NAMES)
def test_a_benchmark_says_what_it_measures(name: str) -> None:
    """Catches a name that runs nothing, or a figure that nobody can read."""
    module = importlib.import_module(f"benchmarks.{name}")
    assert module.__doc__
    assert callable(module.run)
