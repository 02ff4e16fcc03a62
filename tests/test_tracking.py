"""Trackers: what they write, and that none of them stops a run: full disks, servers that never answer, errors."""

import importlib.util
import os
import resource
import socket
import sys
import threading
import time
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from small_daily import config_of
from tracking_files import events_of, points_of

from features.errors import ConfigError
from pipeline.cluster.progress import Progress, TrainingFigures
from pipeline.cluster.run_points import RunPoints
from pipeline.config.load import parse_config
from pipeline.config.tracking import TENSORBOARD, MLflowConfig, TrackingConfig
from pipeline.lineage.ledger_entry import HoldoutMetrics, LedgerEntry, Verdict
from pipeline.lineage.ledger_figures import ledger_figures
from pipeline.storage.files import Storage
from pipeline.tracking import tensorboard
from pipeline.tracking.background import BackgroundTracker
from pipeline.tracking.mlflow import MLflowTracker, check_tracker
from pipeline.tracking.tensorboard import TensorBoardTracker
from pipeline.tracking.tracker import RunKey, Tracker
from pipeline.tracking.trackers import open_trackers

RUN = RunKey("main", "2026-01-01", "0003", 2)


def tracked(config: TrackingConfig, root: Path) -> BackgroundTracker:
    """The tracker of a configuration, without Ray's metrics."""
    return open_trackers(config, str(root), "tests", lambda run: run)[0]


def put(tracker: BackgroundTracker, number: int, run: RunKey = RUN) -> float:
    """Hand on points, and return the seconds that it took."""
    began = time.monotonic()
    for step in range(number):
        tracker.put(run, {"loss/ctr": 0.5, "rows_per_s": 100.0 + step}, step, 1000.0 + step)
    return time.monotonic() - began


@pytest.fixture
def silent_server() -> Iterator[str]:
    """The address of an HTTP server that takes every connection and never answers."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen(50)
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


def test_event_files(tmp_path: Path) -> None:
    """Catches an event that TensorBoard does not read, wrong steps or times, and an attempt that replaces another."""
    tracker = tracked(TENSORBOARD, tmp_path)
    put(tracker, 3)
    put(tracker, 1, RunKey("main", "2026-01-01", "0004", 2))
    tracker.close()
    folder = tmp_path / "tracking/main"
    assert sorted(os.listdir(folder)) == ["2026-01-01-g2-a0003", "2026-01-01-g2-a0004"]
    found = points_of(folder / "2026-01-01-g2-a0003")
    assert found == {
        "loss/ctr": [(0, 0.5), (1, 0.5), (2, 0.5)],
        "rows_per_s": [(0, 100.0), (1, 101.0), (2, 102.0)],
    }
    (file,) = (folder / "2026-01-01-g2-a0003").iterdir()
    first, *others = events_of(file.read_bytes())
    assert first.file_version == "brain.Event:2"
    assert [event.wall_time for event in others] == [1000.0, 1001.0, 1002.0]


def test_event_files_on_s3(s3_root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a bucket that has the points only at the end, or loses those since the last write."""
    storage = Storage(s3_root).under(f"tracking-{uuid.uuid4().hex}")
    tracker = TensorBoardTracker(storage)
    for step in range(3):
        tracker.scalars({"loss/ctr": 0.5}, step, 1000.0)
        if step == 0:
            (name,) = storage.names()
            assert len(events_of(storage.read(name))) == 2
    monkeypatch.setattr(tensorboard, "_UPLOAD_S", 0.0)
    tracker.scalars({"loss/ctr": 0.5}, 3, 1000.0)
    assert len(events_of(storage.read(name))) == 5
    monkeypatch.undo()
    tracker.scalars({"loss/ctr": 0.5}, 4, 1000.0)
    tracker.close()
    assert [event.step for event in events_of(storage.read(name))] == [0, 0, 1, 2, 3, 4]


def test_a_folder_that_cannot_be_written_stops_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Catches a run that ends, waits or warns a hundred times since its event file cannot be written."""
    (tmp_path / "tracking").write_text("no folder")  # root, as whom tests may run, may write to a read-only one
    tracker = tracked(TENSORBOARD, tmp_path)
    assert put(tracker, 100) < 1
    tracker.close()
    assert len(caplog.messages) == 1
    assert "tracking by tensorboard failed" in caplog.text
    assert "the run goes on" in caplog.text


def test_a_record_is_whole_or_absent(tmp_path: Path) -> None:
    """Catches half a record after a disk that was full for a moment: TensorBoard shows nothing that follows it."""
    tracker = TensorBoardTracker(Storage(str(tmp_path)))
    tracker.scalars({"loss/ctr": 0.5}, 1, 1000.0)
    (file,) = tmp_path.iterdir()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (file.stat().st_size + 20, limits[1]))
    try:
        with pytest.raises(OSError, match="too large"):
            tracker.scalars({"loss/ctr": 0.5}, 2, 1000.0)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert len(events_of(file.read_bytes())) == 2
    tracker.scalars({"loss/ctr": 0.5}, 3, 1000.0)
    assert [event.step for event in events_of(file.read_bytes())] == [0, 1, 2, 3]


class Hanging:
    """A tracker that never returns, as a client without a time-out."""

    def __init__(self) -> None:
        self.released = threading.Event()

    def scalars(self, values: Mapping[str, float], step: int, at: float) -> None:
        self.released.wait()

    def close(self) -> None:
        self.released.wait()


def test_a_tracker_that_hangs_stops_nothing(caplog: pytest.LogCaptureFixture) -> None:
    """Catches a queue that waits when it is full, an exit that waits for ever, and a warning for each lost point."""
    hanging = Hanging()
    tracker = BackgroundTracker("a tracker", lambda run: hanging)
    assert put(tracker, 5000) < 5
    began = time.monotonic()
    tracker.close(0.5)
    assert 0.4 < time.monotonic() - began < 5
    assert caplog.messages == ["tracking by a tracker does not keep up; the run goes on, and points may be missing"]
    hanging.released.set()


def test_a_tracker_that_comes_back_is_used(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """Catches a tracker that is given up for the rest of a day after one error."""
    monkeypatch.setattr("pipeline.tracking.background._REST_S", 0.0)
    kept: list[int] = []

    class Flaky:
        def scalars(self, values: Mapping[str, float], step: int, at: float) -> None:
            if step < 3:
                raise ConnectionError("no\nanswer")
            kept.append(step)

        def close(self) -> None:
            kept.append(-1)

    def open_run(run: RunKey) -> Tracker:
        return Flaky()

    tracker = BackgroundTracker("a tracker", open_run)
    put(tracker, 5)
    tracker.close()
    assert kept == [3, 4, -1]
    assert len(caplog.messages) == 1
    assert "failed: ConnectionError: no answer;" in caplog.text


def test_mlflow_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a day that is trained for hours and not shown, for want of a package."""
    monkeypatch.setitem(sys.modules, "mlflow", None)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install -r requirements/mlflow.txt"):
        check_tracker(MLflowConfig(kind="mlflow", uri="http://localhost:5000"))
    check_tracker(TENSORBOARD)


def test_credentials_are_refused(tmp_path: Path) -> None:
    """Catches a password in a configuration, and an error that repeats it."""
    tracking = {"kind": "mlflow", "uri": "https://me:planted@example.com"}
    content = config_of(tmp_path).model_dump(mode="json", by_alias=True, exclude_defaults=True)
    with pytest.raises(ConfigError, match="MLFLOW_TRACKING_PASSWORD") as raised:
        parse_config(content | {"tracking": tracking}, "test")
    assert "planted" not in str(raised.value)


def test_mlflow_keeps_the_same_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a name that MLflow refuses, wrong steps or times, and a publication in a run of its own."""
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    from mlflow.tracking import MlflowClient

    config = MLflowConfig(kind="mlflow", uri=f"file://{tmp_path}/store")
    for _ in range(2):  # training, then publication
        tracker = tracked(config, tmp_path)
        put(tracker, 3)
        tracker.close(60)
    client = MlflowClient(config.uri)
    experiment = client.get_experiment_by_name("tests")
    (run,) = client.search_runs([experiment.experiment_id])
    assert (run.info.run_name, run.info.status) == ("main/2026-01-01-g2-a0003", "FINISHED")
    history = client.get_metric_history(run.info.run_id, "rows_per_s")
    assert sorted((one.step, one.value, one.timestamp) for one in history)[::2] == [
        (step, 100.0 + step, 1000_000 + 1000 * step) for step in range(3)
    ]
    assert "loss/ctr" in run.data.metrics
    assert not (tmp_path / "tracking").exists()


def test_a_server_that_never_answers_stops_nothing(
    silent_server: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Catches MLflow's own patience, 120 s and five tries, in the way of a run or of its end."""
    tracker = tracked(MLflowConfig(kind="mlflow", uri=silent_server), tmp_path)
    assert put(tracker, 3000) < 5
    began = time.monotonic()
    tracker.close(1)
    assert time.monotonic() - began < 6
    assert len(caplog.messages) == 1
    assert "the run goes on" in caplog.text


def test_a_silent_server_is_given_up(silent_server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches time-outs that are set after MLflow has read them, or not at all."""
    impatient = {"MLFLOW_HTTP_REQUEST_TIMEOUT": "1", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"}
    monkeypatch.setattr("pipeline.tracking.mlflow._ENVIRONMENT", impatient)
    for name in impatient:  # what an earlier test has set
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    began = time.monotonic()
    with pytest.raises(Exception, match="timed out"):
        MLflowTracker(MLflowConfig(kind="mlflow", uri=silent_server), "tests", "run", 0.0)
    assert time.monotonic() - began < 8


def progress(rows: int, part: int = 0, **figures: float) -> Progress:
    """Progress of a part of 100 rows, of which an earlier attempt has trained 20."""
    shared = {"line": "main", "day": "2026-01-01", "attempt": "0001", "part": part, "rows_before": 20}
    training = TrainingFigures(**shared, rows_in_space={"ctr": rows}, **figures)
    return Progress("train", rows, 100, {"ctr": 0.5}, training)


def values(points: RunPoints, seen: Progress, now: float) -> dict[str, float]:
    assert seen.training is not None
    return points.values(seen, seen.training, now)


def test_points_of_a_run() -> None:
    """Catches rates over all rows instead of the newest, points without news, and parts that begin at step 0 again."""
    points = RunPoints(every_s=10)
    begun = progress(40, seconds=2.0, waited_s=0.5)
    first = {"loss/ctr": 0.5, "rows_in_space/ctr": 40, "rows_per_s": 10.0, "wait_share": 0.25}
    assert values(points, begun, 0.0) == first
    assert points.rows == 40
    assert values(points, begun, 20.0) == {}
    assert values(points, progress(60, seconds=4.0, waited_s=0.5), 5.0) == {}
    later = values(points, progress(80, seconds=12.0, waited_s=5.5), 10.0)
    assert (later["rows_per_s"], later["wait_share"]) == (4.0, 0.5)
    assert "rows_per_s" in values(points, progress(100, seconds=13.0, waited_s=5.5), 10.1)  # the end of the part
    saved = progress(100, seconds=15.0, waited_s=5.5, save_s=2.0, save_stall_s=0.25)
    assert values(points, saved, 10.2) == {"save_s": 2.0, "save_stall_s": 0.25}
    second = values(points, progress(50, part=1, seconds=3.0, waited_s=0.0), 10.3)
    assert (second["rows_per_s"], second["rows_in_space/ctr"], points.rows) == (10.0, 150, 150)


def test_figures_of_an_entry() -> None:
    """Catches a figure of the ledger that the live view leaves out, or a text that it takes for a number."""
    metrics = {"ctr": {"kind": "binary", "auc": 0.75, "gauc": None}}
    entry = LedgerEntry(
        kind="daily",
        day="2026-01-01",
        checkpoint="a",
        run="r",
        rows=100,
        rows_in_space={"ctr": 90},
        loss_weights={"ctr": 0.5},
        new_ids={"video": {"admitted": 7}},
        gate=Verdict(problems=("worse",), accepted="a holiday"),
        before=metrics,
        holdout=HoldoutMetrics(new={"ctr": {"auc": 0.5}}, parent={"ctr": {"auc": 0.25}}),
    )
    assert ledger_figures(entry) == {
        "before/ctr/auc": 0.75,
        "holdout/ctr/auc": 0.5,
        "holdout_parent/ctr/auc": 0.25,
        "rows_in_space/ctr": 90,
        "loss_weight/ctr": 0.5,
        "new_ids/video/admitted": 7,
        "rows": 100,
        "skipped": 0,
        "gate_findings": 1,
    }
