"""Faults: whatever is killed or stopped, every row is trained once, and the weights are the same bits.

Each run here is held against one that nobody disturbed, on processes of the test's own (local_training.py); of what
Ray has a part in, one fault of each kind happens on a real Ray, and has to end with the bits of those processes. The
daily job's faults are in test_daily_faults.py. Samples run with `make test`; the rest with `make test-faults`.
"""

import functools
import re
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import ray
import torch
from faults import Fault, replace_worker, train_with_faults, worker_on_a_full_disk
from local_training import on_processes
from small_runs import weights
from training_commands import DAY, EVERY, ROWS, Command, config_of, logs, start_command, write_log_of

from pipeline.config.project import Config
from pipeline.lineage.line import Line
from pipeline.trainer.train_line import train

__all__ = ["logs", "start_command"]  # fixtures
RESTART_S = 300  # within which a group trains again, on a slow machine too; one that hangs does not

ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # Ray's workers cannot import this file


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
    replace_worker(monkeypatch.setattr, worker_on_a_full_disk, step=2 * EVERY)
    with pytest.raises(Exception, match="No space left on device"):
        train(config, [DAY], passes=1)
    line = Line.of(config.root, config.line)
    assert [manifest.step for manifest in line.manifests()] == [EVERY]
    (record,) = line.attempts([DAY])
    assert record.result == "failed"
    # Ray asks its workers one after the other: when the first failure is found, the other rank's may not be there yet.
    not_written = rf"rank (0|1|0, 1): checkpoint checkpoints/{DAY}/0001/0000000050 was not written: "
    assert re.match(not_written + r"rank 0: .*No space left on device; rank 1: .*No space", record.reason)


def _wait_for_step(config: Config, step: int, command: Command, timeout_s: float = 600) -> None:
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
    deadline = time.monotonic() + 600
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
