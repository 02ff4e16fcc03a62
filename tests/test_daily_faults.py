"""The daily job while its processes are killed: rows once, one entry, LATEST complete, the same bits.

Each case trains a second day on a copy of a line that has the first, is disturbed once, is started again where that is
needed, and is held against the line that nobody disturbed. Workers are processes of the test's own
(local_training.py); a command that is killed, and a Ray head, are on a real Ray too. The command with a fault in it is
in daily_command.py. Samples run with `make test`; the rest with `make test-faults`.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import date
from pathlib import Path
from typing import Any

import daily_command
import psutil
import pytest
import ray
import torch
import yaml
from daily_command import EVERY, main_on_processes
from faults import Fault, replace_worker, set_clock_back, train_with_faults, worker_on_a_full_disk
from local_training import Command, on_processes
from own_lines import OWN_LINE
from small_runs import make_config, weights

from features.synthetic.logs import SyntheticConfig, write_day
from pipeline.config.project import Config
from pipeline.daily.ray_work import RayWork
from pipeline.lineage.audit import audit_line
from pipeline.lineage.ledger import Ledger
from pipeline.lineage.line import Line
from pipeline.storage.files import Storage
from pipeline.trainer.train import train_worker

DAYS = ["2026-01-01", "2026-01-02"]
ROWS, BATCH = 4000, 32
LAST = -(-ROWS // (2 * BATCH))  # step of a day, at least
_TEN_YEARS_S = 10 * 365 * 86400.0
FULL_AT = (LAST // EVERY + 2) * EVERY  # a step of the second day that has a checkpoint

ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # Ray's workers cannot import this file


def _config(logs: Path, root: str, **sections: Any) -> Config:
    workers = {"num": 2, "timeout_s": 60, "max_failures": 2}
    ingest = {"batch_size": BATCH, "unit": {"max_rows": 100}, "shuffle": {"interleave": 2}, "object_store_mb": 8}
    every = {"every_steps": EVERY, "timeout_s": 60}
    sections = {"daily": {"lease_s": 3.0}} | sections
    config = make_config(logs, Path("unused"), workers=workers, ingest=ingest, checkpoint=every, **sections)
    schema = config.log_schema.model_dump()
    schema["features"] = [feature for feature in schema["features"] if feature["kind"] != "dense"]
    schema = type(config.log_schema).model_validate(schema)
    return config.model_copy(update={"log_schema": schema, "root": root})


@pytest.fixture(scope="module")
def logs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("logs")
    first = date.fromisoformat(DAYS[0])
    size = {"rows_per_day": ROWS, "num_users": 200, "num_videos": 200, "num_authors": 20}
    world = SyntheticConfig(seed=6, first_day=first, files_per_day=3, row_group_rows=200, **size)
    for day in DAYS:
        write_day(world, date.fromisoformat(day), folder)
    return folder


@pytest.fixture(scope="module")
def one_day(logs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root whose line has the first day."""
    root = tmp_path_factory.mktemp("one-day")
    with on_processes():
        _daily(_config(logs, str(root)), DAYS[0])
    return root


@pytest.fixture(scope="module")
def two_days(one_day: Path, logs: Path, tmp_path_factory: pytest.TempPathFactory) -> Config:
    """A line whose second day nobody disturbed."""
    root = tmp_path_factory.mktemp("undisturbed") / "root"
    shutil.copytree(one_day, root)
    config = _config(logs, str(root))
    with on_processes():
        _daily(config, DAYS[1])
    return config


@pytest.fixture(scope="module")
def undisturbed(two_days: Config, tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    """All tensors after the second day, which nobody disturbed."""
    return _tensors(two_days, tmp_path_factory.mktemp("tensors"))


def _daily(config: Config, day: str) -> dict[str, Any]:
    import contextlib

    from pipeline.daily.accepted import Accepted
    from pipeline.daily.run_days import run_days

    line = Line.of(config.root, config.line)
    with contextlib.ExitStack() as stack:
        return run_days(config, line, RayWork(config, line, stack), [day], 7, Accepted())


def _tensors(config: Config, folder: Path) -> dict[str, torch.Tensor]:
    latest = Line.of(config.root, config.line).latest()
    assert latest is not None
    if not config.root.startswith("s3://"):
        return weights(config, latest.checkpoint, folder)
    storage, local = Line.of(config.root, config.line).storage, folder / "lines/main" / latest.checkpoint
    local.mkdir(parents=True)
    for name in [*storage.names(latest.checkpoint), ".metadata"]:
        (local / name).write_bytes(storage.read(f"{latest.checkpoint}/{name}"))
    return weights(config.model_copy(update={"root": str(folder)}), latest.checkpoint, folder)


def _check(config: Config, undisturbed: dict[str, torch.Tensor], folder: Path) -> None:
    line = Line.of(config.root, config.line)
    latest = line.latest()
    assert latest is not None
    assert (latest.day, latest.generation) == (DAYS[1], 1)
    manifest = line.read_manifest(latest.checkpoint)
    assert manifest is not None
    assert manifest.complete
    assert line.damage(manifest) is None
    for day in DAYS:
        assert len(Ledger(line).generations(day)) == 1
    assert [entry.day for entry in Ledger(line).chain()] == DAYS[::-1]
    found = audit_line(config, None)
    assert (found["result"], found["rows"]) == ("every row once", 2 * ROWS)
    tensors = _tensors(config, folder)
    assert set(tensors) == set(undisturbed)
    assert [name for name in tensors if not torch.equal(tensors[name], undisturbed[name])] == []


@pytest.fixture
def copied(one_day: Path, two_days: Config, tmp_path: Path, request: pytest.FixtureRequest) -> Callable[[str], str]:
    """Copies the root with the first day to a local folder, or to S3.

    Preflight and predict of the second day are done, unless it is `bare`: what they found is kept in the line.
    """

    def copy(where: str) -> str:
        root = tmp_path / "root"
        shutil.copytree(one_day, root)
        if where != "bare":
            steps = f"lines/main/steps/{DAYS[1]}"
            shutil.copytree(Path(two_days.root) / steps, root / steps)
        if where != "s3":
            return str(root)
        url = f"{request.getfixturevalue('s3_root')}/{tmp_path.name}"
        for path in root.rglob("*"):
            if path.is_file() and not path.name.endswith(".lock"):
                Storage(url).write(str(path.relative_to(root)), path.read_bytes())
        return url

    return copy


# --- The driver ---


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[str] | Command]]:
    """Starts the daily command with a fault; whatever it leaves behind is ended, by process id."""
    started: list[subprocess.Popen[str] | Command] = []
    seen: dict[int, psutil.Process] = {}

    def begin(
        config: Config, point: str, survivors: Path | None = None, *, on_ray: bool = False
    ) -> subprocess.Popen[str] | Command:
        file = tmp_path / f"config-{len(started)}.yaml"
        file.write_text(yaml.safe_dump(config.model_dump(mode="json", by_alias=True, exclude_defaults=True)))
        if not on_ray:
            arguments = (DAYS[1], point, str(file), survivors)
            out, log = tmp_path / f"out-{len(started)}", tmp_path / f"log-{len(started)}"
            started.append(Command(main_on_processes, arguments, out, log))
            return started[-1]
        arguments = [sys.executable, daily_command.__file__, DAYS[1], point, str(file)]
        with (tmp_path / f"log-{len(started)}").open("w") as log:
            environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
            started.append(subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=log, text=True, env=environment))
        return started[-1]

    def note() -> None:
        for command in started:
            if command.poll() is None:
                seen.update({process.pid: process for process in psutil.Process(command.pid).children(recursive=True)})

    begin.note = note
    yield begin
    note()
    for command in started:
        if command.poll() is None:
            command.kill()
            command.wait()
    for process in seen.values():
        if process.is_running():
            process.kill()


_LATE_POINTS = ["checkpoint write", "before ledger", "before LATEST"]


@pytest.fixture
def run_to(start: Any, tmp_path: Path) -> Callable[[Config, str], dict[str, Any]]:
    """Runs the daily command to a point and returns its JSON line, if it has left one."""
    codes = {"none": 0, "asked to end": 1}

    def run(config: Config, point: str, *, on_ray: bool = False) -> dict[str, Any]:
        log = len(list(tmp_path.glob("log-*")))
        command = start(config, point, on_ray=on_ray)
        out, _ = command.communicate(timeout=400)
        expected = codes.get(point, -signal.SIGKILL)
        assert command.returncode == expected, f"{point}: {(tmp_path / f'log-{log}').read_text()[-3000:]}"
        return json.loads(out.splitlines()[-1]) if out.strip() else {}

    return run


@pytest.mark.ray
def test_a_driver_that_is_killed_on_ray(
    copied: Any, logs: Path, undisturbed: Any, run_to: Any, tmp_path: Path, ray_cluster: None
) -> None:
    """Catches workers of Ray Train that go on without their command, or a start beside them that cannot.

    And, in the second start's stderr, a line of the workers that is lost, or one that is not our own.
    """
    config = _config(logs, copied("local"), ray={"address": ray.get_runtime_context().gcs_address})
    run_to(config, "mid-day", on_ray=True)
    assert run_to(config, "none", on_ray=True)["result"] == "published"
    _check(config, undisturbed, tmp_path)
    lines = (tmp_path / "log-1").read_text().splitlines()
    assert [line for line in lines if not OWN_LINE.fullmatch(line)] == []  # none of Ray or FBGEMM
    assert any("I attempt 0003 goes on from " in line for line in lines), lines  # lines of the workers
    assert any("I saved checkpoints/" in line for line in lines), lines


@pytest.mark.parametrize(
    ("where", "points"),
    [
        ("bare", ["preflight", "predict", "first step", "mid-day", *_LATE_POINTS]),
        ("s3", _LATE_POINTS),
    ],
)
def test_a_driver_that_is_killed(
    where: str, points: list[str], copied: Any, logs: Path, undisturbed: Any, run_to: Any, tmp_path: Path
) -> None:
    """Catches a step that is not done again, is done twice, or whose half is believed, after the command was killed."""
    config = _config(logs, copied(where))
    for point in points:
        run_to(config, point)
        latest = Line.of(config.root, config.line).latest()
        assert latest is not None
        assert latest.day == DAYS[0], point
    assert run_to(config, "none")["result"] == "published"
    _check(config, undisturbed, tmp_path)


def test_a_driver_that_is_asked_to_end_while_it_measures(
    copied: Any, logs: Path, undisturbed: Any, run_to: Any, tmp_path: Path
) -> None:
    """Catches a SIGTERM that is lost because nothing is trained yet, or a half of the metrics that is believed."""
    config = _config(logs, copied("bare"))
    assert "stopped by SIGTERM after measuring" in run_to(config, "asked to end")["error"]
    run_to(config, "none")
    _check(config, undisturbed, tmp_path)


def test_workers_that_outlive_their_command(
    copied: Any, logs: Path, undisturbed: Any, start: Any, run_to: Any, tmp_path: Path
) -> None:
    """Catches old workers that write into the line, or publish, after the job was started again."""
    config, survivors = _config(logs, copied("local")), tmp_path / "survivors"
    survivors.mkdir()
    first = start(config, "mid-day", survivors)
    first.wait(200)
    workers = [psutil.Process(int(file.name)) for file in survivors.iterdir() if psutil.pid_exists(int(file.name))]
    assert len(workers) == 2, "they have ended with their command: the test would see nothing"
    assert run_to(config, "none")["result"] == "published"
    _check(config, undisturbed, tmp_path)
    _, left = psutil.wait_procs(workers, 60)
    for worker in left:
        worker.kill()
    assert not left, "nobody has told them that the line is another's"
    _check(config, undisturbed, tmp_path)


# --- Workers and data tasks ---


_KILLED = [  # and of which rank, in the order in which the second day comes to it
    ("kill", LAST + 3, 1),
    ("kill", LAST + EVERY + 5, 0),
    ("writing", LAST + 2 * EVERY, 0),
    ("manifest", FULL_AT, 0),
]


@pytest.mark.parametrize(("where", "killed"), [("local", _KILLED), ("s3", _KILLED[2:])])
def test_a_worker_that_is_killed(
    where: str,
    killed: list[tuple[str, int, int]],
    copied: Any,
    logs: Path,
    undisturbed: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    local_training: None,
) -> None:
    """Catches a restart within the day's training that its other steps do not survive, or that doubles an entry."""
    config = _config(logs, copied(where))
    config = config.model_copy(update={"workers": config.workers.model_copy(update={"max_failures": len(killed)})})
    faults = [Fault(*fault, tmp_path / "fault") for fault in killed]
    assert train_with_faults(faults, monkeypatch, lambda: _daily(config, DAYS[1]))["result"] == "published"
    _check(config, undisturbed, tmp_path)


def test_a_disk_that_is_full(
    copied: Any, logs: Path, undisturbed: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, local_training: None
) -> None:
    """Catches a checkpoint that was not written and is believed, or a day that cannot go on once there is room."""
    config = _config(logs, copied("local"))
    config = config.model_copy(update={"workers": config.workers.model_copy(update={"max_failures": 0})})
    with monkeypatch.context() as patch:
        replace_worker(patch.setattr, worker_on_a_full_disk, step=FULL_AT)
        with pytest.raises(Exception, match="No space left on device"):
            _daily(config, DAYS[1])
    assert _daily(config, DAYS[1])["result"] == "published"
    _check(config, undisturbed, tmp_path)


def test_a_clock_that_is_set_back(
    copied: Any, logs: Path, undisturbed: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, local_training: None
) -> None:
    """Catches anything that orders attempts, checkpoints, entries or leases by a clock."""
    config = _config(logs, copied("local"))
    set_clock_back(monkeypatch.setattr, _TEN_YEARS_S)
    replace_worker(monkeypatch.setattr, _worker_of_another_year)
    assert _daily(config, DAYS[1])["result"] == "published"
    _check(config, undisturbed, tmp_path)


def _worker_of_another_year(job: Any, lane: Any) -> dict[str, Any]:
    with pytest.MonkeyPatch.context() as patch:
        set_clock_back(patch.setattr, _TEN_YEARS_S)
        return train_worker(job, lane)


# --- The Ray head ---


@pytest.mark.faults
@pytest.mark.ray
@pytest.mark.parametrize(("point", "where"), [("write", "s3")])
def test_a_ray_head_that_is_killed(
    point: str, where: str, copied: Any, logs: Path, undisturbed: Any, start: Any, tmp_path: Path
) -> None:
    """Catches old workers, which step on for a minute, that write into the line after the job was started again."""
    config = _config(logs, copied(where), ray={"num_cpus": 5, "object_store_mb": 200})
    first = start(config, "none", on_ray=True)
    _wait_for(first, config, point, tmp_path)
    start.note()
    left = psutil.Process(first.pid).children(recursive=True)
    (gcs,) = [process for process in left if process.name() == "gcs_server"]
    gcs.kill()
    first.kill()  # as its supervisor does, once it does not answer
    first.wait()
    second = start(config, "none", on_ray=True)
    second.communicate(timeout=400)
    assert second.returncode == 0, (tmp_path / "log-1").read_text()[-3000:]
    for process in left:
        if process.is_running():
            process.kill()
    _check(config, undisturbed, tmp_path)


def _wait_for(command: subprocess.Popen[str], config: Config, point: str, folder: Path) -> None:
    """Until the second day has made its first steps, has a checkpoint, or is writing its second one."""
    storage = Line.of(config.root, config.line).storage
    wanted = {"first": 0, "middle": 1, "write": 2}[point]
    deadline = time.monotonic() + 300
    while True:
        attempts = storage.names(f"checkpoints/{DAYS[1]}")
        steps = [name for attempt in attempts for name in storage.names(f"checkpoints/{DAYS[1]}/{attempt}")]
        restored = "goes on from" in (folder / "log-0").read_text()
        if restored and len(steps) >= wanted:
            return
        assert command.poll() is None, (folder / "log-0").read_text()[-3000:]
        assert time.monotonic() < deadline, (folder / "log-0").read_text()[-3000:]
        time.sleep(0.005)
