"""What the processes around the workers import: not torch, which costs each of them 4 s of a core at every start."""

import subprocess
import sys

import pytest

_LIGHT = {
    "pipeline.entry": "Ray Train's controller",
    "pipeline.stream": "Ray Data's planning",
    "pipeline.lineage.start": "where a run goes on",
    "pipeline.datasource": "reading",
    "pipeline.unit_work": "other passes over units",
    "pipeline.progress": "the board",
}


def _imports(module: str, heavy: str) -> bool:
    code = f"import sys, {module}; print({heavy!r} in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.strip() == "True"


@pytest.mark.parametrize("module", _LIGHT)
def test_processes_beside_the_workers_import_no_torch(module: str) -> None:
    """Catches an import that makes every start of the workers, and so every test of a run, seconds slower."""
    assert not _imports(module, "torch")


def test_control_the_workers_do() -> None:
    """Negative control: what imports torch is seen to."""
    assert _imports("pipeline.train", "torch")
