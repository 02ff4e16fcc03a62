"""Peak memory of all processes during the training of a day, at ten times the rows over once the rows."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.processes import TreeWatcher
from benchmarks.workload import DAY, WORKERS, project

_ROWS, _QUICK_ROWS = 2**17, 2**15
_ROW_GROUP_ROWS = 2**13
_NUM_IDS = 20_000
_MIB = 2**20


def run(quick: bool) -> dict[str, Any]:
    """Train one day of N rows and one of 10 N, each in a process tree of its own, from the log to the checkpoint.

    The figure is the sum of the proportional set sizes of all processes, the driver's included. Ray's object store is
    measured apart, since its size is a setting.

    Args:
        quick: A quarter of the rows.
    """
    rows = _QUICK_ROWS if quick else _ROWS
    peaks = {factor: _peak(factor * rows) for factor in (1, 10)}
    return {
        "rows": rows,
        "row_group_rows": _ROW_GROUP_ROWS,
        "workers": WORKERS,
        "peak_mib": {f"{factor}x": peak["private"] for factor, peak in peaks.items()},
        "object_store_mib": {f"{factor}x": peak["shared"] for factor, peak in peaks.items()},
        "ratio_10x_over_1x": round(peaks[10]["private"] / peaks[1]["private"], 3),
    }


def _peak(rows: int) -> dict[str, int]:
    """Return the peak memory in MiB of `jobs.train` over a day of so many rows."""
    with project(rows, _ROW_GROUP_ROWS, _NUM_IDS, ingest={"batch_size": 1024, "object_store_mb": 64}) as folder:
        command = [sys.executable, "-m", "jobs.train", "--config", str(folder / "config.yaml"), "--days", str(DAY)]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        with Path(folder, "log").open("wb") as log:
            trained = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
            with TreeWatcher(trained.pid, memory=True, every_s=0.5) as watcher:
                code = trained.wait()
        if code:
            raise RuntimeError(Path(folder, "log").read_text()[-2000:])
        return {"private": watcher.peak.private // _MIB, "shared": watcher.peak.shared // _MIB}
