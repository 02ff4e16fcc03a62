"""Commands that write days to a local directory: what is no such place, or no such day, is refused (exit code 2)."""

import argparse
from datetime import date
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from jobs import demo, import_aliccp, import_kuairand, make_logs
from jobs.command import BAD_ARGUMENTS, DONE, outcome

WORLD = {
    "seed": 1,
    "first_day": date(2026, 11, 1),
    "rows_per_day": 5,
    "num_users": 2,
    "num_videos": 2,
    "num_authors": 1,
}


def call(job: ModuleType, *arguments: str) -> tuple[dict[str, Any], int]:
    parser = argparse.ArgumentParser()
    job.add_arguments(parser)
    return outcome(job.run, parser.parse_args(arguments))


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A world's file; the command's folder is an empty one."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    path = tmp_path / "world.yaml"
    path.write_text("".join(f"{key}: {value}\n" for key, value in WORLD.items()))
    return str(path)


@pytest.mark.parametrize(
    ("place", "expected"),
    [
        ("s3://bucket/logs", "is an s3:// url: give a local directory"),
        ("", "'' is no place"),
        ("$HOME/logs", "has a $"),
        ("file:///logs", "a url that begins with 'file'"),
    ],
)
def test_no_local_directory(world: str, tmp_path: Path, place: str, expected: str) -> None:
    """Catches days in a local folder named `s3:`, and exit code 1 for a place that will never be there."""
    calls = [
        (make_logs, "--logs", ("--world", world, "--days", "2026-11-01")),
        (import_kuairand, "--logs", ("--source", str(tmp_path))),
        (import_aliccp, "--logs", ("--source", str(tmp_path))),
        (import_kuairand, "--source", ("--logs", str(tmp_path / "logs"))),
        (import_aliccp, "--source", ("--logs", str(tmp_path / "logs"))),
        (demo, "--folder", ()),
    ]
    for job, option, others in calls:
        result, code = call(job, option, place, *others)
        assert code == BAD_ARGUMENTS, result
        assert result["error"].startswith(option), result
        assert expected in result["error"]
    assert list(Path.cwd().iterdir()) == []


def test_a_day_before_the_first(world: str, tmp_path: Path) -> None:
    """Catches exit code 1 for a day that the world does not have, and a folder that is left behind."""
    result, code = call(
        make_logs, "--world", world, "--days", "2026-10-31..2026-11-01", "--logs", str(tmp_path / "logs")
    )
    assert code == BAD_ARGUMENTS
    assert result["error"].startswith("day 2026-10-31 lies before first_day 2026-11-01"), result
    assert not (tmp_path / "logs").exists()


def test_the_home_of_a_user(world: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches days in a folder that is literally called `~`."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    result, code = call(make_logs, "--world", world, "--days", "2026-11-01", "--logs", "~/logs")
    assert (code, result["written"]) == (DONE, ["2026-11-01"])
    assert (tmp_path / "home/logs/dt=2026-11-01/part-00000.parquet").exists()
    assert list(Path.cwd().iterdir()) == []
