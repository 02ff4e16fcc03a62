"""Lines with any number of days for reports: real records of a line that nobody has trained."""

import io
import math
import random
from collections.abc import Sequence
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.config.load import parse_config
from pipeline.config.project import Config
from pipeline.evaluation.metric_table import SCHEMA
from pipeline.lineage.ledger import Ledger
from pipeline.lineage.ledger_entry import HoldoutMetrics, LedgerEntry, Verdict
from pipeline.lineage.line import Line
from pipeline.lineage.line_state import write_attempt
from pipeline.lineage.records import Attempt, Published
from pipeline.storage.files import Storage

FIRST = date(2025, 10, 1)
TASKS = ("ctr", "vtr", "vcr", "shr", "cmr")
CHINESE, HTML = "点击率", "<script>alert(1)</script>"
LEVEL = {"expert_layers": [4], "num_experts_per_task": 1, "num_shared_experts": 2}


def day_of(number: int) -> str:
    return (FIRST + timedelta(days=number)).isoformat()


def config_of(root: Path | str, **daily: Any) -> Config:
    tasks: list[dict[str, Any]] = [{"name": name, "label": "click", "objective": "engagement"} for name in TASKS]
    tasks[2]["kind"] = "regression"
    for task in tasks[3:]:
        task["objective"] = "satisfaction"
    return parse_config(
        {
            "name": "short_video",
            "root": str(root),
            "logs": {"path": f"{root}/logs"},
            "schema": {
                "tables": [{"name": "user", "num_rows": 10, "dim": 4}],
                "features": [{"kind": "id", "name": "user_id", "table": "user"}],
                "tasks": tasks,
            },
            "model": {"network": {"kind": "ple", "levels": [LEVEL, LEVEL]}, "towers": [4]},
            "optimizer": {"tables": {"learning_rate": 0.1}, "dense": {"learning_rate": 0.01}},
            "holdout": {"column": "user_id"},
            "daily": daily,
        },
        "test",
    )


def gates_of(shares: random.Random, collapsed: bool) -> dict[str, list[list[float]]]:
    """Return weights of the gates of two levels; with `collapsed` vtr's second gate gives a shared expert exactly 0."""
    num_experts, found = len(TASKS) + 2, {}
    for level in range(2):
        rows = []
        for gate in range(len(TASKS) + (level == 0)):
            chosen = range(num_experts) if gate == len(TASKS) else (gate, num_experts - 2, num_experts - 1)
            weights = [shares.uniform(0.4, 1.0) if expert in chosen else 0.0 for expert in range(num_experts)]
            if collapsed and (level, gate) == (1, 1):
                weights[-1] = 0.0
            rows.append([weight / sum(weights) for weight in weights])
        found[f"levels.{level}.gates"] = rows
    return found


def metrics_of(kind: str, value: float, rows: int = 90_000, calibration: float = 1.0) -> dict[str, Any]:
    shared = {"kind": kind, "rows": rows, "calibration": calibration, "mean_prediction": 0.1 * calibration}
    shared |= {"mean_label": 0.1, "label_variance": 0.09}
    return shared | ({"r2": value} if kind == "regression" else {"positives": rows // 10, "auc": value})


def write_line(
    root: Path | str, num_days: int, *, tasks: Sequence[str] = TASKS, collapsed: bool = True, name: str = "main"
) -> Config:
    """Write a line of some days: entries, attempts and LATEST; the last day but three has a low quality of vtr."""
    config = config_of(root).model_copy(update={"line": name})
    line, drawn = Line.of(config.root, config.line), random.Random(7)
    ledger, parent = Ledger(line), None
    for number in range(num_days):
        entry = _entry(number, tasks, drawn, is_low=number == num_days - 4, collapsed=collapsed)
        parent = ledger.enter(entry, parent, 0)
        _write_attempts(line, number)
    assert parent is not None
    line.rebuild(Published(day=parent.day, generation=1, checkpoint=parent.checkpoint), 0)
    return config


def _entry(number: int, tasks: Sequence[str], drawn: random.Random, *, is_low: bool, collapsed: bool) -> LedgerEntry:
    day, before, new, parent = day_of(number), {}, {}, {}
    for place, task in enumerate(tasks):
        kind = "regression" if task == "vcr" else "binary"
        level = 0.62 + 0.05 * place + 0.03 * (1 - math.exp(-number / 30)) + drawn.gauss(0, 0.003)
        before[task] = metrics_of(kind, level - (0.2 if is_low and place == 1 else 0), calibration=drawn.gauss(1, 0.04))
        new[task] = metrics_of(kind, level + 0.004, 9000, drawn.gauss(1.02, 0.03))
        parent[task] = metrics_of(kind, level + drawn.gauss(0, 0.002), 9000)
    rows = int(1_000_000 * (1 + 0.2 * math.sin(number / 7 * 2 * math.pi)) + drawn.gauss(0, 20_000))
    problem = ("task 'vtr': 0.4712 on this day, usual is 0.6731 (daily.gate.before_drop 0.1)",) if is_low else ()
    return LedgerEntry(
        kind="daily",
        day=day,
        checkpoint=f"checkpoints/{day}/{number + 1:04d}/{(number + 1) * 100:010d}-day",
        run="run",
        rows=rows,
        held_out=rows // 100,
        rows_in_space=dict.fromkeys(tasks, rows),
        loss_weights={task: 1.0 / (1 + place) * 0.999**number for place, task in enumerate(tasks)},
        new_ids={"user": {"seen": rows // 10, "admitted": rows // 90, "evicted": rows // 200}},
        attempt=f"{2 * number + 2:04d}",
        train_seconds=rows / drawn.gauss(45_000, 1500),
        preflight=Verdict(problems=()),
        gate=Verdict(problems=problem, accepted="a holiday" if is_low else None, by="li" if is_low else None),
        before=before if number else None,
        holdout=HoldoutMetrics(new=new, parent=parent if number else None),
        expert_use=gates_of(drawn, collapsed) if tasks == TASKS else {},
    )


def _write_attempts(line: Line, number: int) -> None:
    shared: dict[str, Any] = {"run": "run", "days": (day_of(number),), "serial": 0}
    if number % 5 == 2:
        reason = "a worker of rank 1 was killed: out of memory"
        write_attempt(line.storage, Attempt(**shared, attempt=2 * number + 1, result="failed", reason=reason))
    write_attempt(line.storage, Attempt(**shared, attempt=2 * number + 2, result="done"))


def write_backfill(config: Config, checkpoints: range, days: range, slices: Sequence[str] = ("",)) -> None:
    """Commit cells of checkpoints on days; the slices, but for the whole, fall on the last day."""
    storage, drawn = Storage(config.root).under("metrics"), random.Random(3)
    for day in days:
        rows = [
            _metric_row(config, checkpoint, day, task, name, drawn.gauss(0.65, 0.004) - 0.001 * abs(day - checkpoint))
            | ({"value": 0.5 - 0.01 * place} if name and day == days[-1] else {})
            for checkpoint in checkpoints
            for task in config.log_schema.task_names[:2]
            for place, name in enumerate(slices)
        ]
        data = io.BytesIO()
        pq.write_table(pa.Table.from_pylist(rows, SCHEMA), data)
        storage.write(f"{day_of(day)}/000001.parquet", data.getvalue())


def _metric_row(config: Config, checkpoint: int, day: int, task: str, name: str, value: float) -> dict[str, Any]:
    made = day_of(checkpoint)
    return {
        "line": config.line,
        "checkpoint": f"checkpoints/{made}/{checkpoint + 1:04d}/{(checkpoint + 1) * 100:010d}-day",
        "checkpoint_day": made,
        "day": day_of(day),
        "lag": day - checkpoint,
        "row_set": "all",
        "slice": name or "all",
        "task": task,
        "kind": "binary",
        "metric": "auc",
        "value": value,
        "rows": 5000,
        "key": f"{checkpoint}-{day}",
        "commit": 1,
    }


def write_comparison(config: Config, name: str = "compare") -> None:
    """Store the table of a comparison of two networks with single-task models, in two seeds."""
    rows = [
        {"model": model, "seed": seed, "task": task, "kind": "binary", "metric": "auc", "value": value}
        for model, gain in (("single", 0.0), ("mmoe", -0.004), ("ple", 0.006))
        for seed in (1, 2)
        for place, task in enumerate(TASKS)
        for value in [0.7 + gain * (1 - 0.6 * place) + 0.0005 * seed * (gain > 0)]
    ]
    data = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), data)
    Storage(config.root).write(f"comparisons/{name}/table.parquet", data.getvalue())
