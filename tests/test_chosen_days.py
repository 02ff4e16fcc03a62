"""Days of a command: several ranges and single days, and days without a log that are left out by name."""

import argparse
import itertools
import json
from datetime import date, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from records import manifest_of
from small_runs import DAYS, logs, make_config

from features.errors import ConfigError, DataError
from jobs import compare, daily, evaluate, fit_features, group_tasks, migrate, train, user_vectors
from jobs.command import add_skip_missing, asked_days
from pipeline.ingest.chosen_days import span, without_missing
from pipeline.ingest.units import parse_days
from pipeline.lineage.audit import audit_line
from pipeline.lineage.choose_start import start_of
from pipeline.lineage.records import RunScope
from pipeline.report.figures import report_evaluation
from pipeline.storage.files import Storage

__all__ = ["logs"]  # fixtures


def test_ranges_and_single_days() -> None:
    """Catches a missing day that no range can leave out."""
    days = parse_days("2026-11-01..2026-11-03,2026-11-05,2026-11-30..2026-12-01")
    assert days == ["2026-11-01", "2026-11-02", "2026-11-03", "2026-11-05", "2026-11-30", "2026-12-01"]


@pytest.mark.parametrize(
    "text",
    [
        "2026-11-01,2026-11-01",
        "2026-11-01..2026-11-03,2026-11-03..2026-11-05",
        "2026-11-05,2026-11-01",
        "2026-11-01,",
        ",2026-11-01",
        "2026-11-01, 2026-11-02",
        "2026-11-01;2026-11-02",
    ],
)
def test_days_that_are_twice_or_out_of_order(text: str) -> None:
    """Catches a day that is trained twice in one pass, and days that are trained before their time."""
    with pytest.raises(ConfigError, match=r"^days .*: expected YYYY-MM-DD or .*, several .* comma"):
        parse_days(text)


@given(st.sets(st.integers(0, 60), min_size=1))
def test_days_are_said_as_they_are_asked_for(offsets: set[int]) -> None:
    """Catches a span that names days in a gap, or a text that the command would not take."""
    days = [(date(2026, 11, 1) + timedelta(days=offset)).isoformat() for offset in sorted(offsets)]
    assert parse_days(span(days)) == days
    gaps = sum(later - earlier > 1 for earlier, later in itertools.pairwise(sorted(offsets)))
    assert span(days).count(",") == gaps


def _log(folder: Path) -> Storage:
    for day, file in (("01", "a.parquet"), ("03", "_SUCCESS"), ("04", "a.parquet"), ("05", "sub/a.parquet")):
        path = folder / f"dt=2026-11-{day}" / file
        path.parent.mkdir(parents=True)
        path.write_bytes(b"not read here")
    (folder / "dt=2026-11-06").mkdir()
    return Storage(str(folder))


def test_days_without_a_log_are_left_out(tmp_path: Path) -> None:
    """Catches a day that is left out although it has a file, or kept although it has none that is read."""
    days = parse_days("2026-11-01..2026-11-06")
    kept, left_out = without_missing(_log(tmp_path), days)
    assert kept == ["2026-11-01", "2026-11-04", "2026-11-05"]
    assert left_out == ["2026-11-02", "2026-11-03", "2026-11-06"]


def test_not_every_day_can_be_left_out(tmp_path: Path) -> None:
    """Catches a misspelt path of the logs, by which a training of no day is a success."""
    with pytest.raises(DataError, match=r"has no log of 2026-11-02\.\.2026-11-03: write the logs, or correct"):
        without_missing(_log(tmp_path), parse_days("2026-11-02..2026-11-03"))


def _arguments(*texts: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    for name in ("--days", "--popularity-days"):
        parser.add_argument(name)
    add_skip_missing(parser)
    return parser.parse_args(texts)


def test_left_out_days_are_in_the_result(tmp_path: Path) -> None:
    """Catches days that are left out in silence, of the baseline's too."""
    _log(tmp_path / "logs")
    config = make_config(tmp_path / "logs", tmp_path / "root")
    days = ("--days", "2026-11-04..2026-11-06", "--popularity-days", "2026-11-01..2026-11-03")
    asked, left_out = asked_days(config, _arguments(*days, "--skip-missing"), "days", "popularity_days")
    assert asked == [["2026-11-04", "2026-11-05"], ["2026-11-01"]]
    assert left_out == {"left_out": ["2026-11-02", "2026-11-03", "2026-11-06"]}
    asked, left_out = asked_days(config, _arguments(*days), "days", "popularity_days")
    assert [len(found) for found in asked] == [3, 3]
    assert left_out == {}
    asked, _ = asked_days(config, _arguments("--days", "2026-11-04", "--skip-missing"), "days", "popularity_days")
    assert asked == [["2026-11-04"], []]


@pytest.mark.parametrize("job", [compare, evaluate, fit_features, group_tasks, migrate, train, user_vectors])
def test_every_command_that_reads_days_can_leave_some_out(job: Any) -> None:
    """Catches a command whose `--days` a missing day still blocks."""
    parser = argparse.ArgumentParser()
    job.add_arguments(parser)
    assert "--skip-missing" in {option for action in parser._actions for option in action.option_strings}


def test_a_run_with_a_gap_is_trained_once(
    logs: Path, tmp_path: Path, local_training: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches a run over a gap that is begun anew, that trains the day in the gap, or that audits as another one."""
    config = make_config(logs, tmp_path / "root", workers={"num": 1, "timeout_s": 60, "max_failures": 0})
    texts = ["--config", "x", "--days", "2025-12-30..2026-01-02,2026-01-04", "--skip-missing"]
    for job in (fit_features, train):
        monkeypatch.setattr(job, "read_config", lambda arguments: config)
    parser = argparse.ArgumentParser()
    train.add_arguments(parser)
    arguments = parser.parse_args(texts)
    fitted = fit_features.run(arguments)
    assert (fitted["days"], fitted["left_out"]) == (DAYS, ["2025-12-30", "2025-12-31", "2026-01-04"])
    result = train.run(arguments)
    assert result["left_out"] == ["2025-12-30", "2025-12-31", "2026-01-04"]
    assert result["rows"] == 6000
    assert train.run(arguments)["result"] == "nothing to do"
    assert audit_line(config, None)["days"] == DAYS


def test_a_refusal_names_the_days_and_no_gap() -> None:
    """Catches a message by which `finish A..B` would train a day that was left out."""
    written = manifest_of(day="2026-01-01", run=RunScope(days=("2026-01-01", "2026-01-03"), passes=1), step=7)
    line: Any = SimpleNamespace(name="main", newest=lambda: written, latest=lambda: None)
    with pytest.raises(DataError, match=r"asked for are 2026-01-05,2026-01-07: .* finish 2026-01-01,2026-01-03, "):
        start_of(written.config, line, ["2026-01-05", "2026-01-07"], 1)


def test_the_daily_job_has_no_gap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a line that lacks a day which nobody skipped."""
    monkeypatch.setattr(daily, "read_config", lambda arguments: make_config(tmp_path, tmp_path / "root"))
    parser = argparse.ArgumentParser()
    daily.add_arguments(parser)
    arguments = parser.parse_args(["--config", "x", "--days", "2026-01-01..2026-01-02,2026-01-04"])
    with pytest.raises(ConfigError, match=r"^days 2026-01-01\.\.2026-01-02,2026-01-04: a line has no gaps: "):
        daily.run(arguments)
    for text in ("2026-01-01..2026-01-02", "2026-01-01,2026-01-02"):
        for option in (["--day", text], ["--rollback", text, "a reason"]):
            with pytest.raises(ConfigError, match=rf"^{option[0]} {text}: expected one day, YYYY-MM-DD"):
                daily.run(parser.parse_args(["--config", "x", *option]))


def test_evaluations_of_other_days_have_other_files(tmp_path: Path) -> None:
    """Catches figures of a range that are replaced by those of the same range with a gap."""
    result = {"checkpoint": "checkpoints/2026-01-02/0001/0000000007-day", "tasks": []}
    places = [
        report_evaluation(str(tmp_path), "main", result | {"days": parse_days(text)})["figures"]
        for text in ("2026-01-01..2026-01-04", "2026-01-01,2026-01-04", "2026-01-01..2026-01-02,2026-01-04")
    ]
    assert len(set(places)) == 3
    assert places[0].endswith("2026-01-01_2026-01-04_2026-01-02-0001-0000000007-day_all.json")
    assert all(json.loads(Path(place).read_text())["days"] for place in places)
