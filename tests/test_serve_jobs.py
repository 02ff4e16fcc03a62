"""Imports of the processes around the workers: not torch, which costs each of them 4 s of a core at every start."""

import subprocess
import sys

import pytest

_LIGHT = {
    "pipeline.cluster.serve_jobs": "Ray Train's controller",
    "pipeline.ingest.plan": "Ray Data's planning",
    "pipeline.lineage.choose_start": "where a run goes on",
    "pipeline.ingest.datasource": "reading",
    "pipeline.log_passes.unit_work": "other passes over units",
    "pipeline.cluster.progress": "the board",
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
    assert _imports("pipeline.trainer.train", "torch")
