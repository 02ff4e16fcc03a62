"""Bad input of a backfill: one clear line, the right exit code, and nothing half-made."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from small_history import ALL_DAYS, TRAINED, call, history, trained

from features.errors import ConfigError
from jobs import backfill as job
from jobs.command import BAD_ARGUMENTS, DONE, REFUSED
from pipeline.config.project import Config
from pipeline.evaluation.cells import parse_lag
from pipeline.lineage.line import Line

__all__ = ["history", "trained"]  # fixtures

DAYS = ["--days", ALL_DAYS[3]]


def as_it_is(config: Config) -> Config:
    return config


def without_a_log(config: Config) -> Config:
    shutil.rmtree(Path(config.logs.path) / f"dt={ALL_DAYS[3]}")
    return config


def other_schema(config: Config) -> Config:
    schema = config.log_schema.model_dump()
    schema["tables"][0]["num_rows"] += 1
    return config.model_copy(update={"log_schema": type(config.log_schema).model_validate(schema)})


def without_bootstrap(config: Config) -> Config:
    return config.model_copy(update={"evaluation": config.evaluation.model_copy(update={"bootstrap": None})})


def without_holdout(config: Config) -> Config:
    return config.model_copy(update={"holdout": None})


def retired(config: Config) -> Config:
    line = Line.of(config.root, "main")
    line.remove(next(name for name in line.checkpoints() if f"/{TRAINED[1]}/" in name))
    return config


def read_only(config: Config) -> Config:
    (Path(config.root) / "metrics").touch()  # a folder without rights would not stop root, who runs the tests
    return config


@pytest.mark.parametrize(
    ("spoil", "arguments", "code", "named"),
    [
        (as_it_is, ["--checkpoints", "checkpoints/2026-01-01/0009/0000000001-day"], BAD_ARGUMENTS, ["0009", "name a"]),
        (as_it_is, ["--checkpoints", "2026-01-01..2026-01-04"], REFUSED, ["no checkpoint of 2026-01-04", "main"]),
        (as_it_is, ["--checkpoints", "yesterday"], BAD_ARGUMENTS, ["'yesterday'"]),
        (retired, ["--checkpoints", "2026-01-01..2026-01-03"], REFUSED, ["no checkpoint of 2026-01-02"]),
        (other_schema, [], REFUSED, ["table user with 500 rows", "501"]),
        (without_a_log, [], REFUSED, [f"dt={ALL_DAYS[3]} is missing"]),
        (read_only, [], BAD_ARGUMENTS, ["root/metrics cannot be written"]),
        (as_it_is, ["--lag", "7..1"], BAD_ARGUMENTS, ["--lag '7..1'"]),
        (as_it_is, ["--lag", "4"], BAD_ARGUMENTS, [f"no day of {ALL_DAYS[3]} is 4 days after a checkpoint"]),
        (as_it_is, ["--against", "2026-01-04"], REFUSED, ["no checkpoint of 2026-01-04", "correct --against"]),
        (as_it_is, ["--against", "2026-01-01..2026-01-02"], BAD_ARGUMENTS, ["2 checkpoints"]),
        (without_bootstrap, ["--against", "2026-01-01"], BAD_ARGUMENTS, ["evaluation.bootstrap"]),
        (without_holdout, ["--held-out"], BAD_ARGUMENTS, ["no section holdout"]),
    ],
)
def test_bad_input(
    history: Config,
    tmp_path: Path,
    local_training: None,
    spoil: Callable[[Config], Config],
    arguments: list[str],
    code: int,
    named: list[str],
) -> None:
    """Catches bad input that is found by a worker, told in a traceback, or leaves a table or a pin behind."""
    config = spoil(history)
    before = {path for path in tmp_path.rglob("*") if path.is_file()} | {tmp_path / "config.yaml"}
    result, exit_code = call(job, config, tmp_path, *DAYS, *arguments)
    assert exit_code == code, result
    assert all(word in result["error"] for word in named), result["error"]
    assert "\n" not in result["error"]
    assert {path for path in tmp_path.rglob("*") if path.is_file()} == before


def test_which_days(history: Config, tmp_path: Path, local_training: None) -> None:
    """Catches a command that measures all of history since nobody said which days."""
    result, code = call(job, history, tmp_path)
    assert code == BAD_ARGUMENTS
    assert "Give --days, or --lag" in result["error"]


def test_missing_days_are_left_out(history: Config, tmp_path: Path, local_training: None) -> None:
    """Catches --skip-missing that leaves out nothing, or a day that it does not name."""
    config = without_a_log(retired(history))
    arguments = ["--checkpoints", "2026-01-01..2026-01-03", "--days", f"{ALL_DAYS[3]}..{ALL_DAYS[4]}", "--skip-missing"]
    result, code = call(job, config, tmp_path, *arguments)
    assert code == DONE, result
    assert (result["measured"], result["days"], result["left_out"]) == (2, [ALL_DAYS[4]], [ALL_DAYS[3]])
    again, code = call(job, config, tmp_path, *arguments, "--against", "2026-01-01")
    assert (again["result"], again["measured"]) == ("nothing to do", 0)
    assert Path(again["figures"]).exists()


def test_a_damaged_file_of_the_table(history: Config, tmp_path: Path, local_training: None) -> None:
    """Catches a damaged commit that is read as an empty one, and one whose traceback names no file."""
    file = Path(history.root) / "metrics" / ALL_DAYS[3] / "000001.parquet"
    file.parent.mkdir(parents=True)
    file.write_bytes(b"PAR1")
    result, code = call(job, history, tmp_path, *DAYS)
    assert code == REFUSED
    assert f"metrics/{ALL_DAYS[3]}/000001.parquet is damaged" in result["error"]


def test_a_range_of_lags() -> None:
    """Catches a range that is read backwards, or a text that is taken for one."""
    assert (parse_lag("3"), parse_lag("1..7"), parse_lag("0..0")) == ((3, 3), (1, 7), (0, 0))
    for text in ("", "7..1", "-1", "1...3", "a"):
        with pytest.raises(ConfigError):
            parse_lag(text)
