"""The benchmarks: all of them are listed, say what they measure, and can be run by name."""

import importlib
import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.__main__ import NAMES


@pytest.mark.parametrize("name", NAMES)
def test_a_benchmark_says_what_it_measures(name: str) -> None:
    """Catches a name that runs nothing, or a figure that nobody can read."""
    module = importlib.import_module(f"benchmarks.{name}")
    assert module.__doc__
    assert callable(module.run)


def _figures(found: Any) -> list[float]:
    """Return all numbers of a result."""
    if isinstance(found, dict | list):
        inner = found.values() if isinstance(found, dict) else found
        return [figure for part in inner for figure in _figures(part)]
    return [float(found)] if isinstance(found, int | float) else []


_WITHOUT_RAY = ("determinism", "head_gemm", "loss_overhead", "metric_merge", "save_stall", "sparse_step")
_WITHOUT_RAY += ("step_overhead", "vocabulary")


@pytest.mark.parametrize("names", [_WITHOUT_RAY, ("ingest_units",), ("startup_cpu",)], ids=lambda names: names[0])
def test_benchmarks_run(names: tuple[str, ...], tmp_path: Path) -> None:
    """Catches a benchmark that the code has left behind; how fast it is, is not asked.

    Those without Ray share a command, and so the import of TorchRec.
    """
    command = [sys.executable, "-m", "benchmarks", *names, "--quick", "--json", str(tmp_path / "found.json")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[1], check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads((tmp_path / "found.json").read_text())
    assert tuple(found) == names
    for name in names:
        figures = _figures(found[name])
        assert figures
        assert all(math.isfinite(figure) for figure in figures)
        assert f"{name}: " in done.stdout
