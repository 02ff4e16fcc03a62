"""A short history for backfills: logs of six days, and a line whose checkpoints are of the first three."""

import shutil
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml
from local_training import on_processes
from predicted_days import run_command
from small_runs import make_config

from features.synthetic.logs import SyntheticConfig, write_day
from pipeline.config.project import Config
from pipeline.log_passes.statistics import fit_statistics
from pipeline.trainer.train_line import train

ALL_DAYS = [f"2026-01-0{number}" for number in range(1, 7)]
TRAINED, ROWS = ALL_DAYS[:3], 600


def write_history(folder: Path, seed: int = 5) -> Path:
    world = SyntheticConfig(
        seed=seed,
        first_day=date(2026, 1, 1),
        rows_per_day=ROWS,
        num_users=100,
        num_videos=100,
        num_authors=20,
        files_per_day=2,
        row_group_rows=200,
    )
    for day in ALL_DAYS:
        write_day(world, date.fromisoformat(day), folder)
    return folder


def config_of(logs: Path, root: Path, **sections: Any) -> Config:
    evaluation = {
        "bootstrap": {"by": "user_id", "resamples": 20},
        "grouped": {"by": "user_id", "at": [5]},
        "by": ["scene", {"name": "length", "value": "duration_ms / 1000", "boundaries": [10, 30]}],
    }
    holdout = {"column": "user_id", "share": 0.2}
    return make_config(logs, root, **{"evaluation": evaluation, "holdout": holdout} | sections)


def train_history(config: Config, days: Sequence[str] = TRAINED) -> Config:
    """A line with a published checkpoint of each of the first days."""
    with on_processes():
        fit_statistics(config, days)
        for day in days:
            train(config, [day], passes=1)
    return config


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Config:
    return train_history(config_of(write_history(tmp_path_factory.mktemp("logs")), tmp_path_factory.mktemp("root")))


@pytest.fixture
def history(trained: Config, tmp_path: Path) -> Config:
    """A copy of root and logs that a test may change."""
    shutil.copytree(trained.root, tmp_path / "root", ignore=shutil.ignore_patterns("metrics", "reports"))
    shutil.copytree(trained.logs.path, tmp_path / "logs")
    logs = trained.logs.model_copy(update={"path": str(tmp_path / "logs")})
    return trained.model_copy(update={"root": str(tmp_path / "root"), "logs": logs})


def call(job: ModuleType, config: Config, folder: Path, *arguments: str) -> tuple[dict[str, Any], int]:
    """A command in this process: its JSON line, and its exit code."""
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(config.model_dump(mode="json", by_alias=True, exclude_defaults=True)))
    return run_command(job, "--config", str(path), *arguments)
