"""Lines with checkpoints that hold no tensors, their attempts and publications."""

import hashlib
import uuid
from pathlib import Path
from typing import Any

import pytest
from records import manifest_of, write_manifest

from pipeline.lineage.line import Line
from pipeline.lineage.records import FileMark, Manifest, Published

DAYS = ["2026-03-01", "2026-03-02"]


@pytest.fixture
def line(tmp_path: Path) -> Line:
    return Line.of(str(tmp_path), "main")


@pytest.fixture(params=["local", "s3"])
def any_line(request: pytest.FixtureRequest, tmp_path: Path) -> Line:
    root = str(tmp_path) if request.param == "local" else request.getfixturevalue("s3_root")
    return Line.of(f"{root}/{uuid.uuid4().hex}", "main")


def save_checkpoint(line: Line, step: int, *, day: str = DAYS[0], attempt: str = "0001", **changes: Any) -> str:
    """Write a checkpoint of two files."""
    name = f"checkpoints/{day}/{attempt}/{step:010d}"
    files = {}
    for file in ("__0_0.distcp", ".metadata"):
        data = f"{name} {file}".encode() * 100
        line.storage.write(f"{name}/{file}", data)
        files[file] = FileMark(bytes=len(data), sha256=hashlib.sha256(data).hexdigest())
    config = {"seed": 3, "ingest": {"shuffle": {"rows": True}}}
    write_manifest(line, name, manifest_of(step=step, day=day, attempt=attempt, files=files, config=config), **changes)
    return name


def begin_run(
    line: Line, days: list[str] = DAYS[:1], start: Manifest | None = None, run: str | None = None, **record: Any
) -> str:
    """Take the line over, from a checkpoint or from nothing."""
    return line.begin_attempt(days, run or uuid.uuid4().hex, lambda: start, **record)[0]


def publish_day(line: Line, day: str, checkpoint: str, run: str, generation: int = 1) -> None:
    entry = Published(day=day, generation=generation, checkpoint=checkpoint)
    line.publish(entry, line.state().serial, run)
