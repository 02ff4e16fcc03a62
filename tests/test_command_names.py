"""A command that is called by a wrong name does nothing, says which one was meant, and does not report success."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def call(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=400, check=False
    )


@pytest.mark.parametrize(
    ("arguments", "job", "expected"),
    [
        (
            ["jobs", "daily", "--day", "2026-11-20", "--skip-day", "a reason"],
            "daily",
            "a command is a module of its own: run python -m jobs.daily --day 2026-11-20 --skip-day 'a reason'",
        ),
        (["jobs", "dialy"], "dialy", "there is no command 'dialy': did you mean python -m jobs.daily?"),
        (["jobs", "--config", "my.yaml"], "jobs", "expected python -m jobs.NAME --config my.yaml"),
        (["jobs", "zzz"], "zzz", "there is no command 'zzz': python -m jobs lists them"),
        (
            ["jobs.fit-features", "--days", "2026-11-20"],
            "fit-features",
            "there is no command 'fit-features': did you mean python -m jobs.fit_features --days 2026-11-20?",
        ),
        (["jobs.daily.py"], "daily.py", "there is no command 'daily.py': did you mean python -m jobs.daily?"),
        (["jobs.command"], "command", "there is no command 'command': "),
    ],
)
def test_a_wrong_name(arguments: list[str], job: str, expected: str) -> None:
    """Catches a scheduler's command that exits with 0 and does nothing, or with 1 and is tried for ever."""
    done = call(*arguments)
    assert done.returncode == 2, done.stdout + done.stderr
    (line,) = done.stdout.splitlines()
    result = json.loads(line)
    assert (result["job"], result["exit_code"]) == (job, 2)
    assert result["error"].startswith(expected), result["error"]
    (shown,) = done.stderr.splitlines()
    assert shown.endswith(f" E {result['error']}")


@pytest.mark.parametrize("arguments", [["jobs"], ["jobs", "--help"], ["jobs", "-h"]])
def test_the_list(arguments: list[str]) -> None:
    """Catches a list that is refused with the wrong names."""
    done = call(*arguments)
    assert (done.returncode, done.stderr) == (0, "")
    assert "  daily  " in done.stdout
    assert "  command  " not in done.stdout


def test_other_modules_are_left_alone() -> None:
    """Catches a check that ends a process which only imports the commands, or runs another package's module."""
    code = "import sys; sys.orig_argv = ['python', '-m', 'jobs_of_others.x']; import jobs, jobs.daily"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
    assert call("jobs.daily", "--help").returncode == 0
