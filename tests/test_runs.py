"""Whole runs on a real Ray: lanes as dealt, a day trained once, resumed bit for bit, measured, and refused when bad."""

import json
import math
import shutil
import sys
import time
from dataclasses import replace
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray
import torch
from local_training import on_processes
from records import write_manifest, write_position
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

from features.encoding import Encoder
from features.errors import DataError
from features.synthetic.logs import SyntheticConfig, write_day
from pipeline.cluster.progress import ProgressBoard
from pipeline.cluster.session import run_workers
from pipeline.config.load import parse_config
from pipeline.config.project import Config
from pipeline.evaluation.evaluate import evaluate
from pipeline.evaluation.table import metrics_table
from pipeline.ingest import receive
from pipeline.ingest.cursor import StoredCursor
from pipeline.ingest.datasource import Parcel
from pipeline.ingest.parts import whole_days
from pipeline.ingest.plan import RunPlan, StreamStart
from pipeline.ingest.receive import read_segments, receive_blocks
from pipeline.ingest.units import check_days
from pipeline.lineage.audit import audit_line
from pipeline.lineage.choose_start import start_of
from pipeline.lineage.ledger import Ledger
from pipeline.lineage.line import Line
from pipeline.lineage.manifest import declared
from pipeline.lineage.records import Latest, RunScope
from pipeline.lineage.stored_checkpoint import CURSOR, LANES, MANIFEST
from pipeline.log_passes.admission import Admission
from pipeline.log_passes.statistics import fit_statistics
from pipeline.storage.files import Storage
from pipeline.trainer.train import train_worker
from pipeline.trainer.train_job import TrainJob
from pipeline.trainer.train_line import train

DAYS = ["2026-01-01", "2026-01-02"]
ROWS_PER_DAY = 3000

ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # Ray's workers cannot import this file


@pytest.fixture(scope="module")
def logs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two training days and a test day; row groups of 300 rows, cut to units of at most 200."""
    folder = tmp_path_factory.mktemp("logs")
    world = SyntheticConfig(
        seed=5,
        first_day=date(2026, 1, 1),
        rows_per_day=ROWS_PER_DAY,
        num_users=200,
        num_videos=200,
        num_authors=20,
        files_per_day=3,
        row_group_rows=300,
    )
    for day in [*DAYS, "2026-01-03"]:
        write_day(world, date.fromisoformat(day), folder)
    return folder


def make_config(logs: Path, root: Path, **sections: Any) -> Config:
    ids = [{"kind": "id", "name": name, "table": name.removesuffix("_id")} for name in ("user_id", "video_id")]
    return parse_config(
        {
            "name": "runs",
            "root": str(root),
            "seed": 11,
            "logs": {"path": str(logs)},
            "schema": {
                "tables": [
                    {"name": "user", "num_rows": 500, "dim": 8},
                    {"name": "video", "num_rows": 500, "dim": 8},
                    {"name": "context", "num_rows": 64, "dim": 8},
                ],
                "features": [
                    *ids,
                    *({"kind": "id", "name": name, "table": "context"} for name in ("scene", "slot", "device")),
                    {"kind": "sequence", "name": "history_video_id", "table": "video", "max_length": 10},
                    {"kind": "dense", "name": "duration_ms", "log1p": True},
                ],
                "tasks": [
                    {"name": "ctr", "label": "click", "truth": "true_ctr"},
                    {
                        "name": "vcr",
                        "kind": "regression",
                        "label": "clip(play_ms / duration_ms, 0, 1)",
                        "space": "played == 1",
                        "truth": "true_vcr",
                    },
                ],
            },
            "model": {
                "network": {"kind": "cgc", "expert_layers": [16], "num_experts_per_task": 1, "num_shared_experts": 1},
                "towers": [8],
                "dropout": 0.1,
            },
            "optimizer": {"tables": {"learning_rate": 0.1}, "dense": {"learning_rate": 0.01}},
            "ingest": {"batch_size": 64, "unit": {"max_rows": 200}, "shuffle": {"interleave": 2}},
            "workers": {"num": 2, "timeout_s": 60, "max_failures": 0},
            "ray": {"num_cpus": 5},
            "evaluation": {"popularity": "video_id"},
        }
        | sections,
        "test",
    )


@pytest.fixture(scope="module")
def trained(logs: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Config, dict[str, Any]]:
    """Two days trained without a disturbance, with checkpoints every 10 steps."""
    config = make_config(logs, tmp_path_factory.mktemp("root"), checkpoint={"every_steps": 10, "keep": 10})
    with on_processes():
        fit_statistics(config, DAYS)
        return config, train(config, DAYS, passes=1)


def weights(config: Config, checkpoint: str, folder: Path) -> dict[str, torch.Tensor]:
    """All tensors of a checkpoint, by name."""
    path = folder / "whole.pt"
    dcp_to_torch_save(Line.of(config.root, config.line).storage.path(checkpoint), path)
    found: dict[str, torch.Tensor] = {}

    def walk(prefix: str, value: Any) -> None:
        if isinstance(value, dict):
            for name, inner in value.items():
                walk(f"{prefix}/{name}", inner)
        elif isinstance(value, torch.Tensor):
            found[prefix] = value

    walk("", torch.load(path, weights_only=False))
    return found


def plan_of(config: Config, days: list[str], units: int = 200) -> RunPlan:
    encoder = Encoder(config.log_schema, None)
    day_logs = check_days(Storage(config.logs.path), days, units, config.log_schema, encoder.columns)
    return RunPlan(
        Storage(config.logs.path), whole_days(day_logs), 1, encoder, config.ingest, config.seed, (StreamStart,)
    )


@ray.remote(num_cpus=0.5)
def _receive(split: Any, delay_s: float) -> list[tuple[str, list[int]]]:
    received = []
    for segment in read_segments(receive_blocks(split, 1)):
        units = []
        for parcel in segment.parcels:
            units.append(parcel.unit)
            time.sleep(delay_s)
        received.append((segment.header.day, units))
    return received


def _without_statistics(config: Config) -> Config:
    schema = config.log_schema.model_dump()
    schema["features"] = [feature for feature in schema["features"] if feature["kind"] != "dense"]
    return config.model_copy(update={"log_schema": type(config.log_schema).model_validate(schema)})


@pytest.mark.ray
@pytest.mark.parametrize("num_ranks", [1, 2, 3])
def test_ray_deals_the_lanes(logs: Path, tmp_path: Path, ray_cluster: None, num_ranks: int) -> None:
    """Catches a Ray whose splitter no longer deals one-row blocks round and round, or that splits or merges blocks."""
    config = _without_statistics(make_config(logs, tmp_path))
    plan = plan_of(config, DAYS)
    expected = [(header.day, header.lanes) for _, header in plan.segments(plan.begin_attempts(), num_ranks)]
    splits = plan.begin_stream(num_ranks).streaming_split(num_ranks, equal=False)
    # One slow consumer: who gets what must not depend on who is fast.
    delays = [0.02 if rank == 0 else 0.0 for rank in range(num_ranks)]
    received = ray.get([_receive.remote(split, delay) for split, delay in zip(splits, delays, strict=True)])
    for place, (day, lanes) in enumerate(expected):
        assert [rank[place][0] for rank in received] == [day] * num_ranks
        assert [rank[place][1] for rank in received] == lanes


@pytest.mark.ray
def test_equal_split_loses_parcels(logs: Path, tmp_path: Path, ray_cluster: None) -> None:
    """The negative control of the stream: `equal=True`, Ray Train's own way, drops what does not divide evenly."""
    config = _without_statistics(make_config(logs, tmp_path))
    plan = plan_of(config, DAYS[:1])
    dataset = plan.begin_stream(1)
    num_parcels = len(plan.entries(plan.segments(plan.begin_attempts(), 1), 1))
    num_ranks = next(num for num in range(2, num_parcels) if num_parcels % num)
    splits = dataset.streaming_split(num_ranks, equal=True)
    counts = ray.get([_count_blocks.remote(split) for split in splits])
    assert sum(counts) < num_parcels


@ray.remote(num_cpus=0.5)
def _count_blocks(split: Any) -> int:
    return sum(1 for _ in receive_blocks(split, 1))


def test_every_row_is_trained_once(trained: tuple[Config, dict[str, Any]]) -> None:
    """Catches a run that reports what it did not do: rows, spaces, cursor and LATEST are read from its checkpoints."""
    config, result = trained
    line = Line.of(config.root, config.line)
    assert result["result"] == "trained"
    assert result["rows"] == 2 * ROWS_PER_DAY
    latest = line.latest()
    assert latest is not None
    assert (latest.day, latest.checkpoint) == (DAYS[-1], result["checkpoint"])
    manifest = line.read_manifest(result["checkpoint"])
    assert manifest is not None
    table = pq.read_table(Path(config.logs.path) / f"dt={DAYS[-1]}")
    assert manifest.rows == ROWS_PER_DAY
    assert manifest.rows_in_space == {"ctr": ROWS_PER_DAY, "vcr": int(np.sum(table["played"].to_numpy()))}
    assert sum(count for count, _ in line.cursor(manifest).units.values()) == ROWS_PER_DAY


def test_the_audit_of_a_line(trained: tuple[Config, dict[str, Any]], tmp_path: Path) -> None:
    """Catches an audit that believes what the checkpoint says of itself."""
    config, result = trained
    found = audit_line(config, None)
    assert (found["result"], found["days"], found["rows"]) == ("every row once", DAYS, 2 * ROWS_PER_DAY)
    line = Line.of(config.root, config.line)
    within = next(m for m in line.manifests() if not m.complete and m.day == DAYS[1])
    assert audit_line(config, within.checkpoint)["rows"] == ROWS_PER_DAY + within.rows
    shutil.copytree(config.root, tmp_path / "root")
    cut = config.model_copy(update={"root": str(tmp_path / "root")})
    storage = Line.of(cut.root, cut.line).storage
    parent = str(within.parent)
    hidden = storage.read(f"{parent}/manifest.json")
    storage.remove(f"{parent}/manifest.json")
    assert audit_line(cut, None)["result"] == f"every row once since {DAYS[1]}; {parent} is gone"
    storage.write(f"{parent}/manifest.json", hidden)
    for checkpoint, change, expected in (
        (result["checkpoint"], _one_row_less, "199 rows trained of 200"),
        (within.checkpoint, _another_sum, "rows trained, but not each of them once"),
        (result["checkpoint"], _another_size, "the files of the log are not those"),
    ):
        names = [f"{checkpoint}/{file}" for file in (MANIFEST, CURSOR, LANES)]
        written = [storage.read(name) for name in names]
        change(Line.of(cut.root, cut.line), checkpoint)
        with pytest.raises(DataError, match=expected):
            audit_line(cut, checkpoint)
        for name, data in zip(names, written, strict=True):
            storage.write(name, data)


def _one_row_less(line: Line, checkpoint: str) -> None:
    cursor = _cursor(line, checkpoint)
    key = next(key for key, (count, _) in cursor.units.items() if count == 200)
    _write_cursor(line, checkpoint, cursor.units | {key: (199, cursor.units[key][1])})


def _another_sum(line: Line, checkpoint: str) -> None:
    cursor = _cursor(line, checkpoint)
    key, (count, total) = next(iter(cursor.units.items()))
    _write_cursor(line, checkpoint, cursor.units | {key: (count, total ^ 1)})


def _another_size(line: Line, checkpoint: str) -> None:
    manifest = line.read_manifest(checkpoint)
    assert manifest is not None
    files = {file: f"1{mark}" for file, mark in manifest.files_of_log.items()}
    write_manifest(line, checkpoint, manifest, files_of_log=files)


def _cursor(line: Line, checkpoint: str) -> StoredCursor:
    return StoredCursor.from_arrow(line.storage.read(f"{checkpoint}/{CURSOR}"))


def _write_cursor(line: Line, checkpoint: str, units: dict[str, tuple[int, int]]) -> None:
    manifest = line.read_manifest(checkpoint)
    assert manifest is not None
    write_position(
        line, checkpoint, replace(_cursor(line, checkpoint), units=units), [*map(list, line.lanes(manifest))]
    )


@pytest.mark.parametrize("num", [1, 2, 3])
def test_days_of_all_sizes_twice(logs: Path, tmp_path: Path, local_training: None, num: int) -> None:
    """Catches a rank without a row, a day that fills its batches exactly, or a second pass, that loses or hangs."""
    table = pq.read_table(logs / f"dt={DAYS[0]}")
    sizes = {
        "2026-01-01": [[1]],  # one row in all
        "2026-01-02": [[64 * num]],  # one batch of every rank
        "2026-01-03": [[40], [7]],  # fewer units than workers, where there are 3
        "2026-01-04": [[200, 1, 90, 33], [3], [150, 2]],
    }
    for day, files in sizes.items():
        (tmp_path / f"logs/dt={day}").mkdir(parents=True)
        for part, groups in enumerate(files):
            with pq.ParquetWriter(tmp_path / f"logs/dt={day}/part-{part}.parquet", table.schema) as writer:
                for rows in groups:
                    writer.write_table(table.slice(part * 500, rows), row_group_size=rows)
    workers = {"num": num, "timeout_s": 60, "max_failures": 0}
    config = _without_statistics(make_config(tmp_path / "logs", tmp_path / "root", workers=workers))
    result = train(config, sorted(sizes), passes=2)
    expected = [sum(map(sum, files)) for _, files in sorted(sizes.items())]
    assert result["rows"] == 2 * sum(expected)
    found = audit_line(config, None)
    assert (found["days"], found["rows"]) == (2 * sorted(sizes), result["rows"])
    line = Line.of(config.root, config.line)
    newest = line.newest()
    assert newest is not None
    lineage = list(line.lineage(newest))
    assert [m.rows for m in reversed(lineage)] == 2 * expected
    assert [m.rows_in_space["ctr"] for m in reversed(lineage)] == 2 * expected
    longest = [max(sum(map(_rows_of, lane)) for lane in line.lanes(m)) for m in lineage]
    assert lineage[0].step == sum(math.ceil(rows / 64) for rows in longest)


def _rows_of(key: str) -> int:
    """Rows of a unit, by its key."""
    first, stop = key.rpartition("[")[2].removesuffix("]").split(":")
    return int(stop) - int(first)


def test_a_published_day_is_not_left_out(
    trained: tuple[Config, dict[str, Any]], tmp_path: Path, local_training: None
) -> None:
    """The checkpoint of yesterday is damaged, and today is trained from the day before: a day's rows are lost."""
    config, result = trained
    shutil.copytree(config.root, tmp_path / "root")
    cut = config.model_copy(update={"root": str(tmp_path / "root")})
    line = Line.of(cut.root, cut.line)
    for manifest in list(line.manifests()):  # as two daily commands would have written them
        if not manifest.complete:
            line.remove(manifest.checkpoint)
            continue
        write_manifest(line, manifest.checkpoint, manifest, run=RunScope(days=(manifest.day,), passes=1))
    start = start_of(declared(cut), line, ["2026-01-03"], 1)  # negative control
    assert start is not None
    assert start.checkpoint == result["checkpoint"]
    line.storage.write(f"{result['checkpoint']}/__0_0.distcp", b"half")
    with pytest.raises(DataError, match=r"which is damaged or gone: restore its files, or go back to an earlier day"):
        train(cut, ["2026-01-03"], passes=1)


def test_nothing_to_do(trained: tuple[Config, dict[str, Any]]) -> None:
    """Catches a second run over the same days that trains them again."""
    config, result = trained
    assert train(config, DAYS, passes=1) == {
        "result": "nothing to do",
        "checkpoint": result["checkpoint"],
        "step": result["step"],
    }


def _unpublish(line: Line) -> None:
    """As if the run had been cut off before it published."""
    state = line.state()
    line.storage.write("LATEST", Latest(fence=state.fence, holder=state.holder).to_bytes())


def test_resume_is_bit_identical(trained: tuple[Config, dict[str, Any]], tmp_path: Path, local_training: None) -> None:
    """Catches rows lost, doubled or reordered by a resume, state that is not restored, dice thrown anew."""
    config, result = trained
    root = tmp_path / "root"
    shutil.copytree(config.root, root)
    cut = config.model_copy(update={"root": str(root)})
    line = Line.of(cut.root, cut.line)
    complete = next(m for m in line.manifests() if m.complete and m.day == DAYS[0])
    for manifest in list(line.manifests()):
        if manifest.step >= complete.step:
            line.storage.remove(manifest.checkpoint)
    _unpublish(line)
    resumed_from = line.newest()
    assert resumed_from is not None
    assert not resumed_from.complete
    assert 0 < resumed_from.rows < ROWS_PER_DAY
    write_manifest(line, resumed_from.checkpoint, resumed_from, seconds=1000.0)
    again = train(cut, DAYS, passes=1)
    seconds = {entry.day: entry.train_seconds for entry in Ledger(line).chain()}
    assert seconds[DAYS[0]] > 1000 > seconds[DAYS[1]]  # the whole day's, with those of the attempt before
    assert again["step"] == result["step"]
    before, after = weights(config, result["checkpoint"], tmp_path), weights(cut, again["checkpoint"], tmp_path)
    assert set(before) == set(after)
    assert any("momentum1" in name for name in before)
    assert [name for name in before if not torch.equal(before[name], after[name])] == []
    metrics = [evaluate(of, ["2026-01-03"], None, [])["tasks"] for of in (config, cut)]
    assert metrics[0] == metrics[1]


def test_resume_on_another_number_of_workers(
    trained: tuple[Config, dict[str, Any]], tmp_path: Path, local_training: None
) -> None:
    """Catches a resume that keeps the old lanes on new ranks, or tables that cannot be resharded."""
    config, _ = trained
    root = tmp_path / "root"
    shutil.copytree(config.root, root)
    workers = config.workers.model_copy(update={"num": 3})
    cut = config.model_copy(update={"root": str(root), "workers": workers})
    line = Line.of(cut.root, cut.line)
    for manifest in list(line.manifests()):
        if manifest.complete and manifest.day == DAYS[1]:
            line.storage.remove(manifest.checkpoint)
    _unpublish(line)
    again = train(cut, DAYS, passes=1)  # the run itself audits the day and would not have ended
    manifest = line.read_manifest(again["checkpoint"])
    assert manifest is not None
    assert manifest.rows == ROWS_PER_DAY
    assert len(line.lanes(manifest)) == 3


def test_evaluate(trained: tuple[Config, dict[str, Any]], local_training: None) -> None:
    """Catches an evaluation over rows outside a task's space, over padding, or of other rows than the baselines'."""
    config, result = trained
    found = evaluate(config, ["2026-01-03"], None, DAYS)
    assert found["checkpoint"] == result["checkpoint"]
    played = int(np.sum(pq.read_table(Path(config.logs.path) / "dt=2026-01-03")["played"].to_numpy()))
    for entry, rows in zip(found["tasks"], (ROWS_PER_DAY, played), strict=True):
        assert [entry[name]["rows"] for name in ("model", "popularity", "truth")] == [rows] * 3
    ctr, vcr = found["tasks"]
    assert 0.5 < ctr["model"]["auc"] < ctr["truth"]["auc"] < 1
    assert 0.7 < ctr["truth"]["calibration"] < 1.3
    assert vcr["truth"]["mse"] < vcr["model"]["mse"]
    assert "ctr" in metrics_table(found)
    json.dumps(found)


def _train_and_watch(settings: dict[str, TrainJob]) -> dict[str, Any]:
    """`train_worker`, noting when each unit was read; it begins late, so that reading has time to run ahead."""
    time.sleep(5)
    reads: list[float] = []
    original = Parcel.from_block.__func__  # pyright: ignore[reportFunctionMemberAccess]

    def from_block(cls: type[Parcel], block: pa.Table) -> Parcel:
        parcel = original(cls, block)
        if parcel.kind == "unit":
            reads.append(parcel.read_at)
        return parcel

    receive.Parcel.from_block = classmethod(from_block)  # pyright: ignore[reportAttributeAccessIssue]
    return train_worker(settings) | {"reads": reads}


@pytest.mark.ray
def test_first_step_comes_early(tmp_path: Path, ray_cluster: None) -> None:
    """Catches an ingest that reads the day, or a large part of it, before the model sees a row."""
    world = SyntheticConfig(
        seed=5,
        first_day=date(2026, 1, 1),
        rows_per_day=120_000,
        num_users=200,
        num_videos=200,
        num_authors=20,
        files_per_day=2,
        row_group_rows=500,
    )
    write_day(world, date(2026, 1, 1), tmp_path / "logs")
    ingest = {"batch_size": 512, "unit": {"max_rows": 500}, "read_tasks": 1, "object_store_mb": 1, "prefetch_units": 1}
    config = _without_statistics(make_config(tmp_path / "logs", tmp_path / "root", ingest=ingest))
    plan = plan_of(config, DAYS[:1], units=500)
    line = Line.of(config.root, config.line)
    attempt, _ = line.begin_attempt(DAYS[:1], "a", lambda _: None)
    plan = replace(plan, starts=(partial(StreamStart, attempt),))
    board = ProgressBoard.remote()
    schema, admission = config.log_schema, ray.put(Admission({}, {}, {}))
    job = TrainJob(config, None, line, tuple(DAYS[:1]), plan.parts, 1, schema, admission, board)
    found = run_workers(config, plan, _train_and_watch, [job], board)
    units = len(plan.parts[0].log.units)
    early = sum(read_at < found["reached"][0]["first_step_at"] for read_at in found["reads"])
    assert len(found["reads"]) > 50
    assert early * 2 < units / 10, f"each of 2 ranks had {early} of the day's {units} units before its first step"


def test_loss_that_is_not_finite_stops_the_run(logs: Path, tmp_path: Path, local_training: None) -> None:
    """Catches a diverged run that goes on, is restarted for nothing, or leaves a checkpoint of NaN."""
    rates = {"tables": {"learning_rate": 1e30}, "dense": {"kind": "sgd", "learning_rate": 1e30}}
    config = _without_statistics(make_config(logs, tmp_path, optimizer=rates))
    with pytest.raises(DataError, match="at step 1, in the rows of dt=2026-01-01/part-0000"):
        train(config, DAYS[:1], passes=1)
    assert not list(Line.of(config.root, config.line).manifests())


def _with_bad_file(logs: Path, folder: Path, change: Any) -> Path:
    shutil.copytree(logs / f"dt={DAYS[0]}", folder / f"dt={DAYS[0]}")
    path = folder / f"dt={DAYS[0]}" / "part-00002.parquet"
    pq.write_table(change(pq.read_table(path)), path, row_group_size=300)
    return folder


def _set(table: pa.Table, name: str, row: int, value: Any) -> pa.Table:
    values = table[name].to_pylist()
    values[row] = value
    return table.set_column(table.column_names.index(name), name, pa.array(values, table.schema.field(name).type))


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (partial(_set, name="click", row=650, value=2), "label 'click' is 2 at row"),
        (partial(_set, name="history_video_id", row=650, value=None), "'history_video_id' has a null list at row"),
    ],
)
def test_bad_unit_is_refused(logs: Path, tmp_path: Path, local_training: None, change: Any, expected: str) -> None:
    """Catches a bad value that hangs the other ranks, is retried for minutes, or leaves a published model behind."""
    config = _without_statistics(make_config(_with_bad_file(logs, tmp_path / "logs", change), tmp_path / "root"))
    with pytest.raises(DataError, match=expected) as error:
        train(config, DAYS[:1], passes=1)
    assert "part-00002.parquet, row group 2" in str(error.value)
    assert "\n" not in str(error.value)
    line = Line.of(config.root, config.line)
    assert line.latest() is None
    assert not list(line.manifests())


@pytest.mark.parametrize("num", [1, 2])
def test_bad_unit_is_quarantined(logs: Path, tmp_path: Path, local_training: None, num: int) -> None:
    """Catches a unit that is passed over without a trace, takes others with it, or comes back after a restart."""
    bad = _with_bad_file(logs, tmp_path / "logs", partial(_set, name="click", row=650, value=2))
    ingest = {"batch_size": 64, "unit": {"max_rows": 200}, "on_bad_unit": "quarantine", "max_quarantined": 0.1}
    sections = {"ingest": ingest, "workers": {"num": num, "timeout_s": 60}, "checkpoint": {"every_steps": 15}}
    config = _without_statistics(make_config(bad, tmp_path / "root", **sections))
    result = train(config, DAYS[:1], passes=1)
    unit = f"dt={DAYS[0]}/part-00002.parquet#2[0:200]"
    assert result["rows"] == ROWS_PER_DAY - 200
    assert list(result["quarantined"]) == [unit]
    assert "label 'click' is 2 at row 50" in result["quarantined"][unit]
    first = weights(config, result["checkpoint"], tmp_path)
    line = Line.of(config.root, config.line)
    for manifest in list(line.manifests()):  # on from the middle of the day: the unit stays out
        if manifest.complete or manifest.step > 15:
            line.storage.remove(manifest.checkpoint)
    _unpublish(line)
    again = train(config, DAYS[:1], passes=1)
    assert (again["rows"], again["quarantined"]) == (result["rows"], result["quarantined"])
    second = weights(config, again["checkpoint"], tmp_path)
    assert again["checkpoint"] != result["checkpoint"]  # else one would be compared with itself
    assert [name for name in first if not torch.equal(first[name], second[name])] == []


def test_too_much_in_quarantine_is_refused(logs: Path, tmp_path: Path, local_training: None) -> None:
    """Catches a day of which half cannot be read, trained and published as if it were one."""
    bad = _with_bad_file(logs, tmp_path / "logs", partial(_set, name="click", row=650, value=2))
    ingest = {"batch_size": 64, "unit": {"max_rows": 200}, "on_bad_unit": "quarantine", "max_quarantined": 0.05}
    config = _without_statistics(make_config(bad, tmp_path / "root", ingest=ingest))
    with pytest.raises(DataError, match=r"200 of 3000 rows of 2026-01-01 are quarantined, more than .* = 0.05; the"):
        train(config, DAYS[:1], passes=1)
    assert Line.of(config.root, config.line).latest() is None
