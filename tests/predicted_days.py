"""Directories as `jobs.predict` writes them, made by hand, and a configuration that ranks them."""

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from jobs.command import outcome

ROOT = Path(__file__).parents[1]
KEYS = ("user_id", "video_id", "duration_ms")
TASKS = {"ctr": "binary", "vtr": "binary", "vcr": "regression", "shr": "binary"}
RANKING = {
    "kind": "product",
    "exponents": {"ctr": 1.0, "shr": 0.5},
    "duration": {"column": "duration_ms", "function": "log", "scale": 1000.0},
    "top": {"by": "user_id"},
}


def write_predictions(
    folder: Path,
    days: Mapping[str, Sequence[dict[str, Any]]],
    *,
    labels: bool = False,
    keys: Sequence[str] = KEYS,
) -> None:
    """Write the columns of each file of each day, and the record."""
    for day, files in days.items():
        (folder / f"dt={day}").mkdir(parents=True, exist_ok=True)
        for number, columns in enumerate(files):
            pq.write_table(pa.table(columns), folder / f"dt={day}/part-{number:05d}.parquet", row_group_size=100)
    record = {"version": 1, "line": "main", "checkpoint": "c", "checkpoint_digest": "d", "keys": list(keys)}
    record |= {"tasks": TASKS, "labels": labels}
    record |= {"days": {day: {"rows": sum(len(f["user_id"]) for f in files)} for day, files in days.items()}}
    (folder / "_predictions.json").write_text(json.dumps(record))


def write_config(path: Path, ranking: dict[str, Any] | None) -> None:
    """Write the configuration of the demo with a section `ranking`."""
    config = yaml.safe_load((ROOT / "jobs/configs/demo.yaml").read_text())
    path.write_text(yaml.safe_dump(config | ({"ranking": ranking} if ranking else {})))


def run_command(module: ModuleType, *arguments: str) -> tuple[dict[str, Any], int]:
    """Run a command in this process."""
    parser = argparse.ArgumentParser()
    module.add_arguments(parser)
    return outcome(module.run, parser.parse_args(list(arguments)))
