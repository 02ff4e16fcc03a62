"""CPU-seconds until a command answers: --help, a misspelt key, jobs.audit without a line; over a bare interpreter."""

import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

_ROOT = Path(__file__).parents[1]
_NOT_COMMANDS = {"__init__", "__main__", "command"}
_CONFIG = ["--config", "jobs/configs/demo.yaml"]
_MISSPELT = ["--set", "optimizer.dense.learning_rat=0.1"]
_GOALS_S = {"help": 0.5, "misspelt_key": 3.0, "audit": 3.0}


def run(quick: bool) -> dict[str, Any]:
    """Measure user and system time of each answer in turns.

    Args:
        quick: One turn, and --help of three commands.
    """
    turns, commands = (1, commands_of()[:3]) if quick else (3, commands_of())
    with tempfile.TemporaryDirectory() as folder:
        asked: dict[str, tuple[Sequence[str], int]] = {
            "bare": (["-c", "pass"], 0),
            "misspelt_key": (["-m", "jobs.train", *_CONFIG, *_MISSPELT, "--days", "2026-11-01"], 2),
            "audit": (["-m", "jobs.audit", *_CONFIG, "--set", f"root={folder}"], 2),
        }
        asked |= {f"help {name}": (["-m", f"jobs.{name}", "--help"], 0) for name in commands}
        _cpu_s(*asked["bare"])  # reads the interpreter's files
        found = [{name: _cpu_s(*ask) for name, ask in asked.items()} for _ in range(turns)]
    seconds = {name: statistics.median(turn[name] for turn in found) for name in asked}
    helps = {name.removeprefix("help "): value for name, value in seconds.items() if name.startswith("help ")}
    worst = {"help": max(helps.values()), "misspelt_key": seconds["misspelt_key"], "audit": seconds["audit"]}
    return {
        "turns": turns,
        "bare_s": round(seconds["bare"], 3),
        "help_s": {name: round(value, 3) for name, value in helps.items()},
        "worst_s": {name: round(value, 3) for name, value in worst.items()},
        "worst_over_bare": {name: round(value / seconds["bare"], 1) for name, value in worst.items()},
        "goals_s": _GOALS_S,
        "missed": [name for name, goal in _GOALS_S.items() if worst[name] > goal],
    }


def commands_of() -> list[str]:
    """Return the names of all commands."""
    return sorted(path.stem for path in (_ROOT / "jobs").glob("*.py") if path.stem not in _NOT_COMMANDS)


def _cpu_s(arguments: Sequence[str], expected: int) -> float:
    """Return the user and system time of an interpreter and of the children that it waited for."""
    process = subprocess.Popen(
        [sys.executable, *arguments], cwd=_ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != expected:
        raise RuntimeError(f"{' '.join(arguments)} ended with {process.returncode}, expected {expected}")
    return used.ru_utime + used.ru_stime
