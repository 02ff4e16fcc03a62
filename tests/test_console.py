"""A person's view of a command: its own lines on stderr and nobody else's, one bar on a terminal, no crash without one.

Run as a script, this file is a command whose libraries write to stdout and stderr as they like.
"""

import argparse
import json
import logging
import os
import pty
import re
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from own_lines import OWN_LINE

from pipeline.cluster.progress import Progress, ProgressDisplay, ProgressReporter
from pipeline.cluster.worker_lines import MarkingHandler, receive_lines

ROOT = Path(__file__).parents[1]
ROWS = 4000


def _begin(arguments: argparse.ArgumentParser) -> None:
    arguments.add_argument("--fail", action="store_true")


def _run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Work as a command does, among libraries that write to stdout and stderr."""
    os.write(1, b"printed by C++ to stdout\n")
    os.write(2, b"printed by C++ to stderr\n")
    sys.stderr.write("printed by Python\n")
    logging.getLogger("fbgemm_gpu").info("Successfully loaded: 'fbgemm_gpu_py.so'")
    display = ProgressDisplay()
    for step in range(1, 5):
        display.show(Progress("train 2026-11-20", step * ROWS // 4, ROWS, {"ctr": 0.5} if step > 1 else {}))
        time.sleep(0.4)
        if step == 2:
            logging.getLogger("pipeline.checkpoint").info("saved checkpoints/2026-11-20")
    display.show(Progress("evaluate 2026-11-21", 10, 10))
    display.close()
    if arguments.fail:
        raise RuntimeError("the disk is full")
    return {"result": "trained"}


def _command(*arguments: str) -> list[str]:
    return [sys.executable, __file__, *arguments]


@pytest.fixture
def surroundings(tmp_path: Path) -> dict[str, str]:
    """Environment of a command, whose log files go to a folder of its own."""
    (tmp_path / "temporary").mkdir()
    return os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}", "TMPDIR": str(tmp_path / "temporary")}


def _on_a_terminal(arguments: list[str], environment: dict[str, str], num_columns: int) -> str:
    """Return all that a command writes to a terminal."""
    master, slave = pty.openpty()
    termios.tcsetwinsize(slave, (24, num_columns))
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=slave, env=environment) as process:
        os.close(slave)
        text = b"".join(iter(lambda: _read(master), b"")).decode()
        assert process.wait() == 0, text
    os.close(master)
    return text


def _read(descriptor: int) -> bytes:
    try:
        return os.read(descriptor, 4096)
    except OSError:  # the other end is closed
        return b""


def _screen(text: str) -> Iterator[str]:
    """Yield the lines that a terminal shows in the end: a carriage return begins its line again."""
    assert "\x1b[A" not in text
    for line in text.split("\n"):
        shown = ""
        for part in line.split("\r"):
            shown = part + shown[len(part) :]
        yield shown.rstrip()


@pytest.mark.parametrize("num_columns", [100, pytest.param(0, id="unknown")])
def test_one_bar_on_a_terminal(surroundings: dict[str, str], num_columns: int) -> None:
    """Catches a bar that begins anew at every look: two new lines each time, elapsed 00:00, 167M rows/s."""
    text = _on_a_terminal(_command(), surroundings, num_columns)
    saved, bar, unknown, end = _screen(text)
    assert saved.endswith("I saved checkpoints/2026-11-20")
    assert unknown == "evaluate 2026-11-21: 100%|##########| 10.0/10.0 rows"
    assert end == ""
    drawn = r"train 2026-11-20: 100%\|#{10}\| 4\.00k/4\.00k \[00:0[1-9]<00:00, ([\d.]+)k rows/s"
    shown = re.match(drawn, bar)
    assert shown, bar
    assert bar.endswith(", ctr=0.5000]") or not num_columns  # cut at 80 columns
    assert 0.5 < float(shown[1]) < 3  # 3,000 rows in 1.2 s, on a busy machine in some more
    assert "?" not in text
    assert "0.00 rows/s" not in text


def test_lines_without_a_terminal(surroundings: dict[str, str]) -> None:
    """Catches output of libraries between our own lines, a figure of 0 that is only unknown, and colour codes."""
    done = subprocess.run(_command(), capture_output=True, text=True, env=surroundings, check=False)
    assert json.loads(done.stdout)["result"] == "trained"
    lines = done.stderr.splitlines()
    assert all(OWN_LINE.fullmatch(line) for line in lines), done.stderr
    *moving, unknown = (line.partition(" I ")[2] for line in lines)
    assert len(moving) == 3
    figures = r"[1-9][\d,]* rows/s, ctr 0\.5000"
    assert re.fullmatch(rf"train 2026-11-20: 2,000 of 4,000 rows, {figures}", moving[0])
    assert moving[1] == "saved checkpoints/2026-11-20"
    assert re.fullmatch(rf"train 2026-11-20: 4,000 of 4,000 rows, {figures}", moving[2])
    assert unknown == "evaluate 2026-11-21: 10 of 10 rows"
    assert "\x1b" not in done.stderr
    assert list(Path(surroundings["TMPDIR"]).glob("counterpoise-*")) == []


def test_a_failure_names_the_log(surroundings: dict[str, str]) -> None:
    """Catches output of libraries, or the traceback, that is gone when it is needed."""
    done = subprocess.run(_command("--fail"), capture_output=True, text=True, env=surroundings, check=False)
    result = json.loads(done.stdout)
    assert (done.returncode, result["error"]) == (1, "RuntimeError: the disk is full")
    assert all(OWN_LINE.fullmatch(line) for line in done.stderr.splitlines()), done.stderr
    assert done.stderr.splitlines()[-1].endswith(f"E the output of Ray and of the workers is in {result['log']}")
    log = Path(result["log"]).read_text()
    for text in ("by C++ to stdout", "by C++ to stderr", "by Python", "Successfully loaded", "saved ", "Traceback"):
        assert text in log


def test_verbose_shows_all(surroundings: dict[str, str]) -> None:
    """Catches a switch that hides something, or shows a line twice."""
    done = subprocess.run(_command("--verbose"), capture_output=True, text=True, env=surroundings, check=False)
    assert json.loads(done.stdout)["result"] == "trained"
    for text in ("by C++ to stdout", "by C++ to stderr", "by Python", "Successfully loaded", "saved checkpoints"):
        assert done.stderr.count(text) == 1, done.stderr


@pytest.mark.parametrize("closed", ["2>&-", ">&-", "<&- >&- 2>&-"])
def test_closed_streams(surroundings: dict[str, str], closed: str) -> None:
    """Catches a command that cannot begin, or ends with a traceback, where stdout or stderr is closed."""
    shell = ["sh", "-c", f'exec "$0" "$1" {closed}', *_command()]
    done = subprocess.run(shell, capture_output=True, text=True, env=surroundings, check=False)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert (done.stdout == "") == (">&-" in closed.replace("2>&-", ""))


def test_a_reader_that_goes_away(surroundings: dict[str, str]) -> None:
    """Catches a command that a closed terminal, or `| head -1`, makes fail after its work is done."""
    with subprocess.Popen(_command(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=surroundings) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stderr.readline()
        process.stderr.close()
        process.stdout.close()
        assert process.wait() == 0


def test_no_place_for_a_log_file(surroundings: dict[str, str]) -> None:
    """Catches a command that fails for want of a temporary folder, or then hides what it cannot keep."""
    code = "import tempfile; tempfile.tempdir = '/nowhere'; import runpy, sys; "
    code += f"sys.argv = ['x']; runpy.run_path({__file__!r}, run_name='__main__')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=surroundings, check=False)
    assert done.returncode == 0, done.stderr
    assert "printed by C++ to stderr" in done.stderr


def test_own_lines_of_workers(
    caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches a worker's line that is lost, changes its level, or is taken for Ray's, and Ray's taken for ours."""
    monkeypatch.setenv("RAY_COLOR_PREFIX", "0")
    record = logging.LogRecord("pipeline.x", logging.WARNING, "x.py", 1, "quarantined %s:\nbad", ("a.parquet",), None)
    MarkingHandler().emit(record)
    marked = capsys.readouterr().err.rstrip("\n")
    raw = "Requesting resources: {'CPU': 1.0} * 2"
    with caplog.at_level(logging.DEBUG, "pipeline"):
        receive_lines({"lines": [raw, marked], "pid": 7, "actor_name": "RayTrainWorker", "is_err": True})
    assert [(one.levelno, one.getMessage()) for one in caplog.records] == [
        (logging.WARNING, "quarantined a.parquet: bad")
    ]
    assert capsys.readouterr().err == f"(RayTrainWorker pid=7) {raw}\n"


def test_an_unknown_loss_is_left_out() -> None:
    """Catches `ctr 0.0000` of the first steps, whose losses no rank has summed yet."""

    class Board:
        posted: list[Progress] = []
        post: Any = type("Post", (), {"remote": staticmethod(posted.append)})

    ProgressReporter(Board, "train", 10).post(5, {"ctr": 0.0, "vtr": 0.25})
    assert Board.posted == [Progress("train", 5, 10, {"vtr": 0.25})]


if __name__ == "__main__":
    from jobs.command import command

    sys.exit(command(_begin, _run))
