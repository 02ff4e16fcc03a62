"""The process of a command: what it leaves behind, how long it took, what it says meanwhile, how it is interrupted.

Run as a script, this file is a command whose import takes a second, and whose work leaves processes behind.
"""

import contextlib
import json
import logging
import os
import re
import subprocess
import sys
import time
import uuid
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback

from features.errors import ConfigError, Interrupted
from pipeline.cluster import trainer_of_jobs
from pipeline.cluster.failures import ending_of
from pipeline.config.load import parse_config
from pipeline.config.project import Config
from pipeline.lineage.line import Line
from pipeline.log_passes import statistics
from pipeline.storage.files import Storage
from pipeline.trainer import train_days
from pipeline.trainer.train_line import train

ROOT = Path(__file__).parents[1]
DAY = "2026-01-01"
MARK = "COUNTERPOISE_TEST_RUN"


def settings(folder: Path, root: str, *, standardise: bool = True) -> dict[str, Any]:
    """A project with a day of 300 rows in three row groups."""
    (folder / f"logs/dt={DAY}").mkdir(parents=True)
    rows = pa.table({"user_id": list(range(300)), "age": [float(n % 90) for n in range(300)], "click": [0, 1, 0] * 100})
    pq.write_table(rows, folder / f"logs/dt={DAY}/part-0.parquet", row_group_size=100)
    dense = {"kind": "dense", "name": "age", "standardise": standardise}
    features = [{"kind": "id", "name": "user_id", "table": "user"}, dense]
    tables = [{"name": "user", "num_rows": 100, "dim": 4}]
    return {
        "name": "mine",
        "root": root,
        "logs": {"path": str(folder / "logs")},
        "schema": {"tables": tables, "features": features, "tasks": [{"name": "ctr", "label": "click"}]},
        "model": {"network": {"kind": "hard_sharing", "layers": [4]}},
        "optimizer": {"tables": {"learning_rate": 0.1}, "dense": {"learning_rate": 0.1}},
        "workers": {"num": 1, "max_failures": 0},
        "ray": {"num_cpus": 2, "object_store_mb": 80},
    }


def config_of(folder: Path, root: str) -> Config:
    return parse_config(settings(folder, root), "test")


def left(mark: str) -> list[str]:
    """Processes that have the mark in their environment."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.environ().get(MARK) == mark and process.status() != psutil.STATUS_ZOMBIE:
                found.append(" ".join(process.cmdline()))
    return found


# --- Without Ray ---


def test_what_a_command_leaves(tmp_path: Path) -> None:
    """Catches a process of 400 MB that outlives its command, and `seconds` that leave out its start and imports."""
    mark = uuid.uuid4().hex
    started = time.monotonic()
    environment = os.environ | {MARK: mark, "PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, __file__], capture_output=True, text=True, timeout=400, check=False, env=environment
    )
    took = time.monotonic() - started
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["started"] == 2  # the negative control: they were there
    assert left(mark) == []
    assert result["inside"] + 1 <= result["seconds"] + 0.1
    assert result["seconds"] <= took + 0.1


@pytest.mark.parametrize("arguments", [["jobs"], ["jobs.config_reference"], ["jobs.record_reference"]])
@pytest.mark.parametrize("reader", [">&-", "| true"])
def test_pages_that_nobody_reads(arguments: list[str], reader: str) -> None:
    """Catches a traceback where stdout is closed, or the reader has gone; the pages are longer than a pipe holds."""
    shell = ["bash", "-c", f'set -o pipefail; "$0" -m "$@" {reader}', sys.executable, *arguments]
    done = subprocess.run(shell, cwd=ROOT, capture_output=True, text=True, timeout=400, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    ("error", "result"),
    [
        (KeyboardInterrupt(), "interrupted"),
        (SystemExit(1), "interrupted"),
        (Interrupted("stopped by SIGTERM"), "interrupted"),
        (RuntimeError("a worker died"), "failed"),
    ],
)
def test_the_record_of_an_interrupted_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, local_training: None, error: BaseException, result: str
) -> None:
    """Catches Ctrl-C that the attempt's record calls a failure, for the reason `1`."""
    config = config_of(tmp_path, str(tmp_path / "root"))
    statistics.fit_statistics(config, [DAY])

    def interrupted(config: Config, plan: Any, *_: Any) -> Any:
        plan.begin_attempts()
        raise error

    monkeypatch.setattr(train_days, "run_workers", interrupted)
    with pytest.raises(type(error)):
        train(config, [DAY], passes=1)
    (attempt,) = Line.of(config.root, "main").attempts([DAY])
    assert attempt.result == result
    assert len(attempt.reason or "") > 5
    assert ending_of(error) == (result, attempt.reason)


def test_a_pass_over_the_log_tells_its_progress(
    tmp_path: Path, local_training: None, caplog: pytest.LogCaptureFixture
) -> None:
    """Catches an hour of silence."""
    with caplog.at_level(logging.INFO):
        statistics.fit_statistics(config_of(tmp_path, str(tmp_path / "root")), [DAY])
    assert "fit statistics: 300 of 300 rows" in caplog.text


def test_a_root_that_cannot_be_written(tmp_path: Path, local_training: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a pass of hours whose result has no place."""
    (tmp_path / "file").touch()
    monkeypatch.setattr(statistics, "collect_statistics", lambda *_: pytest.fail("it reads the log first"))
    config = config_of(tmp_path, str(tmp_path / "file/root"))
    with pytest.raises(
        ConfigError, match=r"file/root/lines/main cannot be written \(.*\): give a place that this user"
    ):
        statistics.fit_statistics(config, [DAY])


def test_a_place_is_asked_without_a_trace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a probe that stays, and a full disk, which can be tried again, that is called a wrong place."""
    Storage(str(tmp_path)).check_writable()
    assert list(tmp_path.iterdir()) == []

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Storage, "write", full)
    with pytest.raises(OSError, match="No space left"):
        Storage(str(tmp_path)).check_writable()


@pytest.mark.parametrize("own", [True, False])
def test_somebody_else_s_ray(monkeypatch: pytest.MonkeyPatch, *, own: bool) -> None:
    """Catches a helper of Ray Train that looks for our Ray, finds another one too, and ends in a traceback."""
    monkeypatch.setattr(trainer_of_jobs, "owns_ray", lambda: own)
    trainer = trainer_of_jobs.TorchTrainer(lambda: None, train_loop_config={"queue": None})
    callbacks = trainer._create_default_callbacks()
    assert any(isinstance(callback, PlacementGroupCleanerCallback) for callback in callbacks) is not own


def test_no_colour_codes(tmp_path: Path) -> None:
    """Catches the codes that Ray puts into the traceback of a remote error, in a log file and in the JSON line."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path), "RAY_COLOR_PREFIX": "0"}
    done = subprocess.run(
        [sys.executable, __file__, "--colours"],
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
        env=environment,
    )
    result = json.loads(done.stdout)
    assert result["error"] == "RuntimeError: ray::train() failed"
    said = Path(result["log"]).read_text() + done.stderr
    assert "ray::worker() said" in said
    assert "Traceback" in said
    assert "\x1b" not in said


# --- With a Ray of its own ---


@pytest.mark.ray
def test_a_real_command(tmp_path: Path) -> None:
    """Catches a controller of Ray Train that is left, colour codes, and a traceback where another Ray runs as well."""
    config, mark = tmp_path / "my.yaml", uuid.uuid4().hex
    config.write_text(yaml.safe_dump(settings(tmp_path, str(tmp_path / "root"), standardise=False)))
    command = [sys.executable, "-m", "jobs.train", "--config", str(config), "--days", DAY, "--verbose"]
    started = time.monotonic()
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=400, check=False, env=os.environ | {MARK: mark}
    )
    took = time.monotonic() - started
    assert done.returncode == 0, done.stderr
    assert left(mark) == []
    result = json.loads(done.stdout)
    assert result["rows"] == 300
    assert result["seconds"] <= took + 0.1
    assert re.search(r" I train 2026-01-01: 300 of 300 rows", done.stderr)
    assert "\x1b" not in done.stderr
    # Ray itself gives a traceback with this warning, if its coordinator takes more than 5 s on a busy machine.
    excused = len(re.findall(r"Failed to (?:send|cancel) resource request", done.stderr))
    assert done.stderr.count("Traceback (most recent call last)") <= excused, done.stderr


# --- The command of this file ---


def _leave_processes(arguments: Any) -> dict[str, Any]:
    """Leave a process that ignores SIGTERM, whose parent ends in time, and one that does not."""
    from pipeline.cluster.processes import adopt_orphans, no_process_left

    deaf = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(flush=True); time.sleep(100)"
    code = f"import subprocess, sys, time; p = subprocess.Popen([sys.executable, '-c', {deaf!r}]); time.sleep(100)"
    began = time.monotonic()
    with no_process_left(0.2):
        process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
        assert process.stdout is not None
        process.stdout.readline()  # the inner one is deaf now
        number = len(psutil.Process().children(recursive=True))
        adopt_orphans()
        process.kill()
        process.wait()
    return {"started": number, "inside": time.monotonic() - began}


def _colours(arguments: Any) -> dict[str, Any]:
    from pipeline.cluster.worker_lines import receive_lines

    receive_lines({"lines": ["\x1b[36mray::worker()\x1b[39m said"], "pid": 7, "actor_name": "", "is_err": True})
    raise RuntimeError("\x1b[36mray::train()\x1b[39m failed")


if __name__ == "__main__":
    from jobs.command import command

    time.sleep(1)
    sys.exit(
        command(
            lambda parser: parser.add_argument("--colours", action="store_true"),
            lambda arguments: _colours(arguments) if arguments.colours else _leave_processes(arguments),
        )
    )
