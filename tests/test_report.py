"""Report of a line: what is read, how it is judged and named, and what the page says (report_lines.py)."""

import argparse
import json
import re
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import yaml
from records import manifest_of, write_manifest
from report_lines import TASKS, config_of, day_of, metrics_of, write_backfill, write_comparison, write_line

from features.errors import ConfigError
from jobs import report as command
from pipeline.config.load import parse_config
from pipeline.config.project import Config
from pipeline.daily.gate import check_model
from pipeline.lineage.ledger import Ledger
from pipeline.lineage.ledger_entry import HoldoutMetrics, LedgerEntry
from pipeline.lineage.line import Line
from pipeline.lineage.line_state import write_attempt
from pipeline.lineage.manifest import declared
from pipeline.lineage.records import Attempt
from pipeline.report.charts import Palette
from pipeline.report.expert_use import plain_experts
from pipeline.report.health import health, verdict_of
from pipeline.report.line_page import LineFigures, line_figures, line_page
from pipeline.report.measured_sections import heat_map_section, slice_section
from pipeline.report.page import Page, Section
from pipeline.report.stored_figures import MeasuredCell, calibration_curves, slice_changes, stored_comparisons
from pipeline.report.write_line_report import write_line_report
from pipeline.storage.files import Storage


def _now(day: int) -> datetime:
    return datetime.fromisoformat(f"{day_of(day)}T08:00:00").replace(tzinfo=UTC)


@pytest.fixture(scope="module")
def fortnight(tmp_path_factory: pytest.TempPathFactory) -> Config:
    """A line of 14 days that no test changes."""
    return write_line(tmp_path_factory.mktemp("root"), 14)


@pytest.fixture(scope="module")
def figures(fortnight: Config) -> LineFigures:
    return line_figures(fortnight, None)


def _section(page: Page, name: str) -> Section:
    (found,) = [section for section in page.sections if section.name == name]
    return found


# --- What is read ---


def test_each_file_is_read_once(fortnight: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a report that walks the ledger once for each chart: 400 days on S3 would take minutes."""
    read, counts = Storage.read, Counter[str]()

    def counted(self: Storage, name: str) -> bytes:
        counts[f"{self.url}/{name}"] += 1
        return read(self, name)

    monkeypatch.setattr(Storage, "read", counted)
    line_figures(fortnight, None)
    entries = {name: times for name, times in counts.items() if "/ledger/" in name or "/attempts/" in name}
    assert len(entries) == 14 + 14 + 3
    assert set(entries.values()) == {1}


def test_the_drawn_limit_is_the_gate_s(fortnight: Config, figures: LineFigures) -> None:
    """Catches a limit in the chart that is not the one by which a day is refused."""
    entries, gate, usual = figures.records.entries, fortnight.daily.gate, []
    refused = set()
    for entry in entries:
        found = check_model(gate, entry.before, usual[::-1][: gate.window], None, None)
        refused |= {(entry.day, re.findall(r"task '(\w+)'", one.text)[0]) for one in found}
        usual += [entry.before] if entry.before else []
    assert {(one.day, one.task) for one in figures.days if one.is_low} == refused == {(day_of(10), "vtr")}
    known = [one for one in figures.days if one.task == "ctr" and one.least is not None]
    assert [one.day for one in known] == [day_of(day) for day in range(4, 14)]  # after three days with metrics


def test_a_stretch_of_days_has_the_limits_of_the_whole(fortnight: Config, figures: LineFigures) -> None:
    """Catches --days whose first days have no limits, since the days before them were not read."""
    asked = [day_of(day) for day in range(8, 12)]
    some = line_figures(fortnight, asked)
    assert [entry.day for entry in some.records.entries] == asked
    assert some.days == [one for one in figures.days if one.day in asked]
    assert some.records.newest.day == day_of(13)
    assert any(text.startswith(f"This page ends with {day_of(11)}") for text in _by_level(some, 14)["look"])
    assert {day for attempt in some.records.attempts for day in attempt.days} == set(asked)


def test_days_that_are_not_published(fortnight: Config, tmp_path: Path) -> None:
    """Catches a traceback, or an empty page, where there is nothing to report."""
    with pytest.raises(ConfigError, match="no published day among those of --days; its newest is 2025-10-14"):
        line_figures(fortnight, ["2024-01-01"])
    with pytest.raises(ConfigError, match="nothing is published: train first, or name a line with --line"):
        line_figures(config_of(tmp_path), None)


# --- Experts ---


def test_a_collapsed_expert_is_named(figures: LineFigures) -> None:
    """Catches "expert 6", no alarm for a weight of exactly 0, and one for what a gate may not choose."""
    page = line_page(figures, _now(14))
    (alarm,) = [one.text for one in page.statements if one.level == "alarm"]
    assert alarm == "1 expert has collapsed: the shared expert 1 in the gate of task vtr, level 2 (weight 0.0000)."
    assert page.verdict is not None
    assert page.verdict.text == "Not everything is all right: 1 alarm."
    gates = {chart.title: {row["name"] for row in chart.rows} for chart in _section(page, "experts").charts}
    assert len(gates) == 5 + 1 + 5
    assert gates["Gate of task vtr, level 2"] == {"own expert of vtr", "shared expert 0", "shared expert 1"}
    assert gates["Shared gate, level 1"] >= {f"own expert of {task}" for task in TASKS}


def test_several_own_experts_have_numbers() -> None:
    """Catches two experts of one name, whose lines would be one."""
    names = ["expert 0 of task ctr", "expert 1 of task ctr", "expert 0 of task vtr", "shared expert 0"]
    expected = ["own expert 0 of ctr", "own expert 1 of ctr", "own expert of vtr", "shared expert 0"]
    assert [name for name, _ in plain_experts(names)] == expected
    assert [owner for _, owner in plain_experts(names)] == ["ctr", "ctr", "vtr", ""]


def test_experts_are_named_by_the_checkpoint(tmp_path: Path) -> None:
    """Catches names of the present configuration for the experts of a model that had another network."""
    then = write_line(tmp_path, 2)
    plain = declared(then)
    level = {"num_experts": 2, "expert_layers": [4]}
    now = parse_config(plain | {"model": plain["model"] | {"network": {"kind": "mmoe"} | level}}, "test")
    assert line_figures(now, None).use.shares == ()  # neither fits: there is no name
    assert line_figures(now, None).use.unnamed == (day_of(0), day_of(1))
    line = Line.of(str(tmp_path), "main")
    newest = Ledger(line).newest()
    assert newest is not None
    write_manifest(line, newest.checkpoint, manifest_of(day=newest.day, config=plain))
    use = line_figures(now, None).use
    assert use.unnamed == ()
    assert {share.expert for share in use.shares if share.gate == "gate of task ctr, level 1"} == {
        "own expert of ctr",
        "shared expert 0",
        "shared expert 1",
    }


# --- The answer at the top ---


def _statements(config: Config, day: int) -> dict[str, list[str]]:
    return _by_level(line_figures(config, None), day)


def _by_level(figures: LineFigures, day: int) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {"good": [], "look": [], "alarm": []}
    for one in health(figures.records, figures.days, figures.use, _now(day)):
        found[one.level].append(one.text)
    return found


def test_all_is_right(tmp_path: Path) -> None:
    """Catches a report that always finds something, so that nobody reads it."""
    config = write_line(tmp_path, 6, collapsed=False)
    figures = line_figures(config, None)
    said = health(figures.records, figures.days, figures.use, _now(6))
    assert verdict_of(said).text == "Everything is all right.", said
    assert "No expert has collapsed." in [one.text for one in said]


def test_what_is_wrong_is_said(tmp_path: Path) -> None:
    """Catches a late line, a failed or unpublished attempt, or an accepted gate that the top of the page leaves out."""
    config = write_line(tmp_path, 4, collapsed=False)
    line = Line.of(str(tmp_path), "main")
    late = _statements(config, 9)["alarm"]
    assert late == [
        "The newest published day is 2025-10-04, 6 days before today (UTC); more than 2 is late. Run jobs.daily, and "
        "read its last error."
    ]
    shared: dict[str, Any] = {"run": "run", "days": (day_of(4),), "serial": 0}
    write_attempt(line.storage, Attempt(**shared, attempt=90, result="failed", reason="NaN at <step 7>"))
    assert _statements(config, 4)["alarm"] == ["The last attempt (0090, at 2025-10-05) ended: failed: NaN at <step 7>"]
    write_attempt(line.storage, Attempt(**shared, attempt=91))
    assert "ended: still running, or killed" in " ".join(_statements(config, 4)["look"])
    write_attempt(line.storage, Attempt(**shared, attempt=91, result="done"))
    assert "2025-10-05 is trained and not published" in " ".join(_statements(config, 4)["look"])
    accepted = _statements(write_line(tmp_path / "other", 11), 10)
    assert not any("gate of" in text and "found" in text for text in accepted["look"])
    said = " ".join(_by_level(line_figures(config_of(tmp_path / "other"), [day_of(7)]), 11)["look"])
    assert "The gate of 2025-10-08 found task 'vtr': 0.4712 on this day" in said
    assert "li accepted it: a holiday" in said


# --- What other commands have stored ---


def test_absent_data_name_their_command(tmp_path: Path) -> None:
    """Catches an empty chart, or a heading with nothing below it."""
    page = line_page(line_figures(write_line(tmp_path, 1, tasks=("ctr",)), None), _now(1))
    absent = {section.name: section.absent for section in page.sections if section.is_empty}
    commands = {name: set(re.findall(r"jobs\.\w+", text)) for name, text in absent.items()}
    assert commands == {
        "next-day-satisfaction": {"jobs.daily"},
        "next-day-engagement": {"jobs.daily"},
        "experts": {"jobs.daily"},
        "slices": {"jobs.backfill"},
        "heat-map": {"jobs.backfill"},
        "calibration": {"jobs.daily", "jobs.evaluate"},
        "seesaw": {"jobs.compare"},
    }
    for section in page.sections:
        assert section.absent or section.charts or section.tables


def _cell(name: str, day: int, value: float, made: int = 0) -> MeasuredCell:
    return MeasuredCell(
        checkpoint=f"main:{made}",
        checkpoint_day=day_of(made),
        day=day_of(day),
        lag=day - made,
        row_set="all",
        slice=name,
        task="ctr",
        value=value,
        num_rows=7,
    )


def test_drops_of_slices_by_hand() -> None:
    """Catches a drop against another day or model: the newest that has not trained the day counts."""
    phone = [_cell("phone", 1, 0.7), _cell("phone", 2, 0.9), _cell("phone", 3, 0.5), _cell("phone", 3, 0.99, made=3)]
    phone.append(_cell("phone", 3, 0.6, made=2))
    tablet = [_cell("tablet", 1, 0.7), _cell("tablet", 3, 0.65)]
    found = slice_changes([*tablet, *phone, _cell("gone", 1, 0.7), _cell("", 3, 0.1)])
    assert [(one.slice, one.num_days) for one in found] == [("phone", 2), ("tablet", 1)]
    assert [one.change for one in found] == pytest.approx([0.6 - 0.8, 0.65 - 0.7])


def test_gains_of_a_stored_comparison(fortnight: Config, tmp_path: Path) -> None:
    """Catches a gain of the wrong sign, and models that are compared with another seed's."""
    write_comparison(config_of(tmp_path))
    (comparison,), left = stored_comparisons(str(tmp_path))
    assert left == 0
    assert set(comparison.gains) == {"mmoe", "ple"}
    assert comparison.gains["ple"]["ctr"].mean == pytest.approx(0.006 + 0.00075)
    assert comparison.gains["mmoe"]["cmr"].mean == pytest.approx(-0.004 * (1 - 2.4))
    assert stored_comparisons(fortnight.root) == ([], 0)


CURVE = [
    {"mean_prediction": 0.1, "mean_label": 0.12, "rows": 40},
    {"mean_prediction": None, "mean_label": None, "rows": 0},
    {"mean_prediction": 0.3, "mean_label": 0.25, "rows": 60},
]


def test_calibration_curves_of_entry_and_evaluation(tmp_path: Path) -> None:
    """Catches curves that are measured and not shown, and a bin without rows that is drawn at 0."""
    points = [
        {"mean_prediction": 0.1, "mean_label": 0.12, "num_rows": 40},
        {"mean_prediction": 0.3, "mean_label": 0.25, "num_rows": 60},
    ]
    new = {"ctr": metrics_of("binary", 0.7) | {"calibration_curve": CURVE}}
    entry = LedgerEntry(kind="daily", day=day_of(0), checkpoint="c", run="r", holdout=HoldoutMetrics(new=new))
    (curve,) = calibration_curves(str(tmp_path), "main", [entry])
    assert (curve.task, curve.points) == ("ctr", points)
    assert calibration_curves(str(tmp_path), "main", []) == []
    task = {"task": "vtr", "model": {"calibration_curve": CURVE}}
    result = {"checkpoint": "checkpoints/x", "days": [day_of(0)], "tasks": [task]}
    (tmp_path / "reports/evaluate/main").mkdir(parents=True)
    (tmp_path / "reports/evaluate/main/a.json").write_text(json.dumps(result))
    (curve,) = calibration_curves(str(tmp_path), "main", [])
    assert (curve.task, curve.points) == ("vtr", points)


def test_heat_maps_are_bounded(tmp_path: Path) -> None:
    """Catches a page that grows with the square of the days, and checkpoints of one day that share a row."""
    config = write_line(tmp_path, 3)
    write_backfill(config, range(42), range(63), ("", "device=phone"))
    figures = line_figures(config, None)
    section = heat_map_section(figures.stored, figures.tasks)
    assert list(section.notes) == ["3 older measured days left out; --days shows them."]
    assert [chart.title for chart in section.charts] == ["ctr", "vtr"]
    assert len(section.charts[0].rows) == 60 * 40
    assert len({row["checkpoint"] for row in section.charts[0].rows}) == 40
    (drops,) = slice_section(figures.stored.cells, Palette.of(TASKS)).charts
    assert {row["label"] for row in drops.rows} == {"device=phone, ctr", "device=phone, vtr"}


# --- The command ---


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a page at another place than the JSON line says, or a --line that reports the configuration's."""
    write_line(tmp_path / "root", 2, name="other")
    path = tmp_path / "my.yaml"
    path.write_text(yaml.safe_dump(declared(config_of(tmp_path / "root"))))

    def run(*arguments: str) -> dict[str, Any]:
        parser = argparse.ArgumentParser()
        command.add_arguments(parser)
        return command.run(parser.parse_args(["--config", str(path), *arguments]))

    with pytest.raises(ConfigError, match="name a line with --line"):
        run()
    done = run("--line", "other", "--days", day_of(1))
    assert done["report"] == str(tmp_path / "root/reports/other.html")
    assert (done["line"], done["days"], done["first_day"]) == ("other", 1, day_of(1))
    assert Path(done["report"]).stat().st_size == done["bytes"]
    assert len(done["alarms"]) == 2  # the expert, and the years since
    monkeypatch.chdir(tmp_path)
    assert run("--line", "other", "--out", "page.html")["report"] == str(tmp_path / "page.html")


def test_a_root_on_s3(s3_root: str) -> None:
    """Catches a report that reads or writes local paths."""
    config = write_line(f"{s3_root}/report", 2)
    write_comparison(config)
    write_backfill(config, range(2), range(2))
    done = write_line_report(config, None, now=_now(2))
    assert done["report"] == f"{config.root}/reports/main.html"
    page = Storage(config.root).read("reports/main.html").decode()
    assert "own expert of vtr" in page
    assert "gain of vtr" in page
