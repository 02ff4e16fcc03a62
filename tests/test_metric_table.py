"""The table of metrics over history: what is appended, and which rows count."""

from pathlib import Path
from typing import Any

import pytest

from pipeline.evaluation.cells import Cell
from pipeline.evaluation.metric_table import MetricTable, begin_after
from pipeline.storage.files import Storage

DAY = "2026-03-02"


@pytest.fixture
def table(tmp_path: Path) -> MetricTable:
    return MetricTable.of(str(tmp_path))


def cell(number: int, *, log: str = "log", day: str = DAY) -> Cell:
    name = f"checkpoints/2026-03-01/{number:04d}/1-day"
    return Cell("main", name, "2026-03-01", day, "all", f"digest {number}", log, f"key {number} {log} {day}")


def tasks(auc: float | None, rows: int = 10) -> list[dict[str, Any]]:
    interval = {"low": 0.1, "high": 0.9, "draws": [0.1, None, 0.9]}
    return [{"task": "ctr", "kind": "binary", "model": {"rows": rows, "auc": auc, "mse": 0.5}, "interval": interval}]


def values(table: MetricTable) -> list[tuple[str, float | None]]:
    rows = table.read().to_pylist()
    return [(row["checkpoint"][23:27], row["value"]) for row in rows if row["metric"] == "auc"]


def test_the_newest_commit_counts(table: MetricTable) -> None:
    """Catches a figure that is there twice, one of the log before it changed, and a commit that is replaced."""
    table.commit(DAY, [(cell(2), tasks(0.6)), (cell(1), tasks(None))])
    before = table.storage.read(f"{DAY}/000001.parquet")
    assert values(table) == [("0001", None), ("0002", 0.6)]
    table.commit(DAY, [(cell(2, log="new"), tasks(0.7))])
    assert values(table) == [("0001", None), ("0002", 0.7)]
    assert table.storage.read(f"{DAY}/000001.parquet") == before
    (old,) = [row for row in table.of_cells(DAY, [cell(2).key]).to_pylist() if row["metric"] == "auc"]
    assert (old["value"], old["low"], old["draws"], old["commit"]) == (0.6, 0.1, [0.1, None, 0.9], 1)
    assert [row["draws"] for row in table.read([DAY]).to_pylist() if row["metric"] == "mse"] == [None, None]
    assert table.read(["2026-03-03"]).num_rows == 0


def test_nothing_is_committed_twice(table: MetricTable) -> None:
    """Catches a commit that is repeated after an answer that was lost."""
    for _ in range(2):
        table.commit(DAY, [(cell(1), tasks(0.6))])
    assert table.storage.names(DAY) == ["000001.parquet"]


def test_two_commands_at_once(table: MetricTable, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a command that overwrites the commit of another one, which has just taken its number."""
    create = Storage.create

    def raced(self: Storage, name: str, data: bytes) -> bool:
        monkeypatch.setattr(Storage, "create", create)
        table.commit(DAY, [(cell(1), tasks(0.6))])
        return create(self, name, data)

    monkeypatch.setattr(Storage, "create", raced)
    table.commit(DAY, [(cell(2), tasks(0.7))])
    assert table.storage.names(DAY) == ["000001.parquet", "000002.parquet"]
    assert values(table) == [("0001", 0.6), ("0002", 0.7)]


def test_a_cell_of_two_commands(table: MetricTable) -> None:
    """Catches a cell that two commands measure at once, and that is then in two commits."""
    table.commit(DAY, [(cell(1), tasks(0.6)), (cell(2), tasks(0.7))])
    table.commit(DAY, [(cell(2), tasks(0.7)), (cell(3), tasks(0.8))])
    found = [row for row in table.of_cells(DAY, [cell(n).key for n in (1, 2, 3)]).to_pylist() if row["metric"] == "auc"]
    assert [(row["checkpoint"][23:27], row["commit"]) for row in found] == [("0001", 1), ("0002", 1), ("0003", 2)]


def test_a_change_that_is_taken_back(table: MetricTable) -> None:
    """Catches figures of a log that was restored since, and a commit for cells that count anyway."""
    both = [cell(1).key, cell(2).key]
    table.commit(DAY, [(cell(1), tasks(0.5)), (cell(2), tasks(0.6))])
    table.renew(DAY, both)
    table.commit(DAY, [(cell(2, log="new"), tasks(0.7))])
    table.renew(DAY, [cell(1).key, cell(2, log="new").key, "unknown"])
    assert table.storage.names(DAY) == ["000001.parquet", "000002.parquet"]
    for _ in range(2):
        table.renew(DAY, both)
        assert values(table) == [("0001", 0.5), ("0002", 0.6)]
        assert table.storage.names(DAY) == ["000001.parquet", "000002.parquet", "000003.parquet"]
    assert {row["commit"] for row in table.of_cells(DAY, [cell(2).key]).to_pylist()} == {3}


def test_the_bytes_follow_from_the_cells(tmp_path: Path) -> None:
    """Catches a file that depends on the order in which groups of models were measured."""
    pairs = [(cell(1), tasks(0.6)), (cell(2), tasks(0.7))]
    found = []
    for number, order in enumerate((pairs, pairs[::-1])):
        table = MetricTable.of(str(tmp_path / str(number)))
        table.commit(DAY, order)
        found.append(table.storage.read(f"{DAY}/000001.parquet"))
    assert found[0] == found[1]


def test_a_start_after_committed_days(table: MetricTable) -> None:
    """Catches a start that passes over a day of which one cell is missing, or over a day after it."""
    other = "2026-03-03"
    keys = {day: [cell(1, day=day).key, cell(2, day=day).key] for day in (DAY, other)}
    readings = [(DAY, keys[DAY]), (DAY, keys[DAY]), (other, keys[other])]
    table.commit(other, [(cell(1, day=other), tasks(0.6)), (cell(2, day=other), tasks(0.6))])
    table.commit(DAY, [(cell(1), tasks(0.6))])
    assert begin_after(table, readings).done == 0
    table.commit(DAY, [(cell(2), tasks(0.6))])
    assert begin_after(table, readings).done == 3
