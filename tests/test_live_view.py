"""The live view of real runs: event files and Ray's endpoint show what was trained and published."""

import time
import urllib.request
from datetime import date
from pathlib import Path

import pytest
import ray
from small_daily import World, config_of, day_of, killable, train_first_days
from small_runs import DAYS, ROWS_PER_DAY, logs, make_config
from tracking_files import points_of

from pipeline.lineage.ledger import Ledger
from pipeline.lineage.line import Line
from pipeline.lineage.manifest import declared
from pipeline.log_passes.statistics import fit_statistics
from pipeline.trainer.train_line import train

__all__ = ["killable", "logs"]  # fixtures
_SCRAPED_S = 60  # Ray's processes report every 10 s


@pytest.mark.ray
def test_a_run_on_ray(logs: Path, tmp_path: Path, ray_cluster: None) -> None:
    """Catches figures that reach neither the event file nor Ray's endpoint, or are those of one rank or of no row."""
    config = make_config(logs, tmp_path, ray={}, checkpoint={"every_steps": 20})
    fit_statistics(config, DAYS[:1])
    train(config, DAYS[:1], passes=1)
    entry = Ledger(Line.of(config.root, config.line)).newest()
    assert entry is not None
    assert sorted(path.name for path in (tmp_path / "tracking/main").iterdir()) == [f"{DAYS[0]}-g1-a0001", "ledger"]
    found = points_of(tmp_path / "tracking/main" / f"{DAYS[0]}-g1-a0001")
    for task, rows in entry.rows_in_space.items():
        at_end = [value for step, value in found[f"rows_in_space/{task}"] if step == ROWS_PER_DAY]
        assert at_end == [rows] * 2  # of the progress, and of the ledger
        assert all(value > 0 for _, value in found[f"loss/{task}"])
    assert all(value > 0 for _, value in found["rows_per_s"])
    assert all(0 <= value <= 1 for _, value in found["wait_share"])
    assert 0 <= found["save_stall_s"][-1][1] < found["save_s"][-1][1]
    assert found["rows"] == [(ROWS_PER_DAY, ROWS_PER_DAY)]
    assert "tracking" not in declared(config)
    expected = {"loss", "rows_in_space", "rows_per_second", "wait_share", "save_seconds", "save_stall_seconds"}
    expected = {f"ray_counterpoise_{name}" for name in expected} | {"ray_counterpoise_ledger_lag_days"}
    deadline = time.monotonic() + _SCRAPED_S
    while not (shown := _scraped()) >= expected:
        assert time.monotonic() < deadline, f"Ray's endpoint lacks {expected - shown}"
        time.sleep(1)


def test_days_of_the_daily_job(tmp_path: Path, killable: World) -> None:
    """Catches a publication that is not shown, shown as another attempt's, or without its next-day metrics."""
    line = train_first_days(config_of(tmp_path), killable, 2)
    folder = tmp_path / "tracking/main"
    entries = [Ledger(line).read(day_of(number), 1) for number in range(2)]
    runs = [f"{entry.day}-g1-a{entry.attempt}" for entry in entries]
    assert sorted(path.name for path in folder.iterdir()) == [*runs, "ledger"]
    assert points_of(folder / runs[1])["before/ctr/auc"] == [(entries[1].rows, pytest.approx(0.8))]
    number = (date.fromisoformat(day_of(0)) - date(1970, 1, 1)).days
    assert points_of(folder / "ledger")["gate_findings"] == [(number, 0), (number + 1, 0)]


def test_days_without_a_place_to_show_them(tmp_path: Path, killable: World, caplog: pytest.LogCaptureFixture) -> None:
    """Catches a day that is not published since nobody can watch it."""
    (tmp_path / "tracking").write_text("no folder")
    line = train_first_days(config_of(tmp_path), killable, 2)
    latest = line.latest()
    assert latest is not None
    assert latest.day == day_of(1)
    assert "tracking by tensorboard failed: NotADirectoryError" in caplog.text


def _scraped() -> set[str]:
    """Names of our metrics at the endpoint of the session's Ray, of the line `main`."""
    url = f"http://127.0.0.1:{ray.nodes()[0]['MetricsExportPort']}/metrics"
    with urllib.request.urlopen(url, timeout=10) as answer:
        lines = answer.read().decode().splitlines()
    return {line.partition("{")[0] for line in lines if line.startswith("ray_counterpoise_") and 'line="main"' in line}
