"""The daily job in small (small_daily.py): a stretch of history that is accepted, and checks accepted repeatedly."""

import argparse
import logging
from pathlib import Path

import pytest
from small_daily import World, config_of, day_of, killable, run, run_range, train_first_days

from features.errors import ConfigError
from jobs import daily
from pipeline.daily.refusal import Refused
from pipeline.lineage.ledger import Ledger

__all__ = ["killable"]  # fixtures


def test_a_stretch_of_history_is_accepted(killable: World, tmp_path: Path) -> None:
    """Catches a reason for a range that holds for its last day alone, or that no entry has."""
    config = config_of(tmp_path)
    line = train_first_days(config, killable, 4)
    killable.anomalous, killable.bad = {day_of(5), day_of(7)}, {day_of(6)}
    result = run_range(config, line, killable, 4, 8, anomaly="users come and go", gate="a small log")
    assert [day["day"] for day in result["days"]] == [day_of(number) for number in range(4, 9)]
    verdicts = {number: Ledger(line).generations(day_of(number))[0] for number in range(4, 9)}
    assert {n: one.preflight.accepted for n, one in verdicts.items() if one.preflight and one.preflight.problems} == {
        5: "users come and go",
        7: "users come and go",
    }
    assert {n: one.gate.accepted for n, one in verdicts.items() if one.gate and one.gate.problems} == {6: "a small log"}
    assert all(one.preflight.accepted is None for n, one in verdicts.items() if one.preflight and n in (4, 6, 8))


def test_a_stretch_is_accepted_and_no_day_before_it(killable: World, tmp_path: Path) -> None:
    """Catches a reason for a range that lets the missing days before the range pass."""
    config = config_of(tmp_path)
    line = train_first_days(config, killable, 4)
    killable.anomalous = {day_of(4)}
    with pytest.raises(Refused, match=rf"^{day_of(4)} is refused by preflight"):
        run_range(config, line, killable, 5, 6, anomaly="users come and go")


def test_a_range_is_not_skipped(tmp_path: Path) -> None:
    """Catches a history that is left out as a whole, by a reason that was meant for one day."""
    parser = argparse.ArgumentParser(prog="daily")
    daily.add_arguments(parser)
    (tmp_path / "my.yaml").write_text(CONFIG.format(root=tmp_path))
    arguments = parser.parse_args(
        ["--config", str(tmp_path / "my.yaml"), "--days", "2026-03-01..2026-03-02", "--skip-day", "no log"]
    )
    with pytest.raises(ConfigError, match=r"^a day is skipped by itself: give --day, not --days$"):
        daily.run(arguments)


CONFIG = """
name: tests
root: {root}
logs: {{path: {root}/logs}}
schema:
  tables: [{{name: user, num_rows: 10, dim: 4}}]
  features: [{{kind: id, name: user_id, table: user}}]
  tasks: [{{name: ctr, label: click}}]
model: {{network: {{kind: hard_sharing, layers: [4]}}, towers: [4]}}
optimizer: {{tables: {{learning_rate: 0.1}}, dense: {{learning_rate: 0.01}}}}
"""


def test_a_check_that_is_accepted_repeatedly(killable: World, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Catches a limit that is wrong for a line, and a person who accepts it every day without hearing its key."""
    config = config_of(tmp_path)
    line = train_first_days(config, killable, 6)
    killable.anomalous = {day_of(number) for number in range(6, 10)}
    with caplog.at_level(logging.WARNING):
        said = []
        for number in range(6, 9):
            run(config, line, killable, day_of(number), anomaly="half of the users are away")
            entry = Ledger(line).find(day_of(number))
            assert entry is not None
            assert entry.preflight is not None
            said.append(entry.preflight.advice)
    advice = (
        "daily.preflight.rows_ratio was accepted 3 times in a row: set daily.preflight.rows_ratio to 10 or more if the "
        "log is right"
    )
    assert said == [(), (), (advice,)]
    assert f"{day_of(8)}: {advice}" in caplog.text
    killable.anomalous.add(day_of(9))
    with pytest.raises(
        Refused, match=r"usual are 100 \(.*\); daily.preflight.rows_ratio was accepted 3 times in a row: "
    ):
        run(config, line, killable, day_of(9))
    wider = config_of(tmp_path, preflight={"rows_ratio": 10.0})
    run(wider, line, killable, day_of(9))  # the advice is right
    entry = Ledger(line).find(day_of(9))
    assert entry is not None
    assert entry.preflight is not None
    assert entry.preflight.problems == ()


def test_a_day_without_the_finding_ends_the_row(killable: World, tmp_path: Path) -> None:
    """Catches acceptances that are counted over a whole history, however long ago they were."""
    config = config_of(tmp_path)
    line = train_first_days(config, killable, 6)
    killable.anomalous = {day_of(number) for number in (6, 7, 9)}
    for number in range(6, 10):
        run(config, line, killable, day_of(number), anomaly="half of the users are away")
    entry = Ledger(line).find(day_of(9))
    assert entry is not None
    assert entry.preflight is not None
    assert entry.preflight.problems
    assert entry.preflight.advice == ()


def test_the_advice_of_the_gate_names_the_task(killable: World, tmp_path: Path) -> None:
    """Catches advice to widen the limit of all tasks for one of them."""
    config = config_of(tmp_path)
    line = train_first_days(config, killable, 4)
    killable.bad = {day_of(number) for number in range(4, 7)}
    run_range(config, line, killable, 4, 6, gate="labels are late")
    entry = Ledger(line).find(day_of(6))
    assert entry is not None
    assert entry.gate is not None
    (advice,) = entry.gate.advice
    assert advice.startswith("daily.gate.before_drop of task 'ctr' was accepted 3 times in a row: ")
    assert "set daily.gate.tasks.ctr.before_drop to 0.28 or more" in advice
