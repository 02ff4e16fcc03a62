"""Runs that take long enough to be disturbed, and the training command in processes of its own."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from small_runs import make_config

from features.synthetic.logs import SyntheticConfig, write_day
from pipeline.config.project import Config

DAY = "2026-01-01"
ROWS, BATCH, EVERY = 12_000, 32, 25


def write_log_of(folder: Path, rows: int) -> Path:
    """One day in 3 files, row groups of 200 rows, units of 100."""
    world = SyntheticConfig(
        seed=6,
        first_day=date.fromisoformat(DAY),
        rows_per_day=rows,
        num_users=200,
        num_videos=200,
        num_authors=20,
        files_per_day=3,
        row_group_rows=200,
    )
    write_day(world, date.fromisoformat(DAY), folder)
    return folder


@pytest.fixture(scope="module")
def logs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_log_of(tmp_path_factory.mktemp("logs"), ROWS)


def config_of(logs: Path, root: Path, num: int = 2, **sections: Any) -> Config:
    workers = {"num": num, "timeout_s": 60, "max_failures": 2} | sections.pop("workers", {})
    ingest = {"batch_size": BATCH, "unit": {"max_rows": 100}, "shuffle": {"interleave": 2}, "object_store_mb": 8}
    ingest |= sections.pop("ingest", {})
    every = {"every_steps": EVERY, "keep": 100, "timeout_s": 60} | sections.pop("checkpoint", {})
    config = make_config(logs, root, workers=workers, ingest=ingest, checkpoint=every, **sections)
    schema = config.log_schema.model_dump()
    schema["features"] = [feature for feature in schema["features"] if feature["kind"] != "dense"]
    return config.model_copy(update={"log_schema": type(config.log_schema).model_validate(schema)})


@dataclass
class Command:
    """`python -m jobs.train` in a process of its own, with a Ray of its own."""

    process: subprocess.Popen[str]
    log: Path

    def wait(self, timeout_s: float = 420) -> dict[str, Any]:
        """Its JSON line, once it has ended; `{}` if it left none."""
        out, _ = self.process.communicate(timeout=timeout_s)
        return json.loads(out.splitlines()[-1]) if out.strip() else {}

    def started(self) -> list[psutil.Process]:
        """All processes that it has started and that live."""
        return psutil.Process(self.process.pid).children(recursive=True)


@pytest.fixture
def start_command(tmp_path: Path) -> Iterator[Callable[[Config], Command]]:
    """Starts commands; whatever they leave behind is ended, by process id."""
    started: list[Command] = []
    seen: dict[int, psutil.Process] = {}

    def start(config: Config) -> Command:
        for command in started:
            if command.process.poll() is None:
                seen.update({process.pid: process for process in command.started()})
        file = tmp_path / f"config-{len(started)}.yaml"
        file.write_text(yaml.safe_dump(config.model_dump(mode="json", by_alias=True, exclude_defaults=True)))
        log = tmp_path / f"log-{len(started)}"
        with log.open("w") as stderr:
            arguments = [sys.executable, "-m", "jobs.train", "--config", str(file), "--days", DAY]
            process = subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=stderr, text=True)
        started.append(Command(process, log))
        return started[-1]

    yield start
    for command in started:
        if command.process.poll() is None:
            seen.update({process.pid: process for process in command.started()})
            command.process.kill()
            command.process.wait()
    for process in seen.values():
        if process.is_running():
            process.kill()
