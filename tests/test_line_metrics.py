"""Metrics of a line: its lag, and what is said where nothing is published or the root does not answer."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from small_daily import World, config_of, day_of, killable, train_first_days

from pipeline.submission import line_metrics
from pipeline.submission.line_metrics import LineMetrics

__all__ = ["killable"]  # fixtures


class Noon(datetime):
    """The clock, at noon of a day."""

    @classmethod
    def now(cls, tz: object = None) -> datetime:
        return datetime.fromisoformat(f"{day_of(5)}T20:00:00").replace(tzinfo=UTC)


def shown(root: Path, time_zone: str = "Etc/UTC", **options: Any) -> str:
    registry = CollectorRegistry()
    registry.register(LineMetrics(config_of(root), time_zone, **options))
    return generate_latest(registry).decode()


def test_the_lag_of_a_line(tmp_path: Path, killable: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a lag that is counted from the clock's zone, or a line without days that looks up to date."""
    monkeypatch.setattr(line_metrics, "datetime", Noon)
    assert "lag_days{" not in shown(tmp_path)
    assert "overdue_days{" not in shown(tmp_path)
    assert 'counterpoise_overdue_days{line="main"} 5.0' in shown(tmp_path, first_day=day_of(0))
    train_first_days(config_of(tmp_path), killable, 4)
    assert 'counterpoise_ledger_lag_days{line="main"} 2.0' in shown(tmp_path)
    assert 'counterpoise_ledger_lag_days{line="main"} 3.0' in shown(tmp_path, "Asia/Shanghai")
    assert 'counterpoise_overdue_days{line="main"} 1.0' in shown(tmp_path)
    assert 'counterpoise_overdue_days{line="main"} 0.0' in shown(tmp_path, lag_days=5)


def test_a_root_that_does_not_answer(tmp_path: Path, killable: World) -> None:
    """Catches a value that is served on although nobody knows it any more."""
    train_first_days(config_of(tmp_path), killable, 4)
    (tmp_path / "lines/main/LATEST").write_text("{}")
    said = shown(tmp_path)
    assert 'counterpoise_root_up{line="main"} 0.0' in said
    assert "lag_days{" not in said
