"""Predictions as Parquet: every row once, in the log's order, equal to what an evaluation measures."""

import hashlib
import os
import shutil
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.dataset as pads
import pyarrow.parquet as pq
import pytest
from sklearn.metrics import log_loss, mean_squared_error, roc_auc_score
from small_history import ALL_DAYS, ROWS, TRAINED, call, history, trained, write_history

from jobs import predict as job
from jobs.command import BAD_ARGUMENTS, REFUSED
from pipeline.cluster.failures import RunFailed
from pipeline.config.predictions import PredictionsConfig
from pipeline.config.project import Config
from pipeline.evaluation.evaluate import evaluate
from pipeline.evaluation.row_sample import xauc
from pipeline.lineage.line import Line
from pipeline.scoring import predictions
from pipeline.scoring.prediction_files import files_of as files_of_day
from pipeline.scoring.prediction_files import num_rows_of, read_predictions
from pipeline.scoring.predictions import predict, predict_worker
from pipeline.scoring.written_predictions import PredictionFiles
from pipeline.storage.files import Storage

__all__ = ["history", "trained"]  # fixtures

DAYS = ALL_DAYS[3:5]
KEYS = ["user_id", "video_id", "scene", "duration_ms"]


def with_keys(config: Config, keys: list[str] = KEYS, **workers: Any) -> Config:
    settings = config.workers.model_copy(update=workers)
    return config.model_copy(update={"predictions": PredictionsConfig(keys=keys), "workers": settings})


def files_of(folder: Path) -> dict[str, Any]:
    """All tables that a reader of data sets sees, by path."""
    return {str(path.relative_to(folder)): pq.read_table(path) for path in sorted(folder.glob("dt=*/*.parquet"))}


@pytest.fixture(scope="module")
def predicted(trained: Config, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Predictions of two days by two workers, with labels."""
    from local_training import on_processes

    out = tmp_path_factory.mktemp("predictions") / "out"
    with on_processes():
        result = predict(with_keys(trained), DAYS, str(out), labels=True)
    assert (result["result"], result["rows"], result["left_out_units"]) == ("predicted", 2 * ROWS, 0)
    return out


def test_the_rows_and_files_are_those_of_the_log(trained: Config, predicted: Path) -> None:
    """Catches rows that are lost, come twice or stand in another order or file, and parts that are left over."""
    found = files_of(predicted)
    logs = Path(trained.logs.path)
    assert list(found) == sorted(
        str(path.relative_to(logs)) for day in DAYS for path in logs.glob(f"dt={day}/*.parquet")
    )
    for name, table in found.items():
        log = pq.read_table(logs / name)
        assert table.select(KEYS).equals(log.select(KEYS))
    assert pads.dataset(predicted).count_rows() == 2 * ROWS
    assert sorted(path.name for path in predicted.iterdir()) == [
        "_days",
        "_predictions.json",
        *map("dt={}".format, DAYS),
    ]
    assert PredictionFiles(Storage(str(predicted))).days() == DAYS


def gauc(rows: pd.DataFrame, task: str) -> tuple[float, int]:
    """GAUC by user, weighted by rows, and the number of users with one class."""
    found = [
        (len(group), roc_auc_score(group[f"label_{task}"], group[f"prediction_{task}"]))
        for _, group in rows.groupby("user_id")
        if group[f"label_{task}"].nunique() == 2
    ]
    return float(np.average([auc for _, auc in found], weights=[size for size, _ in found])), len(found)


def test_an_evaluation_equals_scikit_learn_on_the_predictions(
    trained: Config, predicted: Path, local_training: None
) -> None:
    """Catches predictions of another model, row or task, labels outside the space, and slices with others' rows."""
    rows = pd.concat([table.to_pandas() for name, table in files_of(predicted).items() if DAYS[0] in name])
    measured = evaluate(trained, DAYS[:1], None, [])["tasks"]
    assert {entry["kind"] for entry in measured} == {"binary", "regression"}
    for entry in measured:
        task, model = entry["task"], entry["model"]
        own = rows[rows[f"label_{task}"].notna()]
        assert len(own) == model["rows"]
        compare(entry["kind"], task, own, model)
        assert len(entry["slices"]["scene"]) == own["scene"].nunique()
        for one in entry["slices"]["scene"]:
            compare(entry["kind"], task, own[own["scene"].astype(str) == one["value"]], one)
        ranges = {one["value"]: one for one in entry["slices"]["length"]}
        seconds = own["duration_ms"] / 1000
        compare(entry["kind"], task, own[(seconds >= 10) & (seconds < 30)], ranges["10 to 30"])
        if entry["kind"] == "binary":
            value, groups = gauc(own, task)
            assert (model["gauc"], model["gauc_groups"]) == (pytest.approx(value, abs=1e-6), groups)
            curve = entry["calibration_curve"]
            assert sum(point["rows"] for point in curve) == len(own)
        else:
            label, prediction = own[f"label_{task}"].to_numpy(float), own[f"prediction_{task}"].to_numpy(float)
            assert model["xauc"] == pytest.approx(xauc(prediction, label, np.ones(len(own))), abs=1e-6)


def compare(kind: str, task: str, rows: pd.DataFrame, metrics: dict[str, Any]) -> None:
    label, prediction = rows[f"label_{task}"].to_numpy(float), rows[f"prediction_{task}"].to_numpy(float)
    assert metrics["rows"] == len(rows)
    assert metrics["mse"] == pytest.approx(mean_squared_error(label, prediction), abs=1e-6)
    assert metrics["mean_prediction"] == pytest.approx(prediction.mean(), abs=1e-6)
    if kind == "binary" and 0 < label.sum() < len(label):
        assert metrics["auc"] == pytest.approx(roc_auc_score(label, prediction), abs=1e-4)
        assert metrics["log_loss"] == pytest.approx(log_loss(label, prediction), abs=1e-6)


def test_what_is_there_is_not_computed_again(trained: Config, predicted: Path, local_training: None) -> None:
    """Catches a second command that computes complete days again, or writes into those of another checkpoint."""
    before = {path: path.stat().st_mtime_ns for path in predicted.rglob("*") if path.is_file()}
    assert predict(with_keys(trained), DAYS, str(predicted), labels=True)["result"] == "nothing to do"
    assert {path: path.stat().st_mtime_ns for path in predicted.rglob("*") if path.is_file()} == before


@dataclass(frozen=True)
class Cut:
    """A worker that is killed as it writes its nth part, or before it joins the parts of a day.

    Args:
        moment: Name of the method of `PredictionFiles` in which it is killed.
        number: Number of its call, from 1.
        noted: Folder with a file per unit that was written.
    """

    moment: str
    number: int
    noted: Path

    def __call__(self, job: Any, lane: Any) -> dict[str, Any]:
        calls, write = [0], PredictionFiles.write_part

        def noting(files: PredictionFiles, log: Any, unit: Any, rows: Any) -> None:
            write(files, log, unit, rows)
            name = hashlib.sha256(unit.key.encode()).hexdigest()  # a key has brackets, which a pattern would read
            (self.noted / f"{name}-{len(list(self.noted.glob(f'{name}-*')))}").touch()

        PredictionFiles.write_part = noting
        cut = getattr(PredictionFiles, self.moment)

        def killed(files: PredictionFiles, *arguments: Any) -> Any:
            calls[0] += 1
            if calls[0] == self.number:
                os.kill(os.getpid(), signal.SIGKILL)
            return cut(files, *arguments)

        setattr(PredictionFiles, self.moment, killed)
        return predict_worker(job, lane)


@pytest.mark.parametrize(("moment", "number"), [("write_part", 2), ("join", 1), ("complete", 2)])
def test_a_command_that_is_cut_off_goes_on(
    trained: Config,
    predicted: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    local_training: None,
    moment: str,
    number: int,
) -> None:
    """Catches rows that are lost or come twice after a kill, units that are computed again, and half a day as whole."""
    out, noted = tmp_path / "out", tmp_path / "noted"
    noted.mkdir()
    monkeypatch.setattr(predictions, "predict_worker", Cut(moment, number, noted))
    with pytest.raises(RunFailed):
        predict(with_keys(trained), DAYS, str(out), labels=True)
    assert DAYS[1] not in PredictionFiles(Storage(str(out))).days()
    first = len(list(noted.iterdir()))
    assert first > 0
    monkeypatch.setattr(predictions, "predict_worker", Cut(moment, 0, noted))
    result = predict(with_keys(trained, num=3), DAYS, str(out), labels=True)
    assert (result["result"], result["rows"]) == ("predicted", 2 * ROWS)
    assert [path for path in noted.iterdir() if not path.name.endswith("-0")] == []  # no unit twice
    expected, found = files_of(predicted), files_of(out)
    assert list(found) == list(expected)
    for name, table in found.items():
        assert table.schema == expected[name].schema
        for column in table.column_names:
            if column.startswith("prediction_"):
                np.testing.assert_allclose(table[column].to_numpy(), expected[name][column].to_numpy(), atol=1e-6)
            else:
                assert table[column].equals(expected[name][column])
    assert not (out / "_parts").exists()


def test_a_unit_that_cannot_be_read(history: Config, tmp_path: Path, local_training: None) -> None:
    """Catches a broken unit that ends a quarantining command, whose rows shift the others', or are lost in silence."""
    broken = min(Path(history.logs.path).glob(f"dt={DAYS[0]}/*.parquet"))
    groups = pq.ParquetFile(broken).metadata
    data, place = bytearray(broken.read_bytes()), groups.row_group(1).column(0)
    data[place.data_page_offset : place.data_page_offset + 60] = b"\xff" * 60
    broken.write_bytes(data)
    config = with_keys(history)
    refused = call(job, config, tmp_path, "--days", DAYS[0], "--out", str(tmp_path / "refused"))
    assert refused[1] == REFUSED
    assert f"{broken.name}, row group 1" in refused[0]["error"]
    ingest = config.ingest.model_copy(update={"on_bad_unit": "quarantine", "max_quarantined": 0.5})
    result = predict(config.model_copy(update={"ingest": ingest}), DAYS[:1], str(tmp_path / "out"))
    assert (result["rows"], result["left_out_units"]) == (ROWS - groups.row_group(1).num_rows, 1)
    record = PredictionFiles(Storage(str(tmp_path / "out"))).day(DAYS[0])
    assert record is not None
    (key,) = record.left_out
    assert key.startswith(f"dt={DAYS[0]}/{broken.name}#1")
    table = files_of(tmp_path / "out")[f"dt={DAYS[0]}/{broken.name}"]
    assert table.select(KEYS).equals(pq.ParquetFile(broken).read_row_group(0, KEYS))


def test_a_key_column_that_cannot_be_read(history: Config, tmp_path: Path, local_training: None) -> None:
    """Catches an error on one rank for which the others wait, and one that is tried again although it stays."""
    broken = min(Path(history.logs.path).glob(f"dt={DAYS[0]}/*.parquet"))
    group = pq.ParquetFile(broken).metadata.row_group(1)
    place = next(
        column for number in range(group.num_columns) if (column := group.column(number)).path_in_schema == "wish"
    )
    data = bytearray(broken.read_bytes())
    first = place.dictionary_page_offset or place.data_page_offset
    data[first : first + 20] = b"\xff" * 20
    broken.write_bytes(data)
    config = with_keys(history, ["user_id", "wish"])
    ingest = config.ingest.model_copy(update={"on_bad_unit": "quarantine"})
    config = config.model_copy(update={"ingest": ingest})
    found, code = call(job, config, tmp_path, "--days", DAYS[0], "--out", str(tmp_path / "out"))
    assert code == REFUSED, found
    assert f"{broken.name}, row group 1" in found["error"]
    assert PredictionFiles(Storage(str(tmp_path / "out"))).days() == []


def as_it_is(config: Config, out: Path) -> Config:
    return with_keys(config)


def with_a_file(config: Config, out: Path) -> Config:
    out.mkdir()
    (out / "notes.txt").touch()
    return with_keys(config)


def read_only(config: Config, out: Path) -> Config:
    out.touch()  # a folder without rights would not stop root, who runs the tests
    return with_keys(config)


def other_schema(config: Config, out: Path) -> Config:
    schema = config.log_schema.model_dump()
    schema["tables"][0]["num_rows"] += 1
    return with_keys(config.model_copy(update={"log_schema": type(config.log_schema).model_validate(schema)}))


def other_key(config: Config, out: Path) -> Config:
    return with_keys(config, ["user_id", "request_id"])


@pytest.mark.parametrize(
    ("spoil", "days", "code", "named"),
    [
        (with_a_file, DAYS[0], BAD_ARGUMENTS, ["out is not empty: name another --out"]),
        (read_only, DAYS[0], BAD_ARGUMENTS, ["out cannot be written"]),
        (other_key, DAYS[0], REFUSED, ["no column 'request_id'", "part-00000.parquet"]),
        (other_schema, DAYS[0], REFUSED, ["table user with 500 rows", "501"]),
        (as_it_is, "2026-02-01", REFUSED, ["dt=2026-02-01 is missing"]),
        (as_it_is, "yesterday", BAD_ARGUMENTS, ["'yesterday'"]),
    ],
)
def test_bad_input(
    history: Config,
    tmp_path: Path,
    spoil: Callable[[Config, Path], Config],
    days: str,
    code: int,
    named: list[str],
    local_training: None,
) -> None:
    """Catches bad input that ends in a traceback, is a failure to try again, or leaves half a result."""
    out = tmp_path / "out"
    config = spoil(history, out)
    before = sorted(out.rglob("*"))
    found, exit_code = call(job, config, tmp_path, "--days", days, "--out", str(out))
    assert exit_code == code, found
    assert all(text in found["error"] for text in named), found
    assert "\n" not in found["error"]
    assert sorted(out.rglob("*")) == before
    assert list(Path(history.root).rglob("pins/*/*.json")) == []


def test_another_checkpoint_or_log_in_the_same_place(
    history: Config, tmp_path: Path, predicted: Path, local_training: None
) -> None:
    """Catches predictions of two checkpoints, of other columns or of two logs that are mixed in one directory."""
    first = next(name for name in Line.of(history.root, "main").checkpoints() if f"/{TRAINED[0]}/" in name)
    out = str(predicted)
    found, code = call(
        job, with_keys(history), tmp_path, "--days", DAYS[0], "--out", out, "--labels", "--checkpoint", first
    )
    assert code == BAD_ARGUMENTS
    assert "has predictions with checkpoint" in found["error"]
    found, code = call(job, with_keys(history), tmp_path, "--days", DAYS[0], "--out", out)
    assert code == BAD_ARGUMENTS
    assert "with labels True, asked for is False" in found["error"]
    day = Path(history.logs.path) / f"dt={DAYS[0]}"
    shutil.rmtree(day)
    shutil.copytree(write_history(tmp_path / "other", seed=9) / day.name, day)
    found, code = call(job, with_keys(history), tmp_path, "--days", DAYS[0], "--out", out, "--labels")
    assert code == REFUSED
    assert "of another log than there is now" in found["error"]
    own = tmp_path / "own"
    shutil.copytree(predicted, own)
    (own / f"_days/{DAYS[0]}.json").unlink()
    for file in day.glob("*.parquet"):  # another system writes the day again under names of its own
        file.rename(file.with_name(f"other-{file.name}"))
    predict(with_keys(history), DAYS[:1], str(own), labels=True)
    assert sorted(path.name for path in (own / day.name).iterdir()) == sorted(
        path.name for path in day.glob("*.parquet")
    )
    predictions_of = read_predictions(Storage(str(own)))
    assert (
        sum(num_rows_of(Storage(str(own)), name) for name in files_of_day(Storage(str(own)), predictions_of, DAYS[0]))
        == ROWS
    )
