"""History of a line: one row a day, and entries that name the file of their samples of ids (small_daily.py)."""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_daily import SmallWork, World, config_of, day_of, killable, run, train_first_days

from features.errors import ConfigError
from features.profile import DayProfile, IdSketch
from jobs import history as command
from pipeline.ingest.units import DayLog
from pipeline.lineage.ledger import Ledger
from pipeline.lineage.line import Line
from pipeline.lineage.manual_moves import branch
from pipeline.report.history import history, history_table
from pipeline.storage.sealed_json import seal, unseal

__all__ = ["killable"]  # fixtures


@pytest.fixture
def many_ids(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give every day the same 1,024 ids, 16 KB of them; a day of the set `anomalous` of the world has other ones."""
    profile = SmallWork.profile

    def with_ids(self: SmallWork, log: DayLog) -> DayProfile:
        hashes = np.arange(1024, dtype=np.uint64) * np.uint64(2**53) + np.uint64(log.day in self.world.anomalous)
        found = profile(self, log)
        found.rows = 100
        found.ids = {"user_id": IdSketch(hashes, np.ones(1024, np.int64))}
        return found

    monkeypatch.setattr(SmallWork, "profile", with_ids)


def _entry_file(root: Path, day: str) -> Path:
    return root / f"lines/main/ledger/{day}/1.json"


def test_entries_are_small(killable: World, tmp_path: Path, many_ids: None) -> None:
    """Catches samples of ids in the entry, which a person cannot read and every look at the ledger loads."""
    train_first_days(config_of(tmp_path), killable, 2)
    path = _entry_file(tmp_path, day_of(1))
    assert path.stat().st_size < 6_000
    named = json.loads(path.read_text())["sketches"]
    data = (tmp_path / "lines/main" / named["file"]).read_bytes()
    assert len(data) == named["bytes"] > 16_000
    assert (tmp_path / "lines/main" / named["file"]).parent == path.parent
    assert [entry.generation for entry in Ledger(Line.of(str(tmp_path), "main")).generations(day_of(1))] == [1]


def _says_unseen(config: Any, line: Line, world: World, day: int) -> bool:
    world.anomalous = {day_of(day)}
    with pytest.raises(Exception, match="is refused by preflight") as refused:
        run(config, line, world, day_of(day))
    world.anomalous = set()
    return "100.0% of the rows have an id of 'user_id'" in str(refused.value)


@pytest.mark.parametrize("old", [0, 2, 5])
def test_ids_are_compared_with_those_of_both_kinds_of_entries(
    killable: World, tmp_path: Path, many_ids: None, old: int
) -> None:
    """Catches an entry of an earlier version, with the samples inside, whose ids are no history."""
    config = config_of(tmp_path)
    line = train_first_days(config, killable, 5)
    for number in range(old):
        _make_old(tmp_path, day_of(number))
    assert _says_unseen(config, line, killable, 5)
    killable.versions[day_of(5)] = 2
    assert run(config, line, killable, day_of(5))["result"] == "published"


def _make_old(root: Path, day: str) -> None:
    """Write an entry as the version before did: the samples inside, no file beside it."""
    path = _entry_file(root, day)
    content = unseal(path.read_bytes())
    file = root / "lines/main" / content.pop("sketches")["file"]
    content["profile"]["ids"] = unseal(file.read_bytes())["ids"]
    content["version"] = 2
    path.write_bytes(seal(content))


@pytest.mark.parametrize("damage", ["gone", "changed"])
def test_samples_that_are_lost_do_not_stop_a_line(
    killable: World, tmp_path: Path, many_ids: None, caplog: pytest.LogCaptureFixture, damage: str
) -> None:
    """Catches a line that a file of samples can stop, and samples of other ids that are taken for those of the day."""
    config = config_of(tmp_path)
    line = train_first_days(config, killable, 5)
    for number in range(5):
        named = json.loads(_entry_file(tmp_path, day_of(number)).read_text())["sketches"]["file"]
        path = tmp_path / "lines/main" / named
        path.unlink() if damage == "gone" else path.write_bytes(seal({"ids": {}}))
    assert run(config, line, killable, day_of(5))["result"] == "published"
    assert caplog.text.count("samples of ids") == 5


def test_a_branch_reads_the_samples_of_its_origin(killable: World, tmp_path: Path, many_ids: None) -> None:
    """Catches a file that is looked for on the line that continues, and not on the one that wrote it."""
    config = config_of(tmp_path)
    line = train_first_days(config, killable, 5)
    assert _says_unseen(config, branch(line, "again", day_of(5), from_nothing=False), killable, 5)


def _history(killable: World, root: Path) -> tuple[Any, Line]:
    config = config_of(root)
    line = train_first_days(config, killable, 5)
    killable.anomalous, killable.bad = {day_of(5)}, {day_of(5)}
    run(config, line, killable, day_of(5), anomaly="a public holiday", gate="labels are late")
    run(config, line, killable, day_of(6), skip="no log")
    return config, line


def test_one_row_a_day(killable: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a day that is left out, an acceptance without its reason or its person, and rows out of order."""
    monkeypatch.setenv("COUNTERPOISE_USER", "alice")
    _, line = _history(killable, tmp_path)
    rows = history(line, None)
    assert [row["day"] for row in rows] == [day_of(number) for number in range(7)]
    assert rows[1]["before"] == {"ctr": 0.8}
    assert rows[1]["preflight"] == rows[1]["gate"] == "passed"
    assert rows[1]["accepted"] == []
    assert rows[1]["rows"] == 100
    assert rows[1]["checkpoint"].startswith(f"checkpoints/{day_of(1)}/")
    holiday = rows[5]
    assert (holiday["preflight"], holiday["gate"]) == ("accepted", "accepted")
    assert [(one["check"], one["reason"], one["by"]) for one in holiday["accepted"]] == [
        ("preflight", "a public holiday", "alice"),
        ("gate", "labels are late", "alice"),
    ]
    assert "10 rows, usual are 100" in holiday["accepted"][0]["problems"][0]
    assert (rows[6]["kind"], rows[6]["skipped"], rows[6]["by"]) == ("skip", "no log", "alice")
    assert [row["day"] for row in history(line, [day_of(1), day_of(3)])] == [day_of(1), day_of(3)]
    assert "ids" not in json.dumps(rows)
    assert json.loads(json.dumps(rows)) == rows


def test_the_person_is_the_one_who_accepted(killable: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a restart by a scheduler that puts its own name under the reason of a person."""
    config = config_of(tmp_path)
    line = train_first_days(config, killable, 4)
    killable.anomalous = {day_of(4)}
    monkeypatch.setenv("COUNTERPOISE_USER", "alice")
    assert run(config, line, killable, day_of(4), kill_at=5, anomaly="a public holiday") is None
    monkeypatch.setenv("COUNTERPOISE_USER", "cron")
    run(config, line, killable, day_of(4))
    (accepted,) = history(line, [day_of(4)])[0]["accepted"]
    assert (accepted["reason"], accepted["by"]) == ("a public holiday", "alice")


def test_a_reason_that_an_earlier_version_kept(killable: World, tmp_path: Path) -> None:
    """Catches an acceptance of the version before, given within a day, that is forgotten or not understood."""
    config = config_of(tmp_path)
    line = train_first_days(config, killable, 4)
    killable.anomalous = {day_of(4)}
    assert run(config, line, killable, day_of(4), kill_at=5, anomaly="a public holiday") is None
    (path,) = (tmp_path / f"lines/main/steps/{day_of(4)}").rglob("accept-anomaly.json")
    content = unseal(path.read_bytes())
    path.write_bytes(seal(content | {"result": "a public holiday"}))
    run(config, line, killable, day_of(4))
    (accepted,) = history(line, [day_of(4)])[0]["accepted"]
    assert (accepted["reason"], accepted["by"]) == ("a public holiday", None)


def test_the_table(killable: World, tmp_path: Path) -> None:
    """Catches a table that does not fit its head, or says nothing of a day that was accepted or left out."""
    _, line = _history(killable, tmp_path)
    head, rule, *rows = history_table(history(line, None)).splitlines()
    assert head.split() == ["day", "rows", "ctr", "preflight", "gate", "checkpoint", "accepted", "or", "left", "out"]
    assert len(rows) == 7
    assert set(rule) == {"-", " "}
    assert all(len(row) <= len(rule) for row in rows)
    assert "preflight by" in rows[5]
    assert "a public holiday" in rows[5]
    assert "left out by" in rows[6]


def test_the_command(
    killable: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Catches a command that needs Ray, or writes to the line that it reads."""
    config, _ = _history(killable, tmp_path)
    monkeypatch.setattr(command, "read_config", lambda arguments: config)
    shown: list[str] = []
    monkeypatch.setattr(command, "show", shown.append)
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    before = killable.ops
    result = command.run(parser.parse_args(["--config", "x", "--days", f"{day_of(1)}..{day_of(2)},{day_of(9)}"]))
    assert killable.ops == before
    assert (result["result"], result["line"]) == ("listed", "main")
    assert [row["day"] for row in result["days"]] == [day_of(1), day_of(2)]
    assert day_of(1) in shown[0]
    empty = config.model_copy(update={"line": "other"})
    monkeypatch.setattr(command, "read_config", lambda arguments: empty)
    with pytest.raises(ConfigError, match=r"lines/other: nothing is published: train first"):
        command.run(parser.parse_args(["--config", "x"]))
