"""Preflight and gate: what is too far off, what is noise, and what is not judged."""

from typing import Any

import pytest

from features.profile import DayProfile
from features.schema import Schema
from pipeline.config.daily import GateConfig, PreflightConfig
from pipeline.daily.gate import check_model
from pipeline.daily.preflight import check_profile
from pipeline.lineage.ledger_entry import HoldoutMetrics

SCHEMA = Schema.model_validate(
    {
        "tables": [{"name": "video", "num_rows": 10, "dim": 4}],
        "features": [{"kind": "id", "name": "video", "table": "video"}],
        "tasks": [{"name": "ctr", "label": "click"}],
    }
)


def _profile(rows: int = 10_000, nulls: float = 0.1, mean: float = 0.2) -> DayProfile:
    labels = {"ctr": (rows, mean * rows, mean * rows)}
    return DayProfile(rows, {"video": round(nulls * rows)}, labels)


USUAL = [_profile(rows=rows) for rows in (9_000, 10_000, 11_000)]


@pytest.mark.parametrize(
    ("today", "expected"),
    [
        (_profile(), None),
        (_profile(rows=17_900), None),  # the three days are up to a tenth apart
        (_profile(rows=18_100), "18,100 rows, usual are 10,000 (daily.preflight.rows_ratio 1.5)"),
        (_profile(rows=6_700), None),
        (_profile(rows=6_600), "6,600 rows, usual are 10,000"),
        (_profile(nulls=0.149), None),
        (_profile(nulls=0.16), "column 'video' is null in 16.0% of the rows, usual is 10.0% (daily.preflight.nulls"),
        (_profile(nulls=0.04), "column 'video' is null in 4.0%"),
        (_profile(mean=0.29), None),
        (
            _profile(mean=0.31),
            "task 'ctr' has a mean label of 0.3100, usual is 0.2000 (",
        ),
        (_profile(mean=0.13), "task 'ctr' has a mean label of 0.13"),
    ],
)
def test_a_day_that_is_far_off(today: DayProfile, expected: str | None) -> None:
    """Catches a limit that holds on one side only, or is compared with the wrong figure."""
    problems = check_profile(PreflightConfig(), SCHEMA, today, USUAL)
    assert len(problems) == (expected is not None)
    if expected:
        assert problems[0].text.startswith(expected)
        assert check_profile(PreflightConfig(), SCHEMA, today, USUAL[:2]) == []  # too few days to compare with


def test_a_rare_label_is_noise() -> None:
    """Catches a task with four positives a day that stops the line when it has two."""
    usual = [DayProfile(10_000, {}, {"ctr": (10_000, 4.0, 4.0)})] * 3
    assert check_profile(PreflightConfig(), SCHEMA, DayProfile(10_000, {}, {"ctr": (10_000, 9.0, 9.0)}), usual) == []
    many = DayProfile(10_000, {}, {"ctr": (10_000, 40.0, 40.0)})  # negative control
    assert len(check_profile(PreflightConfig(), SCHEMA, many, usual)) == 1


def test_a_space_without_rows_is_refused_on_the_first_day() -> None:
    """Catches a label column that is all null, which nothing else would stop."""
    (problem,) = check_profile(PreflightConfig(), SCHEMA, DayProfile(10, {}, {"ctr": (0, 0.0, 0.0)}), [])
    assert problem.text == "no row is in the space of task 'ctr' (click): look at its columns"
    late = DayProfile(10, {}, {})  # its label is not final yet
    assert check_profile(PreflightConfig(), SCHEMA, late, []) == []


def _metrics(**changes: Any) -> dict[str, Any]:
    model = {"kind": "binary", "rows": 1000, "positives": 200, "auc": 0.75}
    return {"ctr": model | {"calibration": 1.0, "mean_prediction": 0.2} | changes}


@pytest.mark.parametrize(
    ("new", "parent", "expected"),
    [
        ({}, {}, None),
        ({"auc": 0.705}, {}, None),  # of 200 positives: .02 and a standard error of .031
        ({"auc": 0.695}, {}, "task 'ctr': 0.6950 on the hold-out, its parent 0.7500 (daily.gate.drop 0.02)"),
        (
            {"auc": 0.725},
            {"positives": 200_000, "rows": 10**6},
            "task 'ctr': 0.7250 on the hold-out, its parent 0.7500",
        ),
        ({"auc": None}, {}, None),
        ({"auc": 0.4, "positives": 49}, {}, None),
        ({"auc": 0.4, "positives": 960}, {}, None),
        ({"calibration": 1.6}, {}, "task 'ctr': calibration 1.600 on the hold-out, its parent 1.0"),
        ({"calibration": 0.6}, {}, "task 'ctr': calibration 0.6000 on the hold-out"),
        ({"calibration": 1.6}, {"calibration": 2.0}, None),  # off, and better than it was
        ({"mean_prediction": 0.31}, {}, None),  # of 200 positives: a ratio of 1.5 and a standard error of .063
        ({"mean_prediction": 0.33}, {}, "task 'ctr': mean prediction 0.3300 on the hold-out, its parent 0.2"),
        ({"mean_prediction": 0.12}, {}, "task 'ctr': mean prediction 0.12"),
        ({"mean_prediction": None}, {}, "task 'ctr': the new model's predictions on the hold-out are not finite"),
        ({"kind": "regression", "r2": 0.28, "positives": 0}, {"kind": "regression", "r2": 0.33}, "task 'ctr': 0.28"),
        ({"kind": "multiclass", "accuracy": 0.3}, {"kind": "multiclass", "accuracy": 0.31}, None),
    ],
)
def test_a_model_against_its_parent(new: dict[str, Any], parent: dict[str, Any], expected: str | None) -> None:
    """Catches a limit on the wrong side, a metric of another kind of task, and a verdict on a handful of rows."""
    problems = check_model(GateConfig(), None, [], _metrics(**new), _metrics(**parent))
    assert len(problems) == (expected is not None), problems
    if expected:
        assert problems[0].text.startswith(expected)
    own = GateConfig.model_validate({"tasks": {"ctr": {"drop": 1.0, "calibration_ratio": 9.0, "shift_ratio": 9.0}}})
    assert [
        found for found in check_model(own, None, [], _metrics(**new), _metrics(**parent)) if "finite" not in found.text
    ] == []
    alone = check_model(GateConfig(), None, [], _metrics(**new), None)
    assert [found for found in alone if "finite" not in found.text] == []


@pytest.mark.parametrize(
    ("auc", "days", "refused"), [(0.6, 3, True), (0.63, 3, False), (0.5, 2, False), (None, 3, False)]
)
def test_a_day_that_yesterday_s_model_does_not_know(auc: float | None, days: int, *, refused: bool) -> None:
    """Catches a day of shuffled labels, on which the new model and its parent are equally bad."""
    problems = check_model(GateConfig(), _metrics(auc=auc), [_metrics()] * days, None, None)
    assert len(problems) == refused
    if refused:
        assert problems[0].text.startswith("task 'ctr': yesterday's model reaches 0.6000 on this day, usual is 0.7500")


def test_a_line_that_varies_has_wider_limits() -> None:
    """Catches limits that do not know how much a line varies, or that become tighter where it does not vary."""
    steady = [(_metrics(), _metrics())] * 7
    restless = [
        (_metrics(auc=0.75 - drop, calibration=ratio, mean_prediction=0.2 * ratio), _metrics())
        for drop, ratio in ((-0.06, 1.0), (0.05, 1.3), (0.06, 0.8), (-0.04, 1.2), (0.0, 0.9), (0.03, 1.4), (0.02, 0.7))
    ]
    new, parent = _metrics(auc=0.68, calibration=1.7, mean_prediction=0.34), _metrics()
    for past, number in ((steady, 3), (restless, 0), (restless[:2], 3)):
        earlier = [HoldoutMetrics(new=one, parent=its_parent) for one, its_parent in past]
        assert len(check_model(GateConfig(), None, [], new, parent, earlier)) == number
        assert len(check_model(GateConfig(spread=0), None, [], new, parent, earlier)) == 3
    usual = [_profile(nulls=0.1 + change, mean=0.2 + change) for change in (-0.08, 0.07, 0.0, 0.06, -0.07, 0.04, -0.02)]
    today = _profile(nulls=0.3, mean=0.4)
    assert check_profile(PreflightConfig(), SCHEMA, today, usual) == []
    assert len(check_profile(PreflightConfig(spread=0), SCHEMA, today, usual)) == 2
    assert len(check_profile(PreflightConfig(), SCHEMA, today, [_profile()] * 7)) == 2


@pytest.mark.parametrize(("rows", "refused"), [(17_900, False), (18_100, True), (6_600, True), (6_700, False)])
def test_rows_that_vary(rows: int, *, refused: bool) -> None:
    """Catches a spread that excuses half a day, or a day that was written twice."""
    usual = [_profile(rows=number) for number in (4_000, 25_000, 10_000, 16_000, 5_000, 10_000, 30_000)]
    assert len(check_profile(PreflightConfig(), SCHEMA, _profile(rows=rows), usual)) == refused


def _sliced(**aucs: float) -> dict[str, Any]:
    """Metrics of the task, with those of slices of its rows."""
    metrics = _metrics()
    slices = [{"value": value} | _metrics(auc=auc)["ctr"] for value, auc in aucs.items()]
    return {"ctr": metrics["ctr"] | {"slices": {"scene": slices}}}


def test_limits_of_slices() -> None:
    """Catches a model that is worse on one scene alone and is published, and slices that are judged unasked."""
    new, parent = _sliced(auto=0.70, feed=0.76), _sliced(auto=0.76, feed=0.75)
    assert check_model(GateConfig(noise=0), None, [], new, parent) == []
    gate = GateConfig.model_validate({"noise": 0, "slices": {"scene": {"drop": 0.05}}})
    (finding,) = check_model(gate, None, [], new, parent)
    assert finding.text.startswith("task 'ctr, scene=auto': 0.7000 on the hold-out, its parent 0.7600")
    assert finding.own_key == "daily.gate.slices.scene.drop"
    loose = GateConfig.model_validate({"noise": 0, "slices": {"scene": {"drop": 0.07}}})
    assert check_model(loose, None, [], new, parent) == []
    usual = [_sliced(auto=0.80, feed=0.75)] * 3
    (finding,) = check_model(gate, _sliced(auto=0.60, feed=0.74), usual, None, None)
    assert "task 'ctr, scene=auto': yesterday's model reaches 0.6000" in finding.text
    of_task = {"tasks": {"ctr": {"min_positives": 5000}}, "slices": {"scene": {"drop": 0.05}}}
    assert check_model(GateConfig.model_validate({"noise": 0} | of_task), None, [], new, parent) == []
