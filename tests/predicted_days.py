"""Directories as `jobs.predict` writes them, made by hand, and a configuration that ranks them."""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from jobs.command import outcome
from pipeline.scoring.written_predictions import AboutPredictions, PredictedDay, PredictionFiles
from pipeline.storage.files import Storage

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
    written = PredictionFiles(Storage(str(folder)))
    about = AboutPredictions(
        line="main", checkpoint="c", checkpoint_digest="d", keys=tuple(keys), tasks=TASKS, labels=labels
    )
    change_record(folder, about)
    for day, files in days.items():
        rows = sum(len(columns["user_id"]) for columns in files)
        names = {f"dt={day}/part-{number:05d}.parquet": "1" for number in range(len(files))}
        written.complete(PredictedDay(day=day, rows=rows, left_out={}, files=names), names)


def change_record(folder: Path, about: AboutPredictions | None = None, **changes: Any) -> None:
    """Write what the predictions are of, or change it."""
    found = about or PredictionFiles(Storage(str(folder))).about().model_copy(update=changes)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "_predictions.json").write_bytes(found.to_bytes())


def write_config(path: Path, ranking: dict[str, Any] | None) -> None:
    """Write the configuration of the demo with a section `ranking`."""
    config = yaml.safe_load((ROOT / "jobs/configs/demo.yaml").read_text())
    path.write_text(yaml.safe_dump(config | ({"ranking": ranking} if ranking else {})))


def run_command(module: ModuleType, *arguments: str) -> tuple[dict[str, Any], int]:
    """Run a command in this process."""
    parser = argparse.ArgumentParser()
    module.add_arguments(parser)
    return outcome(module.run, parser.parse_args(list(arguments)))
