"""Gains of a comparison per slice: by hand, judged beyond chance, and shown on table and page."""

from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest
from outcomes import outcome_of

from pipeline.report.comparison import slice_cells, to_markdown
from pipeline.report.comparison_page import comparison_page
from pipeline.report.page import render
from pipeline.studies.comparison import ComparisonPlan, Outcome
from pipeline.studies.gains import model_rows
from pipeline.studies.slice_gains import SliceGains, slice_gains

PLAN = ComparisonPlan(name="test", models=("single", "ple"), train_days=("2026-01-01",), test_days=("2026-01-02",))
KINDS = {"ctr": "binary", "vcr": "regression"}
VALUES = {"feed": (1000, 100), "tab": (1000, 980), "live": (60, 40)}  # rows and positives
NOW = datetime(2026, 1, 4, tzinfo=UTC)


def sliced(outcome: Outcome, auc: dict[str, float | None], mse: dict[str, float], name: str = "scene") -> Outcome:
    """Return the outcome with AUC of ctr and MSE of vcr by the values of a declared slice."""
    figures = {value: dict(zip(("rows", "positives"), VALUES.get(value, (500, 250)), strict=True)) for value in auc}
    ctr = [{"value": value, "auc": found} | figures[value] for value, found in auc.items()]
    vcr = [{"value": value, "rows": figures[value]["rows"], "mse": found} for value, found in mse.items()]
    tasks = [task | {"slices": {name: values}} for task, values in zip(outcome.tasks, (ctr, vcr), strict=True)]
    return replace(outcome, tasks=tasks)


def compared(gains: dict[str, list[float]], model: str = "ple", name: str = "scene") -> list[Outcome]:
    """Return a model, seed by seed, whose AUC by value exceeds the single-task model's by the given amounts."""
    found, num_seeds = [], len(next(iter(gains.values())))
    for seed in range(num_seeds):
        alone = dict.fromkeys(gains, 0.7 + seed / 100)
        found.append(sliced(outcome_of("single", seed, 0.7, 0.1), alone, dict.fromkeys(gains, 0.1), name))
    for seed in range(num_seeds):
        auc = {value: 0.7 + seed / 100 + of_seeds[seed] for value, of_seeds in gains.items()}
        reordered = dict(reversed(list(auc.items())))
        found.append(sliced(outcome_of(model, seed, 0.7, 0.1), reordered, dict.fromkeys(reordered, 0.13), name))
    return found


def by_value(found: list[SliceGains], task: str) -> dict[str, SliceGains]:
    return {one.value: one for one in found if one.task == task}


def test_gains_by_hand() -> None:
    """Catches gains of another value's rows or another seed's model, and a gain in MSE with the sign of one in AUC."""
    found = slice_gains(compared({"feed": [0.02, 0.04], "tab": [-0.01, -0.03]}), PLAN)
    assert list(found) == ["scene"]
    ctr, vcr = by_value(found["scene"], "ctr"), by_value(found["scene"], "vcr")
    assert ctr["feed"].gains["ple"].values == pytest.approx((0.02, 0.04))
    assert ctr["feed"].gains["ple"].mean == pytest.approx(0.03)
    assert ctr["tab"].gains["ple"].deviation == pytest.approx(0.02 / 2**0.5)
    assert vcr["feed"].gains["ple"].values == pytest.approx((-0.03, -0.03))  # MSE: less is better
    assert (ctr["feed"].num_rows, ctr["feed"].num_positives) == (1000, 100)
    assert (vcr["feed"].num_rows, vcr["feed"].num_positives) == (1000, None)


def test_small_slices_are_shown_and_not_judged() -> None:
    """Catches a verdict on a few positives, or on a few negatives, and a small slice that is left out of the table."""
    gains = [0.0200, 0.0201, 0.0202]
    found = slice_gains(compared({"feed": gains, "tab": gains, "live": gains}), PLAN)["scene"]
    ctr, vcr = by_value(found, "ctr"), by_value(found, "vcr")
    assert {value: one.is_judged for value, one in ctr.items()} == {"feed": True, "tab": False, "live": False}
    assert {value: one.beyond_chance for value, one in ctr.items() if one.beyond_chance} == {"feed": {"ple"}}
    assert all(one.is_judged for one in vcr.values())  # 60 rows of a regression
    assert [one.gains["ple"].mean for one in ctr.values()] == pytest.approx([0.0201] * 3)
    fewer = slice_gains(compared({"live": gains}), replace(PLAN, min_positives=20))["scene"]
    assert by_value(fewer, "ctr")["live"].beyond_chance == {"ple"}


def test_chance_is_counted_over_all_values() -> None:
    """Catches a star that one of many values gets by chance, and a small value that counts among the judged ones.

    Mean .01 and deviation .0037 of three seeds: the half-width of the interval is .0092 for one gain (t = 4.30 of 2
    degrees of freedom), and .0133 for two (t = 6.21).
    """
    gains = [0.0063, 0.01, 0.0137]
    assert by_value(slice_gains(compared({"feed": gains}), PLAN)["scene"], "ctr")["feed"].beyond_chance
    with_small = slice_gains(compared({"feed": gains, "live": gains}), PLAN)["scene"]
    assert by_value(with_small, "ctr")["feed"].beyond_chance
    with_other = slice_gains(compared({"feed": gains, "search": gains}), PLAN)["scene"]
    assert not by_value(with_other, "ctr")["feed"].beyond_chance
    least = replace(PLAN, least_gain=0.011)
    assert not by_value(slice_gains(compared({"feed": gains}), least)["scene"], "ctr")["feed"].beyond_chance
    assert not by_value(slice_gains(compared({"feed": [0.2]}), PLAN)["scene"], "ctr")["feed"].beyond_chance  # one seed


def test_undefined_in_one_seed() -> None:
    """Catches an AUC of one class that counts as 0, the model's or the single-task model's."""
    outcomes: list[Any] = compared({"feed": [0.02, 0.04, 0.03]})
    outcomes[-1] = sliced(outcomes[-1], {"feed": None}, {"feed": 0.13})
    outcomes[1] = sliced(outcomes[1], {}, {})
    (ctr, _) = slice_gains(outcomes, PLAN)["scene"]
    assert ctr.gains["ple"].values == (pytest.approx(0.02), None, None)


def test_table_and_page() -> None:
    """Catches a page and a Markdown table with other figures, and a value of the log that breaks one of them."""
    outcomes = compared({"<b>|a\nb": [0.02, 0.0201, 0.0202], "live": [0.02, 0.0201, 0.0202]})
    rows = model_rows(outcomes)
    cells = slice_cells("scene", slice_gains(outcomes, PLAN)["scene"])
    assert cells[0] == ["task", "scene", "rows", "positives", "gain ple", "judged"]
    assert ["ctr", "live", "60", "40", "+0.0201 ± 0.0001", "no, few rows"] in cells
    assert ["ctr", "<b>|a\nb", "500", "250", "+0.0201 ± 0.0001*", "yes"] in cells
    assert ["vcr", "live", "60", "-", "-0.0300 ± 0.0000*", "yes"] in cells
    markdown = to_markdown(outcomes, rows, KINDS, PLAN)
    assert "## Gains by scene" in markdown
    assert "| ctr | <b>\\|a b | 500 | 250 | +0.0201 ± 0.0001* | yes |" in markdown
    page = render(comparison_page(outcomes, rows, KINDS, PLAN), NOW).decode()
    assert "Gains by scene" in page
    assert "+0.0201 ± 0.0001*" in page
    assert "<b>|a" not in page


def test_without_slices_nothing_changes() -> None:
    """Catches a table or a page that differs where no slice is declared, and a kept result without slices."""
    outcomes = compared({"feed": [0.02, 0.0201]})
    plain = [
        replace(one, tasks=[{k: v for k, v in task.items() if k != "slices"} for task in one.tasks]) for one in outcomes
    ]
    rows = model_rows(plain)
    assert slice_gains(plain, PLAN) == {}
    text = to_markdown(plain, rows, KINDS, PLAN)
    assert "Gains by" not in text
    assert to_markdown(outcomes, rows, KINDS, PLAN).startswith(text)
    names = [section.name for section in comparison_page(plain, rows, KINDS, PLAN).sections]
    assert names == ["models", "seesaw", "settings"]
    without_single = [one for one in outcomes if one.model != "single"]
    assert slice_gains(without_single, PLAN) == {}
    assert to_markdown(without_single, model_rows(without_single), KINDS, PLAN).count("#") == 1
