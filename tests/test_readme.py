"""The walk-through of the README, command by command, on processes in the place of Ray's."""

import argparse
import importlib
import re
import shlex
from pathlib import Path

import pytest

from jobs.command import DONE, outcome

ROOT = Path(__file__).parents[1]


def test_the_walk_through_of_the_readme(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, local_training: None) -> None:
    """Catches a command or a configuration of the README that does not work, alone or after those before it."""
    text = (ROOT / "README.md").read_text()
    (config,) = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
    commands = [shlex.split(line) for line in re.findall(r"^    (python -m jobs\.\w+ .*)$", text, re.MULTILINE)]
    daily = re.findall(r"`(python -m jobs\.daily [^`]*)`", text)
    assert len(commands) == 5
    (tmp_path / "my.yaml").write_text(config)
    (tmp_path / "jobs").symlink_to(ROOT / "jobs")
    monkeypatch.chdir(tmp_path)
    for _, _, name, *arguments in [*commands, *map(shlex.split, daily)]:
        module, parser = importlib.import_module(name), argparse.ArgumentParser()
        module.add_arguments(parser)
        smaller = ["--set", "rows_per_day=3000"] if name == "jobs.make_logs" else []
        result, code = outcome(module.run, parser.parse_args([*arguments, *smaller]))
        assert code == DONE, result
    assert result["result"] == "published"
