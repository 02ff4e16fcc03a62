"""Long tables of a command: in a file that the JSON line names, where the line keeps what a scheduler needs."""

import json
from pathlib import Path
from typing import Any

from pipeline.report.figures import first_units, report_evaluation, without_tables

CLICKS = {"rows": 50, "weight": 50.0, "positives": 5, "auc": 0.75, "log_loss": 0.25}
TASKS = [
    {"task": "ctr", "kind": "binary", "model": CLICKS, "popularity": {"rows": 0}, "truth": {"rows": 0}},
    {"task": "vcr", "kind": "regression", "model": {"rows": 4, "mse": 0.5, "mae": 0.25}, "popularity": {}, "truth": {}},
    {"task": "scene", "kind": "multiclass", "model": {"rows": 0}, "popularity": {}, "truth": {}},
]
RESULT: dict[str, Any] = {
    "result": "evaluated",
    "checkpoint": "checkpoints/2026-11-02/0001/0000000236-day",
    "days": ["2026-11-03", "2026-11-04"],
    "tasks": TASKS,
}


def test_an_evaluation_keeps_one_metric_of_each_task(tmp_path: Path) -> None:
    """Catches a JSON line of thousands of characters, and a metric that is then nowhere."""
    short = report_evaluation(str(tmp_path), "main", RESULT)
    assert short["tasks"] == {
        "ctr": {"rows": 50, "auc": 0.75},
        "vcr": {"rows": 4, "mse": 0.5},
        "scene": {"rows": 0, "accuracy": None},
    }
    assert {key: short[key] for key in ("result", "checkpoint", "days")} == {
        key: RESULT[key] for key in ("result", "checkpoint", "days")
    }
    assert json.loads(Path(short["figures"]).read_text()) == RESULT
    assert (tmp_path / "reports") in Path(short["figures"]).parents


def test_evaluations_do_not_overwrite_each_other(tmp_path: Path) -> None:
    """Catches one file for all rows and for the held-out ones, for two days, two checkpoints or two lines."""
    other_day = RESULT | {"days": ["2026-11-03"]}
    other_checkpoint = RESULT | {"checkpoint": "main:checkpoints/2026-11-02/0001/0000000236-day"}
    found = [report_evaluation(str(tmp_path), "main", result) for result in (RESULT, other_day, other_checkpoint)]
    found += [
        report_evaluation(str(tmp_path), "main", RESULT, "held_out"),
        report_evaluation(str(tmp_path), "b", RESULT),
    ]
    assert len({one["figures"] for one in found}) == len(found)


def test_tables_leave_the_line(tmp_path: Path) -> None:
    """Catches a table that is cut from the line and not kept, or cut with figures beside it."""
    result = {"result": "migrated", "num_kept": 7, "kept": ["table user"]}
    short = without_tables(str(tmp_path), "migrate/main/2026-11-02_2", result, ["kept"])
    assert short == {
        "result": "migrated",
        "num_kept": 7,
        "figures": f"{tmp_path}/reports/migrate/main/2026-11-02_2.json",
    }
    assert json.loads(Path(short["figures"]).read_text()) == result


def test_many_bad_units() -> None:
    """Catches a line that grows with the day, and a number that counts only those shown."""
    reasons = {f"part-{number:05d}.parquet#0": "bad" for number in range(2000)}
    found = first_units(reasons)
    assert (found["num_quarantined"], len(found["quarantined"])) == (2000, 10)
    assert first_units({}) == {"num_quarantined": 0, "quarantined": {}}
