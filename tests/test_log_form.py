"""A line that an earlier version trained: a log that is read otherwise today is refused until somebody accepts it."""

import contextlib
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from old_root import extract_old_root
from records import manifest_of

from features.errors import DataError
from pipeline.config.project import Config
from pipeline.daily.accepted import Accepted
from pipeline.daily.ray_work import RayWork
from pipeline.daily.run_days import run_days
from pipeline.evaluation.evaluate import evaluate
from pipeline.ingest.units import DayLog, Unit, Units
from pipeline.lineage.audit import audit_line
from pipeline.lineage.ledger import Ledger
from pipeline.lineage.line import Line
from pipeline.lineage.log_form import check_ids, form_changes
from pipeline.trainer.line_progress import LineProgress
from pipeline.trainer.train_line import train

DAYS = ["2026-01-01", "2026-01-02", "2026-01-03"]


@pytest.fixture
def old(tmp_path: Path) -> Config:
    """A root of an earlier version, stopped within the second of three days."""
    return extract_old_root(tmp_path)


def _daily(config: Config, day: str, reason: str | None = None) -> dict[str, Any]:
    line = Line.of(config.root, config.line)
    with contextlib.ExitStack() as stack:
        return run_days(config, line, RayWork(config, line, stack), [day], 0, Accepted(anomaly=reason))


def _into_folder(config: Config, day: str) -> str:
    """Move one file of a day into a folder of its own; return its new path."""
    folder = Path(config.logs.path) / f"dt={day}"
    file = min(folder.glob("*.parquet"))
    (folder / "hr=12").mkdir()
    file.rename(folder / "hr=12" / file.name)
    return f"dt={day}/hr=12/{file.name}"


def test_a_day_with_folders_is_accepted_by_a_person(old: Config, local_training: None) -> None:
    """Catches a line that trains half a day more than ever before, or never again, because of what is read today."""
    _daily(old, DAYS[1])
    before = Line.of(old.root, old.line).latest()
    file = _into_folder(old, DAYS[2])
    line = Line.of(old.root, old.line)
    newest = line.newest()
    assert newest is not None
    assert newest.day_files == "all"  # today's code has trained the second day
    line.storage.write(
        f"{newest.checkpoint}/manifest.json", newest.model_copy(update={"day_files": "in_folder"}).to_bytes()
    )
    with pytest.raises(DataError) as caught:
        _daily(old, DAYS[2])
    assert f"{DAYS[2]} has 1 files, the first {file}, that the version which trained {newest.checkpoint}" in str(
        caught.value
    )
    assert "go on with --accept-anomaly REASON" in str(caught.value)
    with pytest.raises(DataError, match=r"accept it with jobs.daily --day 2026-01-03 --accept-anomaly REASON"):
        train(old, [DAYS[2]], 1)
    assert line.latest() == before
    assert _daily(old, DAYS[2], "hours are right")["result"] == "published"
    entry = Ledger(line).newest()
    assert entry is not None
    assert entry.preflight is not None
    assert entry.preflight.accepted == "hours are right"
    assert len(entry.preflight.problems) == 1
    assert file in entry.logs
    assert audit_line(old, None)["result"] == "every row once"


def test_ids_of_another_type(old: Config, local_training: None) -> None:
    """Catches a day whose users are all new to the model, since they are text now; in training and in a measurement."""
    for file in (Path(old.logs.path) / f"dt={DAYS[1]}").glob("*.parquet"):
        table = pq.read_table(file)
        index = table.column_names.index("user_id")
        pq.write_table(table.set_column(index, "user_id", table["user_id"].cast(pa.string())), file)
    with pytest.raises(DataError, match=r"column 'user_id' is text here and integer in dt=2026-01-01/"):
        _daily(old, DAYS[1])  # with the late labels of the day before
    expected = r"column 'user_id' is text on 2026-01-02 and integer on 2026-01-01, which checkpoints/\S+ has trained: "
    with pytest.raises(DataError, match=f"{expected}every id would become a new one: write the log with ids of the"):
        evaluate(old, [DAYS[1]], None, [])


def test_a_day_without_values_forgets_no_type() -> None:
    """Catches a column that is null all day, after which its ids may have another type without a word."""
    progress = LineProgress()
    progress.begin_log(_log(DAYS[0], id_types={"a": "integer", "b": "text"}))
    progress.begin_log(_log(DAYS[1], id_types={"b": "text"}))
    known = progress.manifest_fields()["id_types"]
    assert known == {"a": "integer", "b": "text"}
    again = LineProgress.from_manifest(manifest_of(id_types=known))
    again.begin_log(_log(DAYS[2]))
    assert again.manifest_fields()["id_types"] == known


def test_a_measurement_of_other_files_is_named(old: Config, caplog: pytest.LogCaptureFixture) -> None:
    """Catches an evaluation of twice the rows that the same command measured last week, without a word."""
    check_ids(old, manifest_of(checkpoint="checkpoints/x"), [_log(DAYS[1], read_otherwise=("f",)), _log(DAYS[2])])
    (said,) = caplog.messages
    assert said.startswith(f"{DAYS[1]} has 1 files, the first f, that the version which trained checkpoints/x treated")


def _log(day: str, **form: Any) -> DayLog:
    return DayLog(day, Units([Unit(day, f"dt={day}/a", 0, 0, 1, whole=True)]), {f"dt={day}/a": "1-0"}, **form)


@pytest.mark.parametrize(
    ("trained", "log", "words"),
    [
        (None, _log(DAYS[1], read_otherwise=("f",)), None),
        ({}, _log(DAYS[1]), None),
        ({}, _log(DAYS[1], read_otherwise=("f",)), "has 1 files, the first f"),
        ({"day_files": "all"}, _log(DAYS[1], read_otherwise=("f",)), None),
        ({"day_files": "all", "id_types": {"a": "text"}}, _log(DAYS[1], id_types={"a": "text", "b": "integer"}), None),
        ({"day_files": "all", "id_types": {"a": "text"}}, _log(DAYS[1], id_types={"a": "integer"}), "column 'a' is"),
        ({}, _log(DAYS[1], id_types={"a": "integer"}), None),  # the trained log is gone
    ],
)
def test_what_is_another_form(old: Config, trained: Any, log: DayLog, words: str | None) -> None:
    """Catches a refusal of a line that reads as before, and a change of its reading that is passed over."""
    manifest = None if trained is None else manifest_of(checkpoint="checkpoints/x", **trained)
    changes = form_changes(old, manifest, [log])
    assert len(changes) == (words is not None)
    assert words is None or words in changes[0]
