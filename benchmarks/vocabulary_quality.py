"""Vocabularies against hashing into as many rows: next-day quality on rows of new and of older videos."""

import statistics
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from features.kuairand.partitions import import_kuairand
from features.synthetic.logs import SyntheticConfig, write_day
from features.tables import VocabularyConfig
from pipeline.cluster.session import ray_session
from pipeline.config.load import load_config
from pipeline.config.project import Config, LogsConfig
from pipeline.daily.gate import quality
from pipeline.evaluation.evaluate import evaluate
from pipeline.lineage.line import Line
from pipeline.log_passes.statistics import fit_statistics
from pipeline.trainer.train_line import train

_CONFIGS = Path(__file__).parents[1] / "jobs/configs"
_SOURCE = Path(__file__).parents[2] / "shared/data/kuairand-pure"
_NEW_DAYS = 3  # a new video was first shown today or on one of so many days before
_TAIL = 16  # one in so many of a vocabulary's rows is for ids without a row of their own
_ROWS = {"kuairand": {"user": 16384, "video": 4096}, "synthetic": {"video": 1536}}  # fewer than there are ids


def run(quick: bool) -> dict[str, Any]:
    """Train both mappings on the same days, and measure each on some next days, on rows of new and of older videos.

    Args:
        quick: The synthetic log only.
    """
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in ("synthetic",) if quick else ("synthetic", "kuairand"):
            if name == "kuairand" and not _SOURCE.is_dir():
                found[name] = {"skipped": "the log is not there; it is not part of the project"}
                continue
            days = _write_logs(name, f"{folder}/{name}/logs")
            configs = _configs(name, f"{folder}/{name}")
            measured = days[-1:_NEW_DAYS:-4][::-1]
            sliced = {day: _slices(Path(folder) / name, days, day) for day in measured}
            with ray_session(configs["hashing"]):
                ways = {way: _measured(configs[way], days, measured) for way in configs}
            found[name] = {"rows": sliced, "tables": _ROWS[name]} | _summed_up(ways)
    return found


def _write_logs(name: str, logs: str) -> list[str]:
    if name == "kuairand":
        return list(import_kuairand(str(_SOURCE), logs).rows)
    world = SyntheticConfig.model_validate(yaml.safe_load((_CONFIGS / "demo_world.yaml").read_text()))
    days = [np.datetime64(world.first_day) + index for index in range(8)]
    for day in days:
        write_day(world, day.item(), Path(logs))
    return [str(day) for day in days]


def _configs(name: str, root: str) -> dict[str, Config]:
    """Return the shipped configuration with smaller tables, each way on a line of its own."""
    file = {"kuairand": "kuairand.yaml", "synthetic": "demo.yaml"}[name]
    shipped = load_config(_CONFIGS / file, [f"root={root}/root", f"logs.path={root}/logs"])
    sizes = _ROWS[name]
    hashing = _with_tables(shipped, {table: {"num_rows": rows} for table, rows in sizes.items()})
    mappings = {
        table: VocabularyConfig(kind="vocabulary", min_count=2, keep_days=3, tail_rows=rows // _TAIL)
        for table, rows in sizes.items()
    }
    vocabulary = _with_tables(hashing, {table: {"id_mapping": mapping} for table, mapping in mappings.items()})
    configs = {"hashing": hashing, "vocabulary": vocabulary}
    return {way: config.model_copy(update={"line": way}) for way, config in configs.items()}


def _with_tables(config: Config, changes: dict[str, dict[str, Any]]) -> Config:
    schema = config.log_schema
    tables = [table.model_copy(update=changes.get(table.name, {})) for table in schema.tables]
    return config.model_copy(update={"log_schema": schema.model_copy(update={"tables": tables})})


def _slices(folder: Path, days: Sequence[str], day: str) -> dict[str, int]:
    """Write a day's rows of new and of older videos as logs of their own; return their numbers of rows."""
    place = days.index(day)
    older = np.unique(np.concatenate([_read(folder, other)["video_id"] for other in days[: place - _NEW_DAYS]]))
    table = _read(folder, day)
    is_new = ~np.isin(table["video_id"].to_numpy(), older)
    for name, chosen in (("new", is_new), ("older", ~is_new)):
        target = folder / name / f"dt={day}"
        target.mkdir(parents=True)
        pq.write_table(table.filter(pa.array(chosen)), target / "part-0.parquet", row_group_size=5000)
    return {"new": int(is_new.sum()), "older": int((~is_new).sum())}


def _read(folder: Path, day: str) -> pa.Table:
    return pa.concat_tables(
        [pq.ParquetFile(file).read() for file in sorted((folder / f"logs/dt={day}").glob("*.parquet"))]
    )


def _measured(config: Config, days: Sequence[str], measured: Sequence[str]) -> dict[str, Any]:
    """Return qualities by slice, day and task, and the bytes of a checkpoint."""
    line = Line.of(config.root, config.line)
    fit_statistics(config, days[:3])
    found: dict[str, Any] = {"new": {}, "older": {}}
    checkpoint, trained = "", 0
    for day in measured:
        for piece in _pieces(config, days[trained : days.index(day)]):
            checkpoint = train(config, piece, 1)["checkpoint"]
        trained = days.index(day)
        for name in ("new", "older"):
            logs = LogsConfig(path=config.logs.path.removesuffix("logs") + name)
            tasks = evaluate(config.model_copy(update={"logs": logs}), [day], checkpoint, [])["tasks"]
            found[name][day] = {task["task"]: quality(task["model"] | {"kind": task["kind"]}) for task in tasks}
    manifest = line.read_manifest(checkpoint)
    assert manifest is not None
    return found | {"checkpoint_bytes": sum(mark.bytes for mark in manifest.files.values())}


def _pieces(config: Config, days: Sequence[str]) -> Iterator[Sequence[str]]:
    """Return the days per command: a vocabulary counts all of one command together, hashing does not depend on it."""
    return ([day] for day in days) if config.log_schema.vocabularies else iter([days])


def _summed_up(ways: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Return mean quality over the days by slice and task, of both ways."""
    table = {}
    for piece in ("new", "older"):
        days = ways["hashing"][piece]
        tasks = list(next(iter(days.values())))
        table[piece] = {task: {way: _mean(found[piece], task) for way, found in ways.items()} for task in tasks}
    return {
        "mean next-day quality (AUC, R2)": table,
        "by day": {way: {piece: found[piece] for piece in ("new", "older")} for way, found in ways.items()},
        "checkpoint bytes": {way: found["checkpoint_bytes"] for way, found in ways.items()},
    }


def _mean(by_day: dict[str, dict[str, float | None]], task: str) -> float | None:
    known = [value for tasks in by_day.values() if (value := tasks[task]) is not None]
    return round(statistics.mean(known), 4) if known else None
