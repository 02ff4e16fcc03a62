"""Outcomes of a comparison, made by hand."""

from typing import Any

from pipeline.studies.comparison import Outcome


def outcome_of(model: str, seed: int, auc: float | None, mse: float, **others: Any) -> Outcome:
    tasks = [
        {"task": "ctr", "kind": "binary", "role": "main", "model": {"auc": auc, "rows": 10, "calibration": 1.0}},
        {"task": "vcr", "kind": "regression", "role": "main", "model": {"mse": mse, "rows": 5}},
    ]
    values: dict[str, Any] = {"setting": {"kind": model}, "parameters": 7, "rows_per_s": 100.0, "expert_use": {}}
    values |= {"towers": ("ctr", "vcr")}
    return Outcome(model=model, seed=seed, tasks=tasks, **values | others)
