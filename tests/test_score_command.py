"""The command that ranks: against pandas, in partitions, in days that appear whole, and its refusals in one line."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from predicted_days import KEYS, RANKING, TASKS, change_record, run_command, write_config, write_predictions

from jobs import score
from pipeline.scoring import ranks
from pipeline.scoring import score as scoring
from pipeline.storage.files import Storage

DAYS = ("2026-01-01", "2026-01-02")


def _columns(random: np.random.Generator, num_rows: int) -> dict[str, Any]:
    users = random.integers(0, 30, num_rows)
    columns: dict[str, Any] = {
        "user_id": pa.array(users, mask=users == 0),
        "video_id": pa.array([f"v{number}" for number in random.integers(0, 99, num_rows)]),
        "duration_ms": pa.array(random.integers(0, 60_000, num_rows), mask=random.random(num_rows) < 0.1),
    }
    for task in TASKS:
        columns[f"prediction_{task}"] = pa.array(np.round(random.random(num_rows), 1).astype(np.float32))
    return columns


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """Two days of two files of predictions, with ties, zeros, null users and null durations; and a configuration."""
    random = np.random.default_rng(5)
    days = {day: [_columns(random, num_rows) for num_rows in (700, 301)] for day in DAYS}
    write_predictions(tmp_path / "predictions", days)
    write_config(tmp_path / "config.yaml", RANKING)
    return tmp_path


def run(project: Path, *others: str, days: str = f"{DAYS[0]}..{DAYS[1]}", out: str = "out") -> tuple[Any, int]:
    fixed = ["--config", str(project / "config.yaml"), "--predictions", str(project / "predictions"), "--days", days]
    return run_command(score, *fixed, "--out", str(project / out), *others)


def read(project: Path, day: str, folder: str = "out") -> pd.DataFrame:
    files = sorted((project / folder / f"dt={day}").iterdir())
    return pd.concat([pq.read_table(file).to_pandas() for file in files], ignore_index=True)


def expected(project: Path, day: str) -> pd.DataFrame:
    rows = read(project, day, "predictions")
    duration = rows["duration_ms"].fillna(0) / 1000
    product = rows["prediction_ctr"].astype(float) * rows["prediction_shr"].astype(float) ** 0.5 * np.log1p(duration)
    with np.errstate(divide="ignore"):
        rows["score"] = np.log(product)
    order = rows.assign(user=rows["user_id"].fillna(-1)).sort_values("score", ascending=False, kind="stable")
    rows["rank"] = order.groupby("user").cumcount().add(1).reindex(rows.index)
    return rows[[*KEYS, "score", "rank"]]


@pytest.mark.parametrize("rows_at_once", [2**22, 100])
def test_scores_and_ranks_equal_pandas(project: Path, rows_at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches ranks across users or days, ties out of the rows' order, and rows lost or moved between partitions."""
    monkeypatch.setattr(ranks, "ROWS_AT_ONCE", rows_at_once)
    result, code = run(project)
    assert (code, result["result"], result["rows"], result["kept"]) == (0, "written", 2002, 2002)
    assert (result["groups"], result["written"]) == (60, list(DAYS))
    for day in DAYS:
        pd.testing.assert_frame_equal(read(project, day), expected(project, day), check_dtype=False)
        for name in ("part-00000.parquet", "part-00001.parquet"):
            written, source = (pq.read_schema(project / top / f"dt={day}" / name) for top in ("out", "predictions"))
            assert [written.field(key) for key in KEYS] == [source.field(key) for key in KEYS]
    zeros = sum(int(np.isneginf(expected(project, day)["score"]).sum()) for day in DAYS)
    assert result["zeros"] == zeros > 0


def test_top_rows_are_the_first_of_each_user(project: Path) -> None:
    """Catches a cut by file instead of by user, and a `--top` that is not the config's."""
    result, _ = run(project, "--top", "3", days=DAYS[0])
    whole = expected(project, DAYS[0])
    top = whole[whole["rank"] <= 3].reset_index(drop=True)
    pd.testing.assert_frame_equal(read(project, DAYS[0]), top, check_dtype=False)
    assert (result["kept"], result["rows"]) == (len(top), 1001)
    write_config(project / "config.yaml", RANKING | {"top": {"by": "user_id", "k": 3}})
    run(project, days=DAYS[0], out="by_config")
    pd.testing.assert_frame_equal(read(project, DAYS[0], "by_config"), read(project, DAYS[0]))


def test_the_lexicographic_score(project: Path) -> None:
    """Catches a kind of score that only the functions know."""
    tasks = [{"task": "ctr", "boundaries": [0.25, 0.75]}, {"task": "vcr"}]
    write_config(project / "config.yaml", {"kind": "lexicographic", "tasks": tasks, "top": {"by": "video_id", "k": 1}})
    result, code = run(project, days=DAYS[0])
    assert code == 0
    rows = read(project, DAYS[0], "predictions")
    rows["bucket"] = np.digitize(rows["prediction_ctr"], [0.25, 0.75])
    best = rows.sort_values(["bucket", "prediction_vcr"], ascending=False, kind="stable").groupby("video_id").head(1)
    pd.testing.assert_frame_equal(
        read(project, DAYS[0])[list(KEYS)], best.sort_index()[list(KEYS)].reset_index(drop=True), check_dtype=False
    )
    assert result["kept"] == result["groups"] == rows["video_id"].nunique()


def test_a_command_that_was_cut_off_goes_on(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a half-written day that looks finished, a finished day that is done again, and a restart refused."""
    write, seen = Storage.write, []

    def cut_off(self: Storage, name: str, data: bytes) -> None:
        if name.endswith(f"dt={DAYS[1]}/part-00001.parquet") and not seen:
            seen.append(name)
            raise OSError(5, "cut off")
        write(self, name, data)

    monkeypatch.setattr(Storage, "write", cut_off)
    result, code = run(project)
    assert (code, "cut off" in result["error"]) == (1, True)
    assert Storage(str(project / "out")).names() == ["_scores.json", "_writing", f"dt={DAYS[0]}"]
    before = {path: path.stat().st_mtime_ns for path in (project / f"out/dt={DAYS[0]}").iterdir()}
    result, code = run(project)
    assert (code, result["written"]) == (0, [DAYS[1]])
    assert {path: path.stat().st_mtime_ns for path in (project / f"out/dt={DAYS[0]}").iterdir()} == before
    assert Storage(str(project / "out")).names() == ["_scores.json", *(f"dt={day}" for day in DAYS)]
    pd.testing.assert_frame_equal(read(project, DAYS[1]), expected(project, DAYS[1]), check_dtype=False)
    assert run(project)[0]["result"] == "nothing to do"


def _other_ranking(project: Path) -> None:
    run(project)
    write_config(project / "config.yaml", RANKING | {"exponents": {"ctr": 2.0}})


def _other_predictions(project: Path) -> None:
    run(project)
    change_record(project / "predictions", checkpoint_digest="e")


def _no_record(project: Path) -> None:
    (project / "predictions/_predictions.json").unlink()


def _filled(project: Path) -> None:
    (project / "out").mkdir()
    (project / "out/notes.txt").write_text("mine")


def _without_key(project: Path) -> None:
    write_predictions(project / "predictions", {}, keys=["user", "duration_ms"])


def _added_name(project: Path) -> None:
    write_predictions(project / "predictions", {}, keys=[*KEYS, "rank"])


def _changed_file(project: Path, **columns: Any) -> None:
    path = project / f"predictions/dt={DAYS[0]}/part-00001.parquet"
    table = pq.read_table(path)
    for name, values in columns.items():
        table = table.drop_columns([name]) if values is None else table.set_column(0, name, values)
    pq.write_table(table, path)


def _nan(project: Path) -> None:
    path = project / f"predictions/dt={DAYS[0]}/part-00001.parquet"
    table = pq.read_table(path)
    values = table["prediction_ctr"].to_numpy().copy()
    values[[3, 5]] = np.nan
    pq.write_table(table.drop_columns(["prediction_ctr"]).append_column("prediction_ctr", pa.array(values)), path)


@pytest.mark.parametrize(
    ("breaking", "code", "message"),
    [
        (_no_record, 2, "has no _predictions.json: name the directory that jobs.predict wrote"),
        (_filled, 2, "is not empty: name another directory, or remove what is there"),
        (_other_ranking, 2, "has scores of another ranking"),
        (_other_predictions, 2, f"has scores of {DAYS[0]} from other predictions"),
        (_without_key, 2, "has no key column 'user_id': did you mean 'user'?"),
        (_added_name, 2, "has a key column 'rank', the name of a column that is added"),
        (lambda project: _changed_file(project, prediction_shr=None), 3, "has no column 'prediction_shr'"),
        (_nan, 3, "part-00001.parquet: 2 rows have a prediction that is NaN, null or infinite"),
        (lambda project: write_config(project / "config.yaml", None), 2, "the config has no section ranking"),
        (lambda project: (project / "out").write_text(""), 2, "out cannot be written"),
    ],
)
def test_bad_input_ends_in_one_line(project: Path, breaking: Any, code: int, message: str) -> None:
    """Catches a traceback, a wrong exit code, and a half-made result of a refused command."""
    breaking(project)
    before = {path: path.read_bytes() for path in project.rglob("*") if path.is_file()}
    result, got = run(project)
    assert message in result["error"]
    assert (got, "\n" in result["error"]) == (code, False)
    assert {path: path.read_bytes() for path in project.rglob("*") if path.is_file()} == before


def test_wrong_arguments_end_in_one_line(project: Path) -> None:
    """Catches a day without predictions that is left out in silence, and a top of no rows."""
    result, code = run(project, days="2026-01-03")
    assert (code, result["error"].endswith(f"of 2026-01-03, only of: {DAYS[0]}, {DAYS[1]}")) == (3, True)
    result, code = run(project, "--top", "0")
    assert (code, result["error"]) == (2, "--top 0: expected at least 1")
    assert not (project / "out").exists()


def test_a_read_only_out_ends_in_one_line(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a target that is found to be read-only after all days were ranked."""

    def refuse(self: Storage, name: str, data: bytes) -> None:
        raise PermissionError(13, "Permission denied", name)

    monkeypatch.setattr(Storage, "write", refuse)
    monkeypatch.setattr(scoring, "DayRanks", None)
    result, code = run(project)
    assert (code, result["error"]) == (
        2,
        f"{project}/out cannot be written (Permission denied): give a place that this user may write",
    )
