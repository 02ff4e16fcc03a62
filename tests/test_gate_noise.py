"""Chance in the gate: calibration and mean prediction on few rows, and a hold-out on which nothing can be judged."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from small_daily import World, config_of, day_of, killable, run

from features.holdout import HoldoutConfig
from features.profile import DayProfile
from features.schema import Schema
from pipeline.config.daily import GateConfig
from pipeline.daily.gate import check_model
from pipeline.lineage.ledger import Ledger
from pipeline.lineage.line import Line

__all__ = ["killable"]  # fixtures

SCHEMA = Schema.model_validate(
    {
        "tables": [{"name": "user", "num_rows": 10, "dim": 4}],
        "features": [{"kind": "id", "name": "user", "table": "user"}],
        "tasks": [{"name": "ctr", "label": "click"}, {"name": "vcr", "kind": "regression", "label": "play"}],
    }
)


def metrics(kind: str, rows: int, **changes: Any) -> dict[str, Any]:
    own = {"positives": round(rows * 0.35), "auc": 0.7} if kind == "binary" else {"r2": 0.2}
    moments = {"mean_label": 0.35, "label_variance": 0.2275}
    return {"task": {"kind": kind, "rows": rows, "calibration": 1.0, "mean_prediction": 0.35} | own | moments | changes}


@pytest.mark.parametrize("kind", ["binary", "regression"])
@pytest.mark.parametrize(("key", "value"), [("calibration", 1.6), ("mean_prediction", 0.56)])
def test_a_figure_of_few_rows(kind: str, key: str, value: float) -> None:
    """Catches a limit that has no allowance for noise: 1.6 on 147 rows is 1.5 and a standard error of .11."""
    parent = metrics(kind, 147)
    assert check_model(GateConfig(), None, [], metrics(kind, 147, **{key: value}), parent) == []
    (problem,) = check_model(GateConfig(), None, [], metrics(kind, 20_000, **{key: value}), parent)
    assert key.replace("_", " ") in problem.text
    (problem,) = check_model(GateConfig(), None, [], metrics(kind, 147, **{key: 2 * value}), parent)
    assert key.replace("_", " ") in problem.text


def trained(world: World, root: Path, held: dict[str, tuple[int, int]] | None, **gate: Any) -> tuple[list[str], Any]:
    """Train two days; return the rows that were measured on the second, and its entry."""
    config = config_of(root, gate=gate)
    line, world.held_out = Line.of(config.root, "main"), held
    run(config, line, world, day_of(0))
    world.measured.clear()
    run(config, line, world, day_of(1))
    return list(world.measured), Ledger(line).find(day_of(1))


@pytest.mark.parametrize(
    ("held", "gate", "expected"),
    [
        ({"ctr": (0, 0), "vcr": (0, 0)}, {}, ["all"]),
        ({"ctr": (147, 49), "vcr": (49, 20)}, {}, ["all"]),
        ({"ctr": (147, 98), "vcr": (0, 0)}, {}, ["all"]),  # 49 negative ones
        ({"ctr": (147, 50), "vcr": (0, 0)}, {}, ["all", "held_out"]),
        ({"ctr": (147, 49), "vcr": (50, 20)}, {}, ["all", "held_out"]),
        ({"ctr": (147, 49), "vcr": (0, 0)}, {"tasks": {"ctr": {"min_positives": 40}}}, ["all", "held_out"]),
        (None, {}, ["all"]),  # a profile of an earlier version: the manifest says that one row is held out
        (None, {"min_positives": 1}, ["all", "held_out"]),
    ],
)
def test_nothing_is_measured_that_is_not_judged(
    killable: World, tmp_path: Path, held: Any, gate: dict[str, Any], expected: list[str]
) -> None:
    """Catches two groups of workers that are started where no task has enough held-out rows."""
    measured, entry = trained(killable, tmp_path, held, **gate)
    assert measured == expected
    assert entry.gate.problems == ()
    assert (entry.holdout.new is None) == (expected == ["all"])


def test_a_lower_limit_is_seen_after_the_training(killable: World, tmp_path: Path) -> None:
    """Catches a measurement that was left out once and for all: the same command with a lower limit makes it."""
    measured, _ = trained(killable, tmp_path, {"ctr": (147, 49), "vcr": (0, 0)})
    assert measured == ["all"]
    lower = config_of(tmp_path, gate={"min_positives": 49})
    killable.measured.clear()
    run(lower, Line.of(lower.root, "main"), killable, day_of(2))
    assert killable.measured == ["all", "held_out"]


def test_held_out_labels_are_counted() -> None:
    """Catches rows that are counted outside their space, or of users that are trained."""
    holdout = HoldoutConfig(column="user", share=0.5)
    users = pa.array(range(100))
    held = holdout.held_out({"user": users})
    clicks = [None if row % 10 == 0 else row % 2 for row in range(100)]
    columns = {"user": users, "click": pa.array(clicks, pa.int64()), "play": pa.array([1.0] * 100)}
    profile = DayProfile()
    profile.update(SCHEMA, columns, ["ctr", "vcr"], holdout)
    inside = [click for click, is_held in zip(clicks, held, strict=True) if is_held and click is not None]
    assert profile.held_out == {"ctr": (len(inside), sum(inside)), "vcr": (int(held.sum()), int(held.sum()))}
    again = DayProfile.from_json(profile.to_json())
    again.merge(profile)
    assert again.held_out == {task: (2 * rows, 2 * positives) for task, (rows, positives) in profile.held_out.items()}
