"""The daily job on a real Ray: days, their entries, the hold-out, late labels, and days that are refused."""

import contextlib
import shutil
import sys
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray
import torch
from faults import Fault, train_with_faults
from local_training import on_processes
from small_runs import make_config, weights

from features.holdout import HoldoutConfig
from features.synthetic.logs import SyntheticConfig, write_day
from features.tables import VocabularyConfig
from pipeline.cluster.session import ray_session
from pipeline.cluster.worker_group import WorkerGroup
from pipeline.config.project import Config
from pipeline.daily.accepted import Accepted
from pipeline.daily.ray_work import RayWork
from pipeline.daily.refusal import Refused
from pipeline.daily.run_days import run_days
from pipeline.evaluation.evaluate import evaluate
from pipeline.lineage.audit import audit_line
from pipeline.lineage.ledger import Ledger, LedgerEntry
from pipeline.lineage.ledger_entry import Verdict
from pipeline.lineage.line import Line
from pipeline.log_passes.admission import read_vocabularies
from pipeline.log_passes.statistics import fit_statistics
from pipeline.trainer.train_line import train

DAYS = [f"2026-01-0{number}" for number in range(1, 5)]
ROWS = 1500
HELD = {"column": "user_id", "share": 0.1}

ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # Ray's workers cannot import this file


@pytest.fixture(scope="module")
def logs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("logs")
    world = SyntheticConfig(
        seed=5,
        first_day=date.fromisoformat(DAYS[0]),
        rows_per_day=ROWS,
        num_users=200,
        num_videos=200,
        num_authors=20,
        files_per_day=3,
        row_group_rows=300,
    )
    for day in DAYS:
        write_day(world, date.fromisoformat(day), folder)
    return folder


def daily(config: Config, *days: str, **accepted: str) -> dict[str, Any]:
    line = Line.of(config.root, config.line)
    with contextlib.ExitStack() as stack:
        return run_days(config, line, RayWork(config, line, stack), days, 7, Accepted(**accepted))


def entry_of(config: Config, day: str) -> LedgerEntry:
    entry = Ledger(Line.of(config.root, config.line)).find(day)
    assert entry is not None
    return entry


@pytest.fixture(scope="module")
def three_days(logs: Path, tmp_path_factory: pytest.TempPathFactory) -> Config:
    """Three days, each by a command of its own."""
    few = {"min_entries": 2}
    sections = {"holdout": HELD, "checkpoint": {"every_steps": 5}, "daily": {"preflight": few, "gate": few}}
    config = make_config(logs, tmp_path_factory.mktemp("root"), **sections)
    with on_processes():
        fit_statistics(config, DAYS[:1])
        for day in DAYS[:3]:
            assert daily(config, day)["result"] == "published"
    return config


def test_three_days_are_the_days_in_one_run(
    three_days: Config, logs: Path, tmp_path: Path, local_training: None
) -> None:
    """Catches a day that does not go on where yesterday ended: optimizer state, schedules, missing values, dice."""
    config = three_days.model_copy(update={"root": str(tmp_path / "root")})
    fit_statistics(config, DAYS[:1])
    at_once = weights(config, train(config, DAYS[:3], passes=1)["checkpoint"], tmp_path)
    by_day = weights(three_days, entry_of(three_days, DAYS[2]).checkpoint, tmp_path)
    assert set(at_once) == set(by_day)
    assert [name for name in at_once if not torch.equal(at_once[name], by_day[name])] == []


def test_days_of_one_command(
    three_days: Config, logs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, local_training: None
) -> None:
    """Catches anything that a worker keeps from one job to the next, and a second start of the workers."""
    config = three_days.model_copy(update={"root": str(tmp_path / "root")})
    starts: list[Config] = []
    begin: Any = WorkerGroup.__init__
    monkeypatch.setattr(WorkerGroup, "__init__", lambda group, one: (starts.append(one), begin(group, one))[1])
    fit_statistics(config, DAYS[:1])
    with ray_session(config):
        assert len(daily(config, *DAYS[:3])["days"]) == 3
    assert len(starts) == 1
    for day in DAYS[:3]:
        one, other = entry_of(config, day), entry_of(three_days, day)
        assert (one.before, one.holdout, one.rows) == (other.before, other.holdout, other.rows)
    at_once = weights(config, entry_of(config, DAYS[2]).checkpoint, tmp_path)
    by_day = weights(three_days, entry_of(three_days, DAYS[2]).checkpoint, tmp_path)
    assert [name for name in at_once if not torch.equal(at_once[name], by_day[name])] == []


def test_what_the_ledger_says(three_days: Config, local_training: None) -> None:
    """Catches metrics of another day or another model, an entry whose parent is not the day before, a lost row."""
    found = list(Ledger(Line.of(three_days.root, "main")).chain())
    assert [(entry.day, entry.generation) for entry in found] == [(day, 1) for day in reversed(DAYS[:3])]
    newest, before, first = found
    assert newest.parent == before.reference
    assert first.parent is None
    assert first.before is None
    (measured,) = [
        task for task in evaluate(three_days, DAYS[2:3], before.checkpoint, [])["tasks"] if task["task"] == "ctr"
    ]
    expected = {"kind": "binary"} | measured["model"] | {"calibration_curve": measured["calibration_curve"]}
    assert newest.before["ctr"] == expected  # yesterday's model on today's log
    held = sum(int(_held(Path(three_days.logs.path), DAYS[2])[file].sum()) for file in range(3))
    assert newest.holdout.new["ctr"]["rows"] == newest.held_out == held > 50
    assert newest.rows == newest.profile["rows"] == ROWS
    assert newest.rows_in_space["ctr"] == ROWS - held
    assert newest.preflight == newest.gate == Verdict(problems=())
    (weights_of_gates,) = newest.expert_use.values()
    assert np.allclose(np.sum(weights_of_gates, 1), 1)
    assert not list(_within_days(three_days))  # published days keep their end only
    assert audit_line(three_days, None)["rows"] == 3 * ROWS


def _within_days(config: Config) -> Iterator[str]:
    return (
        manifest.checkpoint
        for manifest in Line.of(config.root, "main").manifests()
        if not manifest.complete and manifest.day in DAYS[:3]
    )


def _held(logs: Path, day: str) -> list[np.ndarray]:
    holdout = HoldoutConfig(**HELD)
    return [
        holdout.held_out({"user_id": _table(file)["user_id"]})
        for file in sorted((logs / f"dt={day}").glob("*.parquet"))
    ]


def _table(file: Path) -> pa.Table:
    return pq.ParquetFile(file).read()


def test_held_out_rows_move_no_weight(three_days: Config, logs: Path, tmp_path: Path, local_training: None) -> None:
    """Catches a held-out label that reaches the loss, a denominator or the optimizer; and a mask of other rows."""
    expected = weights(three_days, entry_of(three_days, DAYS[0]).checkpoint, tmp_path)
    for place, same in ((True, True), (False, False)):  # the second is the negative control
        changed = tmp_path / f"{place}"
        shutil.copytree(logs, changed / "logs")
        for file, held in zip(
            sorted((changed / f"logs/dt={DAYS[0]}").glob("*.parquet")), _held(logs, DAYS[0]), strict=True
        ):
            _flip_clicks(file, held == place)
        config = three_days.model_copy(
            update={
                "root": str(changed / "root"),
                "logs": three_days.logs.model_copy(update={"path": str(changed / "logs")}),
            }
        )
        shutil.copytree(Path(three_days.root) / "lines/main", changed / "root/lines/main")
        for name in ("LATEST", "LEASE"):
            (changed / "root/lines/main" / name).unlink()
        for folder in ("attempts", "checkpoints", "ledger", "steps"):
            shutil.rmtree(changed / "root/lines/main" / folder)
        found = weights(config, train(config, DAYS[:1], passes=1)["checkpoint"], tmp_path)
        assert all(torch.equal(expected[name], found[name]) for name in expected) is same


def _flip_clicks(file: Path, where: np.ndarray) -> None:
    table = _table(file)
    click = table["click"].to_numpy().copy()
    click[where] = 1 - click[where]
    place = table.column_names.index("click")
    table = table.set_column(place, "click", pa.array(click, table["click"].type))
    pq.write_table(table, file, row_group_size=300)


def _spoilt(config: Config, tmp_path: Path, spoil: Any) -> Config:
    """The same line, with the last day's log spoilt."""
    shutil.copytree(config.logs.path, tmp_path / "logs")
    shutil.copytree(config.root, tmp_path / "root")
    for file in sorted((tmp_path / f"logs/dt={DAYS[3]}").glob("*.parquet")):
        spoil(file)
    logs = config.logs.model_copy(update={"path": str(tmp_path / "logs")})
    return config.model_copy(update={"root": str(tmp_path / "root"), "logs": logs})


def _shuffle_labels(file: Path) -> None:
    table = _table(file)
    order = np.random.default_rng(1).permutation(table.num_rows)
    for name in ("click", "played", "play_ms"):
        table = table.set_column(table.column_names.index(name), name, table[name].take(pa.array(order)))
    pq.write_table(table, file, row_group_size=300)


def _cut_to_half(file: Path) -> None:
    pq.write_table(_table(file).slice(0, 250), file, row_group_size=300)


def test_a_day_with_shuffled_labels_is_refused(three_days: Config, tmp_path: Path, local_training: None) -> None:
    """Catches a gate that looks at one day alone: on shuffled labels the new model is no worse than its parent."""
    config = _spoilt(three_days, tmp_path, _shuffle_labels)
    before = entry_of(config, DAYS[2]).before["ctr"]["auc"]
    assert before > 0.65
    text = rf"^{DAYS[3]} is refused by gate: task 'ctr': yesterday's model reaches 0.\d+ on this day, usual is 0.\d+"
    with pytest.raises(Refused, match=text) as caught:
        daily(config, DAYS[3])
    assert f"LATEST stays at {DAYS[2]}, later days wait" in str(caught.value)
    assert "--accept-gate REASON, or leave the day out with --skip-day REASON" in str(caught.value)
    latest = Line.of(config.root, "main").latest()
    assert latest is not None
    assert latest.day == DAYS[2]


def test_a_day_cut_to_half_is_refused(three_days: Config, tmp_path: Path, local_training: None) -> None:
    """Catches a day whose second half is not written yet, and is never trained."""
    config = _spoilt(three_days, tmp_path, _cut_to_half)
    text = rf"^{DAYS[3]} is refused by preflight: 750 rows, usual are 1,500 .*\. nothing of it is trained"
    with pytest.raises(Refused, match=text) as caught:
        daily(config, DAYS[3])
    assert "write the log again and start the same command; or go on with --accept-anomaly REASON" in str(caught.value)
    assert not Line.of(config.root, "main").storage.exists(f"checkpoints/{DAYS[3]}")


def test_late_labels_are_trained_once(logs: Path, tmp_path: Path, local_training: None) -> None:
    """Catches a label that is believed before it is final, or rows of it that are trained twice or never."""
    config = make_config(logs, tmp_path / "root", checkpoint={"every_steps": 5})
    tasks = [
        task.model_copy(update={"matures_after": "2d"} if task.name == "vcr" else {})
        for task in config.log_schema.tasks
    ]
    config = config.model_copy(update={"log_schema": config.log_schema.model_copy(update={"tasks": tasks})})
    fit_statistics(config, DAYS[:1])
    train(config, DAYS[:3], passes=1)
    daily(config, DAYS[3])
    played = {
        day: sum(int((_table(file)["played"].to_numpy() == 1).sum()) for file in (logs / f"dt={day}").glob("*.parquet"))
        for day in DAYS[:4]
    }
    for number, day in enumerate(DAYS[:4]):
        entry = entry_of(config, day)
        assert entry.rows_in_space == {"ctr": ROWS, "vcr": 0}
        late = {DAYS[number - 2]} if number >= 2 else set()
        assert set(entry.late) == late
        for earlier in late:
            assert entry.late[earlier].rows_in_space == {"ctr": 0, "vcr": played[earlier]}
            assert entry.late[earlier].tasks == ("vcr",)
    before = entry_of(config, DAYS[3]).before
    assert before["vcr"]["rows"] == played[DAYS[1]]  # yesterday's model on labels that it has not seen
    found = audit_line(config, None)
    assert (found["days"], found["rows"]) == (DAYS[:4], 6 * ROWS)


def _rename_videos(file: Path) -> None:
    """Half of the videos are others."""
    table = _table(file)
    video = table["video_id"].to_numpy()
    renamed = pa.array(np.where(video % 2 == 0, video + 100_000, video), table["video_id"].type)
    pq.write_table(
        table.set_column(table.column_names.index("video_id"), "video_id", renamed), file, row_group_size=300
    )


def _with_vocabulary(config: Config, rows: int) -> Config:
    """Return a configuration with a table of videos that only their own id reads."""
    mapping = VocabularyConfig(kind="vocabulary", min_count=3, keep_days=1, tail_rows=8)
    features = [feature for feature in config.log_schema.features if feature.name != "history_video_id"]
    tables = [
        table.model_copy(update={"num_rows": rows, "id_mapping": mapping} if table.name == "video" else {})
        for table in config.log_schema.tables
    ]
    changed = {"tables": tables, "features": features}
    return config.model_copy(update={"log_schema": config.log_schema.model_copy(update=changed)})


def test_days_with_a_vocabulary(
    logs: Path, tmp_path: Path, local_training: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches an id that changes its row between two days, in a resumed day, or in an evaluation; or a leaked row.

    The last day is cut off by a dead worker, goes on as another command, and has to be what it is without.
    """
    shutil.copytree(logs, tmp_path / "logs")
    for file in (tmp_path / f"logs/dt={DAYS[2]}").glob("*.parquet"):
        _rename_videos(file)
    config = make_config(tmp_path / "logs", tmp_path / "root", checkpoint={"every_steps": 5})
    config = _with_vocabulary(config, 90)
    fit_statistics(config, DAYS[:1])
    line = Line.of(config.root, "main")
    train(config, DAYS[:1], passes=1)
    first = read_vocabularies(*line.place(entry_of(config, DAYS[0]).checkpoint), config.log_schema)["video"]
    assert len(first.keys) == 82  # the table is full
    shutil.copytree(tmp_path / "root", tmp_path / "disturbed")
    train(config, DAYS[2:3], passes=1)  # a day lies between: ids of the first may go
    entry = entry_of(config, DAYS[2])
    figures = entry.new_ids["video"]
    assert figures["evicted"] > 0
    assert figures["admitted"] >= figures["evicted"]
    second = read_vocabularies(*line.place(entry.checkpoint), config.log_schema)["video"]
    kept = np.intersect1d(first.keys, second.keys)
    assert 0 < len(kept) < 82
    assert np.array_equal(first.lookup(kept), second.lookup(kept))

    disturbed = config.model_copy(update={"root": str(tmp_path / "disturbed")})
    fault = Fault("kill", 13 + 10, 1, tmp_path / "fault")  # of 12 steps or 13 a day; that of step 15 is written
    with pytest.raises(RuntimeError):
        train_with_faults([fault], monkeypatch, lambda: train(disturbed, DAYS[2:3], passes=1))
    assert fault.mark.exists()
    begun = Line.of(disturbed.root, "main").newest()
    assert begun is not None
    assert (begun.day, begun.complete) == (DAYS[2], False)
    again = weights(disturbed, train(disturbed, DAYS[2:3], passes=1)["checkpoint"], tmp_path)
    expected = weights(config, entry.checkpoint, tmp_path)
    assert [name for name in expected if not torch.equal(expected[name], again[name])] == []
    assert entry_of(disturbed, DAYS[2]).new_ids == entry.new_ids
