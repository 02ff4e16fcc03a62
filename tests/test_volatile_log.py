"""Limits on a small log whose users come and go (volatile_log.py): few refusals in 48 days, and those that matter."""

import copy
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest
from volatile_log import NUM_DAYS, ONE_ROW, SCHEMA, Day, VolatileLog

from pipeline.config.daily import GateConfig, PreflightConfig
from pipeline.daily.finding import Finding
from pipeline.daily.gate import check_model
from pipeline.daily.preflight import check_profile
from pipeline.lineage.ledger_entry import HoldoutMetrics

SEEDS = range(12)
STEP = 5  # every so many days, a day is halved or shuffled


@dataclass
class Refusals:
    """Findings of all days of a log, each of which is accepted, and of days that are wrong."""

    days: dict[int, list[Finding]] = field(default_factory=dict)
    halved: list[bool] = field(default_factory=list)
    shuffled: list[bool] = field(default_factory=list)


def preflight(day: Day, earlier: Sequence[Day], spread: float) -> list[Finding]:
    config = PreflightConfig(spread=spread)
    return check_profile(config, SCHEMA, day.profile, [one.profile for one in earlier[: config.window]])


def gate(day: Day, earlier: Sequence[Day], spread: float) -> list[Finding]:
    config = GateConfig(spread=spread)
    newest = earlier[: config.window]
    held = [HoldoutMetrics(new=one.new, parent=one.parent) for one in newest]
    return check_model(config, day.before, [one.before for one in newest], day.new, day.parent, held)


def simulate(seed: int, spread: float) -> Refusals:
    log, earlier, found = VolatileLog(seed), [], Refusals()
    for number in range(NUM_DAYS):
        if number % STEP == 4:
            half, shuffled = copy.deepcopy(log).day(number, half=True), copy.deepcopy(log).day(number, shuffled=True)
            found.halved.append("daily.preflight.rows_ratio" in [one.key for one in preflight(half, earlier, spread)])
            found.shuffled.append("daily.gate.before_drop" in [one.key for one in gate(shuffled, earlier, spread)])
        day = log.day(number)
        said = [*preflight(day, earlier, spread), *gate(day, earlier, spread)]
        if said:
            found.days[number] = said
        earlier.insert(0, day)
    return found


@pytest.fixture(scope="module")
def refusals() -> list[Refusals]:
    return [simulate(seed, spread=PreflightConfig().spread) for seed in SEEDS]


@pytest.fixture(scope="module")
def fixed() -> list[Refusals]:
    return [simulate(seed, spread=0) for seed in SEEDS]


def test_few_days_are_refused(refusals: list[Refusals], fixed: list[Refusals]) -> None:
    """Catches limits that do not know how much a log varies: fixed ones refuse 10 of 48 days, these 4 at most 7."""
    assert statistics.mean(len(one.days) for one in fixed) > 9  # the negative control
    found = [len(one.days) for one in refusals]
    assert statistics.mean(found) <= 4.5
    assert max(found) <= 7


def test_the_day_of_one_row_is_refused_for_its_rows(refusals: list[Refusals]) -> None:
    """Catches a spread that excuses anything, or a label of one row that is taken for a rate."""
    for one in refusals:
        assert [finding.key for finding in one.days[ONE_ROW]] == ["daily.preflight.rows_ratio"]


def test_half_a_day_is_refused(refusals: list[Refusals], fixed: list[Refusals]) -> None:
    """Catches a spread of the number of rows by which a day that was cut off passes."""
    halved = [is_refused for one in refusals for is_refused in one.halved]
    assert halved == [is_refused for one in fixed for is_refused in one.halved]
    assert len(halved) == 9 * len(SEEDS)
    assert sum(halved) / len(halved) > 0.85


def test_shuffled_labels_are_refused(refusals: list[Refusals]) -> None:
    """Catches a spread of the quality by which a day whose labels are of other rows passes."""
    shuffled = [is_refused for one in refusals for is_refused in one.shuffled]
    assert sum(shuffled) / len(shuffled) > 0.95


def test_the_spread_does_not_excuse_chance() -> None:
    """Catches labels of other rows on a line whose quality varies: .5 is 3 spreads below .62, and knows nothing."""
    usual = [metrics(auc) for auc in (0.78, 0.62, 0.7, 0.58, 0.66, 0.75, 0.6)]
    assert check_model(GateConfig(), metrics(0.56), usual, None, None) == []
    (finding,) = check_model(GateConfig(), metrics(0.51), usual, None, None)
    assert finding.key == "daily.gate.before_drop"
    known = [metrics(auc) for auc in (0.78, 0.62, 0.7, 0.5, 0.66, 0.75, 0.6)]
    assert check_model(GateConfig(), metrics(0.51), known, None, None) == []  # the line has had such a day


def metrics(auc: float) -> dict[str, dict[str, object]]:
    return {"ctr": {"kind": "binary", "rows": 2000, "positives": 600, "auc": auc}}
