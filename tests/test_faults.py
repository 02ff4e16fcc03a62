"""Faults: whatever is killed or stopped, every row is trained once, and the weights are the same bits.

Each run here is held against one that nobody disturbed, on processes of the test's own (local_training.py); of what
Ray has a part in, one fault of each kind happens on a real Ray, and has to end with the bits of those processes. The
daily job's faults are in test_daily_faults.py. Samples run with `make test`; the rest with `make test-faults`.
"""

import contextlib
import functools
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray
import torch
import yaml
from local_training import on_processes
from small_runs import make_config, weights

from features.synthetic.logs import SyntheticConfig, write_day
from models.ranker import StepOutput
from pipeline.checkpoint import write
from pipeline.config.project import Config
from pipeline.lineage.line import Line
from pipeline.trainer import train_days
from pipeline.trainer.step_sync import CountedBatches
from pipeline.trainer.train import Trainer, train_worker
from pipeline.trainer.train_line import train

DAY = "2026-01-01"
ROWS, BATCH, EVERY = 12_000, 32, 25
RESTART_S = 60  # within which a group trains again after one of its workers died

ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # Ray's workers cannot import this file


def write_log_of(folder: Path, rows: int) -> Path:
    """One day in 3 files, row groups of 200 rows, units of 100."""
    world = SyntheticConfig(
        seed=6,
        first_day=date.fromisoformat(DAY),
        rows_per_day=rows,
        num_users=200,
        num_videos=200,
        num_authors=20,
        files_per_day=3,
        row_group_rows=200,
    )
    write_day(world, date.fromisoformat(DAY), folder)
    return folder


@pytest.fixture(scope="module")
def logs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_log_of(tmp_path_factory.mktemp("logs"), ROWS)


def config_of(logs: Path, root: Path, num: int = 2, **sections: Any) -> Config:
    workers = {"num": num, "timeout_s": 60, "max_failures": 2} | sections.pop("workers", {})
    ingest = {"batch_size": BATCH, "unit": {"max_rows": 100}, "shuffle": {"interleave": 2}, "object_store_mb": 8}
    ingest |= sections.pop("ingest", {})
    every = {"every_steps": EVERY, "keep": 100, "timeout_s": 60} | sections.pop("checkpoint", {})
    config = make_config(logs, root, workers=workers, ingest=ingest, checkpoint=every, **sections)
    schema = config.log_schema.model_dump()
    schema["features"] = [feature for feature in schema["features"] if feature["kind"] != "dense"]
    return config.model_copy(update={"log_schema": type(config.log_schema).model_validate(schema)})


@pytest.fixture(scope="module")
def undisturbed(logs: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], dict[str, torch.Tensor]]:
    """The final weights and optimizer state of a run that nobody disturbed, by the number of workers."""

    @functools.cache
    def tensors(num: int) -> dict[str, torch.Tensor]:
        folder = tmp_path_factory.mktemp(f"undisturbed-{num}")
        config = config_of(logs, folder, num)
        with on_processes():
            return weights(config, train(config, [DAY], passes=1)["checkpoint"], folder)

    return tensors


# --- Faults from within: at a step of our choice ---


@dataclass(frozen=True)
class Fault:
    """What happens to a run, once.

    Args:
        kind: `kill` or `stop` a worker, `kill_data_task`, or kill a worker while it writes: `writing` its file or at
            the `manifest`.
        step: After which step; the earliest checkpoint that is written from it on, for those while writing.
        rank: Of which worker.
        folder: Where the fault notes that it has happened, and ranks what they have stepped.
    """

    kind: str
    step: int
    rank: int
    folder: Path

    def happens(self) -> bool:
        """Whether it has not happened yet; it has from now on."""
        try:
            os.close(os.open(self.mark, os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            return False
        return True

    @property
    def mark(self) -> Path:
        return self.folder / f"{self.kind}-{self.step}-happened"

    @property
    def killed(self) -> Path:
        """Is there once a data task was found and killed."""
        return self.folder / f"{self.mark.name}-killed"

    @property
    def happened_at(self) -> float:
        return self.mark.stat().st_mtime


def _faulty_worker(settings: dict[str, Any], faults: Sequence[Fault]) -> dict[str, Any]:
    """`train_worker` with faults in one folder; the code of the worker itself is the product's."""
    rank = ray.train.get_context().get_world_rank()
    next_step, create_stream, commit = (
        Trainer._next_step,
        write._HashingFileSystem.create_stream,
        write._commit,
    )
    own = [0]

    def step_and_fail(self: Trainer, batches: CountedBatches) -> StepOutput | None:
        output = next_step(self, batches)
        own[0] = self.step
        if output is not None:
            with (faults[0].folder / f"stepped-{os.getpid()}").open("a") as file:
                file.write(f"{time.time()} {self.step} {output.batch.cursor.num_rows}\n")
        for fault in faults:
            if rank == fault.rank and self.step >= fault.step and fault.kind in _AT_STEPS and fault.happens():
                _AT_STEPS[fault.kind](fault)
        return output

    def happens(kind: str) -> bool:
        """Whether a fault of this rank while it writes happens now."""
        due = (fault for fault in faults if fault.kind == kind and own[0] >= fault.step)
        return any(fault.happens() for fault in due if kind == "manifest" or fault.rank == rank)

    def write_and_fail(self: Any, path: Any, mode: str) -> Any:
        if "w" in mode and happens("writing"):
            _leave_half(str(path))
            _kill_me()
        return create_stream(self, path, mode)

    def commit_and_fail(*arguments: Any) -> Any:
        if happens("manifest"):
            _kill_me()
        return commit(*arguments)

    Trainer._next_step = step_and_fail
    write._HashingFileSystem.create_stream = write_and_fail
    write._commit = commit_and_fail
    return train_worker(settings)


def _leave_half(path: str) -> None:
    if "://" not in path:  # of S3's files there is no half
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_bytes(b"half a file")


def _kill_me(_: Fault | None = None) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _stop_me(_: Fault) -> None:
    os.kill(os.getpid(), signal.SIGSTOP)


def _kill_data_task(fault: Fault) -> None:
    """Kill a process of this session's Ray that reads units, as soon as there is one; training goes on meanwhile."""
    raylet = psutil.Process().parent()
    assert raylet is not None
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        for process in raylet.children():
            with contextlib.suppress(psutil.NoSuchProcess):
                if process.cmdline()[:1] and process.cmdline()[0].startswith("ray::ReadUnit"):
                    process.kill()
                    fault.killed.touch()
                    return
        time.sleep(0.002)


def _start_killing(fault: Fault) -> None:
    threading.Thread(target=_kill_data_task, args=(fault,), daemon=True).start()


_AT_STEPS: dict[str, Callable[[Fault], None]] = {"kill": _kill_me, "stop": _stop_me, "kill_data_task": _start_killing}


def train_with_faults(faults: Sequence[Fault], monkeypatch: pytest.MonkeyPatch, run: Callable[[], Any]) -> Any:
    """What a run returns in which faults happen, all of which must have happened."""
    faults[0].folder.mkdir()
    with monkeypatch.context() as patch:
        patch.setattr(train_days, "train_worker", functools.partial(_faulty_worker, faults=faults))
        result = run()
    missing = [fault.mark.name for fault in faults if not fault.mark.exists()]
    assert not missing, "they did not happen: the test would see nothing"
    return result


def _stepped(folder: Path) -> list[tuple[float, int, int]]:
    """Time, step and rows of every step of every worker that lived."""
    lines = [line.split() for file in folder.glob("stepped-*") for line in file.read_text().splitlines()]
    return sorted((float(when), int(step), int(rows)) for when, step, rows in lines)


def _differing(expected: dict[str, torch.Tensor], found: dict[str, torch.Tensor]) -> list[str]:
    assert set(expected) == set(found)
    return [name for name in expected if not torch.equal(expected[name], found[name])]


def _check_same(
    faults: Sequence[Fault], config: Config, tmp_path: Path, expected: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = train_with_faults(faults, monkeypatch, lambda: train(config, [DAY], passes=1))
    manifest = Line.of(config.root, config.line).read_manifest(result["checkpoint"])
    assert manifest is not None
    assert result["rows"] == manifest.rows == ROWS
    assert _differing(expected(config.workers.num), weights(config, manifest.checkpoint, tmp_path)) == []


@pytest.mark.ray
def test_a_worker_that_is_killed(
    logs: Path, tmp_path: Path, undisturbed: Any, monkeypatch: pytest.MonkeyPatch, ray_cluster: None
) -> None:
    """Catches rows lost, doubled or reordered by a restart: a cursor of what was read and not of what was stepped."""
    config, fault = config_of(logs, tmp_path / "root"), Fault("kill", 4 * EVERY + 7, 1, tmp_path / "fault")
    _check_same([fault], config, tmp_path, undisturbed, monkeypatch)
    steps = _stepped(fault.folder)
    assert sum(rows for _, _, rows in steps) > ROWS  # in time: some rows were stepped twice, and count once
    after = [when for when, _, _ in steps if when > fault.happened_at + 1]
    assert after[0] - fault.happened_at < RESTART_S
    records = Line.of(config.root, config.line).attempts([DAY])
    assert [(record.attempt, record.result) for record in records] == [(1, "restarted"), (2, "done")]
    assert records[1].start_step in (3 * EVERY, 4 * EVERY)  # the last may not have been written yet


@pytest.mark.parametrize("num", [2, 3])
def test_a_process_that_is_killed(
    num: int, logs: Path, tmp_path: Path, undisturbed: Any, monkeypatch: pytest.MonkeyPatch, local_training: None
) -> None:
    """Catches a restart from something half-written, survivors that hang, and lanes that change with a restart."""
    faults = [("kill", 1, 1), ("kill", EVERY + 12, 0), ("writing", 2 * EVERY, 0), ("manifest", 3 * EVERY, 0)]
    faults += [("writing", 3 * EVERY + 1, num - 1), ("kill", 4 * EVERY + 9, num - 1)]
    happening = [Fault(*fault, tmp_path / "fault") for fault in faults]
    config = config_of(logs, tmp_path / "root", num, workers={"max_failures": len(faults)})
    _check_same(happening, config, tmp_path, undisturbed, monkeypatch)
    assert sum(rows for _, _, rows in _stepped(tmp_path / "fault")) > ROWS
    records = Line.of(config.root, config.line).attempts([DAY])
    assert [record.result for record in records] == ["restarted"] * len(faults) + ["done"]


@pytest.mark.faults
@pytest.mark.ray
def test_a_data_task_that_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ray_cluster: None) -> None:
    """Catches a unit that is lost, doubled or dealt to another worker when its data task is run again."""
    rows = 3 * ROWS  # which takes more time to read than the first steps take
    longer = write_log_of(tmp_path / "logs", rows)
    faults = [Fault("kill_data_task", step, 1, tmp_path / "fault") for step in (1, EVERY, 2 * EVERY)]
    config, alone = (config_of(longer, tmp_path / name, 3) for name in ("root", "alone"))
    result = train_with_faults(faults, monkeypatch, lambda: train(config, [DAY], passes=1))
    assert any(fault.killed.exists() for fault in faults), "no data task was seen: the test would see nothing"
    assert sum(rows for _, _, rows in _stepped(tmp_path / "fault")) == rows  # no worker was started again
    with on_processes():
        expected = weights(alone, train(alone, [DAY], passes=1)["checkpoint"], tmp_path)
    assert _differing(expected, weights(config, result["checkpoint"], tmp_path)) == []


def test_a_worker_that_is_stopped(
    logs: Path, tmp_path: Path, undisturbed: Any, monkeypatch: pytest.MonkeyPatch, local_training: None
) -> None:
    """Catches ranks that wait for ever for one that lives and does not answer, or a stopped one that wakes up."""
    config = config_of(logs, tmp_path / "root", workers={"timeout_s": 15})
    fault = Fault("stop", 2 * EVERY + 5, 1, tmp_path / "fault")
    _check_same([fault], config, tmp_path, undisturbed, monkeypatch)
    after = [when for when, _, _ in _stepped(fault.folder) if when > fault.happened_at + 5]
    assert after[0] - fault.happened_at < 20 + RESTART_S


def test_a_write_that_fails_fails_the_run(
    logs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, local_training: None
) -> None:
    """Catches a background write whose error nobody sees: the run would go on for a day without a checkpoint."""
    config = config_of(logs, tmp_path / "root", workers={"max_failures": 0})
    monkeypatch.setattr(train_days, "train_worker", functools.partial(_worker_on_a_full_disk, step=2 * EVERY))
    with pytest.raises(Exception, match="No space left on device"):
        train(config, [DAY], passes=1)
    line = Line.of(config.root, config.line)
    assert [manifest.step for manifest in line.manifests()] == [EVERY]
    (record,) = line.attempts([DAY])
    assert record.result == "failed"
    # Ray asks its workers one after the other: when the first failure is found, the other rank's may not be there yet.
    not_written = rf"rank (0|1|0, 1): checkpoint checkpoints/{DAY}/0001/0000000050 was not written: "
    assert re.match(not_written + r"rank 0: .*No space left on device; rank 1: .*No space", record.reason)


def _worker_on_a_full_disk(settings: dict[str, Any], step: int) -> dict[str, Any]:
    create_stream = write._HashingFileSystem.create_stream

    def fail(self: Any, path: Any, mode: str) -> Any:
        if "w" in mode and f"{step:010d}" in str(path):
            raise OSError(28, "No space left on device")
        return create_stream(self, path, mode)

    write._HashingFileSystem.create_stream = fail
    return train_worker(settings)


# --- Faults from without: of the command and of its Ray ---


@dataclass
class Command:
    """`python -m jobs.train` in a process of its own, with a Ray of its own."""

    process: subprocess.Popen[str]
    log: Path

    def wait(self, timeout_s: float = 240) -> dict[str, Any]:
        """Its JSON line, once it has ended; `{}` if it left none."""
        out, _ = self.process.communicate(timeout=timeout_s)
        return json.loads(out.splitlines()[-1]) if out.strip() else {}

    def started(self) -> list[psutil.Process]:
        """All processes that it has started and that live."""
        return psutil.Process(self.process.pid).children(recursive=True)


@pytest.fixture
def start_command(tmp_path: Path) -> Iterator[Callable[[Config], Command]]:
    """Starts commands; whatever they leave behind is ended, by process id."""
    started: list[Command] = []
    seen: dict[int, psutil.Process] = {}

    def start(config: Config) -> Command:
        for command in started:
            if command.process.poll() is None:
                seen.update({process.pid: process for process in command.started()})
        file = tmp_path / f"config-{len(started)}.yaml"
        file.write_text(yaml.safe_dump(config.model_dump(mode="json", by_alias=True, exclude_defaults=True)))
        log = tmp_path / f"log-{len(started)}"
        with log.open("w") as stderr:
            arguments = [sys.executable, "-m", "jobs.train", "--config", str(file), "--days", DAY]
            process = subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=stderr, text=True)
        started.append(Command(process, log))
        return started[-1]

    yield start
    for command in started:
        if command.process.poll() is None:
            seen.update({process.pid: process for process in command.started()})
            command.process.kill()
            command.process.wait()
    for process in seen.values():
        if process.is_running():
            process.kill()


def _wait_for_step(config: Config, step: int, command: Command, timeout_s: float = 180) -> None:
    """Until a checkpoint of a step is complete."""
    line, deadline = Line.of(config.root, config.line), time.monotonic() + timeout_s
    while not any(manifest.step >= step for manifest in line.manifests()):
        assert command.process.poll() is None, command.log.read_text()[-2000:]
        assert time.monotonic() < deadline, command.log.read_text()[-2000:]
        time.sleep(0.05)


def _command_config(logs: Path, root: Path, num: int = 2, **sections: Any) -> Config:
    return config_of(logs, root, num, ray={"num_cpus": 5, "object_store_mb": 200}, **sections)


@pytest.mark.faults
@pytest.mark.ray
def test_a_command_that_is_killed(logs: Path, tmp_path: Path, start_command: Any) -> None:
    """Catches a driver whose death leaves workers that go on writing, or a start that cannot go on without it."""
    config = _command_config(logs, tmp_path / "root")
    first = start_command(config)
    _wait_for_step(config, 3 * EVERY, first)
    left = first.started()
    first.process.kill()
    second = start_command(_command_config(logs, tmp_path / "root", 3))  # on another number of workers
    result = second.wait()
    assert (second.process.returncode, result["rows"]) == (0, ROWS), second.log.read_text()[-2000:]
    line = Line.of(config.root, config.line)
    newest = line.newest()
    assert newest is not None
    assert newest.checkpoint == result["checkpoint"]
    for process in left:
        if process.is_running():
            process.kill()


@pytest.mark.faults
@pytest.mark.ray
def test_a_command_that_is_asked_to_end(tmp_path: Path, start_command: Any) -> None:
    """Catches a SIGTERM that loses all steps since the last checkpoint, or is answered by a traceback."""
    rows = 5 * ROWS  # the workers hear of it within two seconds, in which a fast machine trains some 300 steps
    logs = write_log_of(tmp_path / "logs", rows)
    config = _command_config(logs, tmp_path / "root", checkpoint={"every_steps": None})
    first = start_command(config)
    deadline = time.monotonic() + 120
    while " rows" not in first.log.read_text():
        assert first.process.poll() is None, first.log.read_text()[-2000:]
        assert time.monotonic() < deadline
        time.sleep(0.05)
    asked = time.monotonic()
    first.process.terminate()
    result = first.wait()
    assert time.monotonic() - asked < 30  # Kubernetes' grace period
    assert first.process.returncode == 1
    assert "stopped by SIGTERM at step" in result["error"]
    assert "start the same command again" in result["error"]
    assert "Traceback" not in first.log.read_text()
    saved = Line.of(config.root, config.line).newest()
    assert saved is not None
    assert 0 < saved.rows < rows
    result = start_command(config).wait()
    assert result["rows"] == rows
    alone = config_of(logs, tmp_path / "undisturbed")
    with on_processes():
        undisturbed = weights(alone, train(alone, [DAY], passes=1)["checkpoint"], tmp_path / "undisturbed")
    assert _differing(undisturbed, weights(config, result["checkpoint"], tmp_path)) == []
