"""Chance in preflight: small days, rare labels and a single row differ from the usual by what the usual rate gives."""

import numpy as np
import pytest

from features.profile import DayProfile, IdSketch
from features.schema import Schema
from pipeline.config.daily import PreflightConfig
from pipeline.daily.preflight import check_profile

SCHEMA = Schema.model_validate(
    {
        "tables": [{"name": "video", "num_rows": 10, "dim": 4}],
        "features": [{"kind": "id", "name": "video", "table": "video"}],
        "tasks": [{"name": "ctr", "label": "click"}],
    }
)


def said(today: DayProfile, earlier: list[DayProfile]) -> list[str]:
    return [found.text for found in check_profile(PreflightConfig(), SCHEMA, today, earlier)]


def clicks(rows: int, positives: float) -> DayProfile:
    return DayProfile(rows, {}, {"ctr": (rows, float(positives), float(positives))})


@pytest.mark.parametrize("positives", [0, 1, 2, 5, 9])
def test_a_rare_label_on_few_rows(positives: int) -> None:
    """Catches an error from today's labels: of 200 rows at 1 %, none is positive by a chance of 13 %."""
    assert said(clicks(200, positives), [clicks(200, 2)] * 5) == []


def test_an_error_is_of_the_usual_days_too() -> None:
    """Catches a usual rate of 0, found on few rows, by which the first positive is refused."""
    assert said(clicks(200, 2), [clicks(200, 0)] * 3) == []


@pytest.mark.parametrize(("rows", "positives"), [(3000, 0), (200, 20), (200, 200), (10**6, 0), (10**6, 10**6)])
def test_a_label_that_is_really_off(rows: int, positives: int) -> None:
    """Holds the negative control: an allowance so wide that no day is refused."""
    (problem,) = said(clicks(rows, positives), [clicks(rows, rows / 100)] * 5)
    assert problem.startswith("task 'ctr' has a mean label of ")


def test_a_label_in_another_unit() -> None:
    """Catches an allowance that grows with today's labels: seconds that have become milliseconds."""
    usual = DayProfile(200, {}, {"ctr": (200, 2000.0, 40_000.0)})
    today = DayProfile(200, {}, {"ctr": (200, 2_000_000.0, 4e10)})
    assert len(said(today, [usual] * 5)) == 1
    assert said(usual, [usual] * 5) == []


def test_labels_of_both_signs() -> None:
    """Catches a scale of labels that has no bound, since they add up to nothing."""
    usual = [DayProfile(1000, {}, {"ctr": (1000, total, 1000.0)}) for total in (3.0, -5.0, 20.0, -31.0, 8.0)]
    assert said(DayProfile(1000, {}, {"ctr": (1000, 60.0, 1000.0)}), usual) == []
    assert len(said(DayProfile(1000, {}, {"ctr": (1000, 900.0, 1000.0)}), usual)) == 1


@pytest.mark.parametrize("positives", [0, 1])
@pytest.mark.parametrize("nulls", [0, 1])
def test_a_day_of_one_row(positives: int, nulls: int) -> None:
    """Catches a day that is refused for its label, its null or its new id, where only its size is unusual."""
    ids = {"video": IdSketch(np.arange(20, dtype=np.uint64), np.full(20, 10))}
    usual = DayProfile(200, {"age": 2}, {"ctr": (200, 2.0, 2.0)}, ids)
    new = {"video": IdSketch(np.array([99], np.uint64), np.array([1]))}
    today = DayProfile(1, {"age": nulls}, {"ctr": (1, float(positives), float(positives))}, new)
    (problem,) = said(today, [usual] * 5)
    assert problem == "1 rows, usual are 200 (daily.preflight.rows_ratio 1.5)"


def test_nulls_on_few_rows() -> None:
    """Catches a share of 20 rows that is held to a limit of .05, whatever chance does."""
    usual = [DayProfile(20, {"age": 2})] * 5
    assert said(DayProfile(20, {"age": 6}), usual) == []
    assert len(said(DayProfile(20, {"age": 20}), usual)) == 1
    assert len(said(DayProfile(2000, {"age": 400}), [DayProfile(2000, {"age": 200})] * 5)) == 1


def test_a_new_user_brings_all_rows_at_once() -> None:
    """Catches rows that count one by one where they come by the user: 3 of 6 users are new, with 100 rows each."""
    known = IdSketch(np.arange(6, dtype=np.uint64), np.full(6, 100))
    half = IdSketch(np.array([0, 1, 2, 97, 98, 99], np.uint64), np.full(6, 100))
    usual = [DayProfile(600, {}, {}, {"video": known})] * 5
    assert said(DayProfile(600, {}, {}, {"video": half}), usual) == []
    many = IdSketch(np.arange(600, dtype=np.uint64), np.ones(600, np.int64))
    other = IdSketch(np.arange(300, 900, dtype=np.uint64), np.ones(600, np.int64))
    usual = [DayProfile(600, {}, {}, {"video": many})] * 5
    (problem,) = said(DayProfile(600, {}, {}, {"video": other}), usual)
    assert problem.startswith("50.0% of the rows have an id of 'video' that was on none of the last 5 days")
