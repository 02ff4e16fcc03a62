"""The commands: bad input ends with one clear line and the right exit code, and leaves nothing half-made."""

import argparse
import json
import os
import subprocess
import sys
from datetime import date
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from features.synthetic.logs import SyntheticConfig, write_day
from jobs import evaluate, fit_features, make_logs, train
from jobs.command import BAD_ARGUMENTS, DONE, REFUSED, outcome

ROOT = Path(__file__).parent.parent
DAY = "2026-01-01"


@pytest.fixture(scope="module")
def good_logs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("logs")
    world = SyntheticConfig(
        seed=1,
        first_day=date(2026, 1, 1),
        rows_per_day=200,
        num_users=20,
        num_videos=20,
        num_authors=5,
        files_per_day=2,
    )
    write_day(world, date.fromisoformat(DAY), folder)
    return folder


@pytest.fixture
def project(tmp_path: Path, good_logs: Path) -> dict[str, Any]:
    """A project of the demo's config, without statistics to fit, over a copy of good logs."""
    config = yaml.safe_load((ROOT / "jobs/configs/demo.yaml").read_text())
    config |= {"root": str(tmp_path / "root"), "logs": {"path": str(tmp_path / "logs")}}
    features = config["schema"]["features"]
    config["schema"]["features"] = [
        feature | ({"standardise": False} if feature["kind"] == "dense" else {})
        for feature in features
        if feature["kind"] != "bucket"
    ]
    config["schema"]["tables"] = [table for table in config["schema"]["tables"] if table["name"] != "age_bucket"]
    (tmp_path / "logs" / f"dt={DAY}").mkdir(parents=True)
    for file in (good_logs / f"dt={DAY}").iterdir():
        (tmp_path / "logs" / f"dt={DAY}" / file.name).write_bytes(file.read_bytes())
    return config


def run_train(config: dict[str, Any], folder: Path, days: str = DAY) -> tuple[dict[str, Any], int]:
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(config))
    parser = argparse.ArgumentParser()
    train.add_arguments(parser)
    return outcome(train.run, parser.parse_args(["--config", str(path), "--days", days]))


def part(folder: Path, number: int = 1) -> Path:
    return folder / "logs" / f"dt={DAY}" / f"part-{number:05d}.parquet"


def drop_column(config: dict[str, Any], folder: Path) -> None:
    pq.write_table(pq.read_table(part(folder)).drop_columns(["scene"]), part(folder))


def retype_column(config: dict[str, Any], folder: Path) -> None:
    table = pq.read_table(part(folder))
    place = table.column_names.index("duration_ms")
    pq.write_table(table.set_column(place, "duration_ms", table["duration_ms"].cast(pa.string())), part(folder))


def truncate(config: dict[str, Any], folder: Path) -> None:
    part(folder).write_bytes(part(folder).read_bytes()[:1000])


def scribble(config: dict[str, Any], folder: Path) -> None:
    part(folder).write_text("user_id,video_id\n1,2\n")


def empty_day(config: dict[str, Any], folder: Path) -> None:
    for file in part(folder).parent.glob("*.parquet"):
        pq.write_table(pq.read_table(file).slice(0, 0), file)


def missing_day(config: dict[str, Any], folder: Path) -> None:
    for file in list(part(folder).parent.iterdir()):
        file.unlink()
    part(folder).parent.rmdir()


def bad_expression(config: dict[str, Any], folder: Path) -> None:
    config["schema"]["tasks"][0]["label"] = "click ="


def misspelt_key(config: dict[str, Any], folder: Path) -> None:
    config["optimizer"]["dense"]["learning_rat"] = 0.1


def misspelt_feature_key(config: dict[str, Any], folder: Path) -> None:
    config["schema"]["features"][3]["max_lenght"] = 3


def tiny_table(config: dict[str, Any], folder: Path) -> None:
    config["schema"]["tables"][0]["num_rows"] = 1


def many_workers(config: dict[str, Any], folder: Path) -> None:
    config["workers"] = {"num": 4}


def column_wise(config: dict[str, Any], folder: Path) -> None:
    config["sharding"] = {"tables": {"user": "column_wise"}}


def replicated_adagrad(config: dict[str, Any], folder: Path) -> None:
    config["optimizer"]["tables"]["kind"] = "adagrad"
    config["sharding"] = {"tables": {"user": "data_parallel"}}


def vanishing_weight(config: dict[str, Any], folder: Path) -> None:
    config["loss_weights"] = {"unit": "step", "tasks": {"ctr": {"gamma": 0.999}}}


def no_learning_rate(config: dict[str, Any], folder: Path) -> None:
    del config["optimizer"]["tables"]["learning_rate"]


@pytest.mark.parametrize(
    ("spoil", "code", "named"),
    [
        (drop_column, REFUSED, ["part-00001.parquet", "scene"]),
        (retype_column, REFUSED, ["part-00001.parquet", "duration_ms", "string"]),
        (truncate, REFUSED, ["part-00001.parquet", "not readable Parquet"]),
        (scribble, REFUSED, ["part-00001.parquet", "not readable Parquet"]),
        (empty_day, REFUSED, [f"dt={DAY}", "no row"]),
        (missing_day, REFUSED, [f"dt={DAY}", "is missing"]),
        (bad_expression, BAD_ARGUMENTS, ["schema.tasks.0", "click =", "does not parse"]),
        (misspelt_key, BAD_ARGUMENTS, ["optimizer.dense.learning_rat", "'learning_rate'"]),
        (misspelt_feature_key, BAD_ARGUMENTS, ["schema.features.3.max_lenght", "'max_length'"]),
        (tiny_table, BAD_ARGUMENTS, ["'user'", "1 rows for 2 workers"]),
        (many_workers, BAD_ARGUMENTS, ["4 workers", "ray.num_cpus = 4"]),
        (column_wise, BAD_ARGUMENTS, ["column_wise", "rowwise_adagrad"]),
        (replicated_adagrad, BAD_ARGUMENTS, ["data_parallel", "adagrad"]),
        (vanishing_weight, BAD_ARGUMENTS, ["'ctr'", "floor"]),
        (no_learning_rate, BAD_ARGUMENTS, ["optimizer.tables.learning_rate", "missing"]),
    ],
)
def test_bad_input(project: dict[str, Any], tmp_path: Path, spoil: Any, code: int, named: list[str]) -> None:
    """Catches bad input that is found late, told in a traceback, or leaves a root behind."""
    spoil(project, tmp_path)
    result, exit_code = run_train(project, tmp_path)
    assert exit_code == code, result
    assert all(word in result["error"] for word in named), result["error"]
    assert "\n" not in result["error"]
    assert not (tmp_path / "root" / "lines" / "main" / "attempts").exists()
    assert not (tmp_path / "root" / "lines" / "main" / "checkpoints").exists()


def test_missing_statistics(tmp_path: Path, good_logs: Path) -> None:
    """Catches a run that trains on values that were never standardised."""
    config = yaml.safe_load((ROOT / "jobs/configs/demo.yaml").read_text())
    config |= {"root": str(tmp_path / "root"), "logs": {"path": str(good_logs)}}
    result, code = run_train(config, tmp_path)
    assert code == BAD_ARGUMENTS
    assert "jobs.fit_features" in result["error"]


@pytest.mark.parametrize("days", ["yesterday", "2026-02-30", "2026-01-02..2026-01-01"])
def test_bad_days(project: dict[str, Any], tmp_path: Path, days: str) -> None:
    """Catches days that are read as others, or as none."""
    result, code = run_train(project, tmp_path, days)
    assert code == BAD_ARGUMENTS
    assert repr(days) in result["error"]


def test_nothing_published(project: dict[str, Any], tmp_path: Path) -> None:
    """Catches an evaluation of a checkpoint that nobody published."""
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(project))
    parser = argparse.ArgumentParser()
    evaluate.add_arguments(parser)
    result, code = outcome(evaluate.run, parser.parse_args(["--config", str(path), "--days", DAY]))
    assert code == BAD_ARGUMENTS
    assert "nothing published" in result["error"]


def run_command(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", *arguments],
        check=False,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=400,
        env=os.environ.copy(),
    )


def test_command_line(tmp_path: Path) -> None:
    """Catches a library that prints into the JSON line, a traceback, or an exit code that says something else."""
    world = str(ROOT / "jobs/configs/demo_world.yaml")
    arguments = ["jobs.make_logs", "--world", world, "--days", "2026-11-01", "--logs", str(tmp_path)]
    done = run_command(*arguments)
    assert done.returncode == DONE, done.stderr
    assert json.loads(done.stdout)["written"] == ["2026-11-01"]
    again = json.loads(run_command(*arguments).stdout)
    assert (again["written"], again["there_already"]) == ([], ["2026-11-01"])
    failed = run_command("jobs.train", "--config", str(tmp_path / "none.yaml"), "--days", DAY)
    assert failed.returncode == BAD_ARGUMENTS
    assert "Traceback" not in failed.stderr
    assert len(failed.stdout.splitlines()) == 1
    assert "none.yaml is missing" in json.loads(failed.stdout)["error"]


def test_list_of_commands() -> None:
    """Catches a command that is not listed, or is listed without saying what it does."""
    listed = run_command("jobs").stdout
    for module in (evaluate, fit_features, make_logs, train):
        assert module.__doc__ is not None
        assert module.__doc__.splitlines()[0] in listed
