"""Workers that a command keeps: one start for all its jobs, and each job again after a failure of the workers."""

import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray
import torch
from faults import first_time, kill_me
from ray.train import WorkerGroupError
from small_runs import logs, make_config

from features.encoding import Encoder
from pipeline.checkpoint.saver import Saver
from pipeline.cluster import session, worker_group
from pipeline.cluster.failures import RunFailed
from pipeline.cluster.progress import ProgressBoard
from pipeline.cluster.session import ray_session, run_workers
from pipeline.config.checkpoint import CheckpointConfig
from pipeline.config.ingest import IngestConfig
from pipeline.config.project import Config
from pipeline.ingest.parts import whole_days
from pipeline.ingest.plan import RunPlan, StreamStart
from pipeline.ingest.receive import read_segments, receive_blocks
from pipeline.ingest.units import list_days
from pipeline.lineage.line import Line
from pipeline.storage.files import Storage
from pipeline.trainer.worker_setup import Groups

__all__ = ["logs"]  # a fixture
ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # Ray's workers cannot import this file


ConfigOf, PlanOf = Callable[..., Config], Callable[..., RunPlan]


# --- Jobs on processes ---


@pytest.fixture
def plan_of(write_log: Callable[..., Storage], tiny_encoder: Encoder) -> PlanOf:
    """A plan of one day of forty rows; takes a function that is called whenever the stream is planned."""
    log = write_log([[[10, 10, 10, 10]]])

    def plan(begun: Callable[[], object] = lambda: None) -> RunPlan:
        def start() -> StreamStart:
            begun()
            return StreamStart()

        parts = whole_days(list_days(log, ["2026-03-01"], 10))
        return RunPlan(log, parts, 1, tiny_encoder, IngestConfig(), 0, (start,))

    return plan


@pytest.fixture
def config_of(logs: Path, tmp_path: Path) -> ConfigOf:
    """A configuration of two workers; takes further settings of `workers`."""
    return lambda **workers: make_config(logs, tmp_path, workers={"num": 2, "timeout_s": 60} | workers)


def _read(job: Any, lane: Any) -> dict[str, Any]:
    """Read the rank's rows, and return all ranks' process ids and numbers of rows."""
    groups = Groups.of_process(60, 60)
    parcels = (parcel for part in read_segments(receive_blocks(lane, 1)) for parcel in part.parcels)
    rows = sum(len(parcel.rows) for parcel in parcels if parcel.rows is not None)
    found = groups.gather((os.getpid(), rows))
    return {"pids": [pid for pid, _ in found], "rows": sum(rows for _, rows in found), "groups": id(groups)}


def _fail_once(job: Path, lane: Any) -> dict[str, Any]:
    """Read, and be killed on rank 1 where no worker was yet."""
    if ray.train.get_context().get_world_rank() == 1 and first_time(job):
        kill_me()
    return _read(job, lane)


def _lose_nodes(job: Any, lane: Any) -> dict[str, Any]:
    """Read, and tell the queue what Ray Train's controller tells it at a notice of preemption."""
    ray.get(job.lose_nodes.remote())
    return _read(job, lane)


def _fail(job: Any, lane: Any) -> dict[str, Any]:
    raise RuntimeError(f"no luck on rank {ray.train.get_context().get_world_rank()}")


def _wait_long(job: Path, lane: Any) -> dict[str, Any]:
    (job / str(os.getpid())).touch()
    time.sleep(600)
    return {}


def _do(config: Config, plan: RunPlan, worker: Any, job: Any = None) -> dict[str, Any]:
    return run_workers(config, plan, worker, job, ProgressBoard.remote())


def test_one_start_does_all_jobs(config_of: ConfigOf, plan_of: PlanOf, tmp_path: Path, local_training: None) -> None:
    """Catches workers that start for each job, groups that each job makes anew, and a row that no job's worker gets."""
    config = config_of()
    with ray_session(config):
        with ray_session(config):  # as within a comparison
            first = _do(config, plan_of(), _read)
        second = _do(config, plan_of(), _read)
        assert first == second
        assert first["rows"] == 40
        three = _do(config_of(num=3), plan_of(), _read)
        assert len(set(three["pids"])) == 3
        assert not any(map(psutil.pid_exists, first["pids"])), "two groups at once"
    assert not any(map(psutil.pid_exists, three["pids"]))
    assert not list(tmp_path.glob("ray/*"))
    alone = _do(config, plan_of(), _read)
    assert not any(map(psutil.pid_exists, alone["pids"])), "nothing is kept without a session"


def test_a_job_is_done_again_after_a_failure(
    config_of: ConfigOf, plan_of: PlanOf, tmp_path: Path, local_training: None
) -> None:
    """Catches a stream that is not planned anew, and failures that are summed over the days of a command."""
    config, begun = config_of(max_failures=1), []
    with ray_session(config):
        for number in range(3):
            found = _do(config, plan_of(lambda: begun.append(0)), _fail_once, tmp_path / str(number))
            assert found["rows"] == 40
            assert len(begun) == 2 * (number + 1)


def test_too_many_failures(config_of: ConfigOf, plan_of: PlanOf, local_training: None) -> None:
    """Catches a failure that is tried again for ever, one without its cause, and a session that is of no more use."""
    config, begun = config_of(max_failures=1), []
    with ray_session(config):
        with pytest.raises(RunFailed, match="no luck on rank") as failed:
            _do(config, plan_of(lambda: begun.append(0)), _fail)
        assert isinstance(failed.value.__cause__, WorkerGroupError), "the log of the command has no traceback"
        assert len(begun) == 2
        assert _do(config, plan_of(), _read)["rows"] == 40


@pytest.mark.parametrize(("max_failures", "wait_s", "worker"), [(0, 4, _read), (1, 4, _fail_once), (1, 0, _read)])
def test_workers_that_die_between_jobs(
    config_of: ConfigOf,
    plan_of: PlanOf,
    tmp_path: Path,
    local_training: None,
    max_failures: int,
    wait_s: float,
    worker: Any,
) -> None:
    """Catches a job that waits for ever for a worker that died before it, or that is charged with that failure."""
    config = config_of(max_failures=max_failures)
    with ray_session(config):
        before = _do(config, plan_of(), _read)
        os.kill(before["pids"][1], signal.SIGKILL)
        time.sleep(wait_s)
        after = _do(config, plan_of(), worker, tmp_path / "failed")
        assert after["rows"] == 40
        assert not set(before["pids"]) & set(after["pids"])


def test_workers_that_end_while_a_job_comes(
    config_of: ConfigOf, plan_of: PlanOf, local_training: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches a job that fails, without having begun, with the workers of the job before."""
    config = config_of(max_failures=0)
    is_usable = worker_group.WorkerGroup.is_usable
    with ray_session(config):
        before = _do(config, plan_of(), _read)
        os.kill(before["pids"][1], signal.SIGKILL)
        time.sleep(4)
        looks = iter([True])  # as if the command had looked before
        monkeypatch.setattr(worker_group.WorkerGroup, "is_usable", lambda group: next(looks, None) or is_usable(group))
        assert _do(config, plan_of(), _read)["rows"] == 40


def test_a_stream_that_cannot_be_planned_at_once(
    config_of: ConfigOf, plan_of: PlanOf, local_training: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches a storage that does not answer once, and ends a training; and one that is asked for ever."""
    monkeypatch.setattr(worker_group, "_AGAIN_S", 0.01)
    config, left = config_of(max_failures=2), [2]

    def fail() -> None:
        left[0] -= 1
        if left[0] >= 0:
            raise OSError("the storage\ndoes not answer")

    with ray_session(config):
        assert _do(config, plan_of(fail), _read)["rows"] == 40
        left[0] = 3
        with pytest.raises(RunFailed, match="could not be planned: the storage does not answer"):
            _do(config, plan_of(fail), _read)
        assert _do(config, plan_of(), _read)["rows"] == 40


def _press_ctrl_c(patch: pytest.MonkeyPatch, began: Path) -> None:
    """Interrupts the command once two workers have begun."""
    look_again = worker_group.WorkerGroup._look_again

    def interrupted(group: Any) -> None:
        look_again(group)
        if len(list(began.iterdir())) == 2:
            raise KeyboardInterrupt

    began.mkdir()
    patch.setattr(worker_group.WorkerGroup, "_look_again", interrupted)


def test_a_command_that_ends_within_a_job(
    config_of: ConfigOf, plan_of: PlanOf, tmp_path: Path, local_training: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches workers that go on after Ctrl-C, and a command that waits for them."""
    config, began = config_of(), tmp_path / "began"
    _press_ctrl_c(monkeypatch, began)
    with pytest.raises(KeyboardInterrupt), ray_session(config):
        _do(config, plan_of(), _wait_long, began)
    assert not any(psutil.pid_exists(int(file.name)) for file in began.iterdir())


def test_ctrl_c_before_there_is_a_worker(
    config_of: ConfigOf, plan_of: PlanOf, local_training: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches a command that first waits for its workers to start, and then ends them."""
    monkeypatch.setattr(worker_group.WorkerGroup, "_look_again", _interrupt)
    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt), ray_session(config_of()):
        _do(config_of(), plan_of(), _read)
    assert time.monotonic() - began < worker_group._END_S / 2


def _interrupt(*_: Any) -> None:
    raise KeyboardInterrupt


def test_workers_whose_node_is_taken_away(config_of: ConfigOf, plan_of: PlanOf, local_training: None) -> None:
    """Catches a job that begins on workers that end at the deadline of a notice."""
    config = config_of(max_failures=0)
    with ray_session(config):
        _do(config, plan_of(), _read)
        group: Any = session._kept._group
        before = _do(config, plan_of(), _lose_nodes, group._queue)
        after = _do(config, plan_of(), _read)
        assert not set(before["pids"]) & set(after["pids"])


def test_other_settings_end_workers_before_a_pass(config_of: ConfigOf, plan_of: PlanOf, local_training: None) -> None:
    """Catches a pass that waits for ever for CPUs which idle workers of another configuration hold."""
    config, other = config_of(), config_of(num=1)
    with ray_session(config):
        pids = _do(config, plan_of(), _read)["pids"]
        with ray_session(config):
            assert all(map(psutil.pid_exists, pids))
        with ray_session(other):
            assert not any(map(psutil.pid_exists, pids))


class _SlowStore:
    """A process group's user that is within a write."""

    def __init__(self) -> None:
        self.has_ended = False

    def write(self, *_: Any) -> None:
        time.sleep(0.5)
        self.has_ended = True
        raise OSError("the disk is full")


def test_a_refused_training_leaves_no_writer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a checkpoint's writer that is still within the process group when the next job uses it."""
    store = _SlowStore()
    monkeypatch.setattr("pipeline.checkpoint.saver.write_checkpoint", store.write)
    group: Any = None
    saver = Saver(Line.of(str(tmp_path), "main"), CheckpointConfig(background=True), group)
    saver.save({"dense": {"weight": torch.zeros(1)}}, "a", None)
    assert not store.has_ended
    saver.leave()  # and raises nothing: the training has a reason of its own
    assert store.has_ended
    with pytest.raises(OSError, match="full"):
        saver.check()


# --- Jobs on Ray ---


def _free_cpus() -> float:
    return ray.available_resources().get("CPU", 0.0)


def _wait_until(holds: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, f"not within {seconds:g} s"
        time.sleep(0.2)


@pytest.mark.ray
def test_on_ray(config_of: ConfigOf, plan_of: PlanOf, tmp_path: Path, ray_cluster: None) -> None:
    """Catches a Ray Train that does not do what the processes of these tests do, and workers that are left on Ray."""
    config = config_of(max_failures=1)
    before = _free_cpus()
    with ray_session(config):
        first = _do(config, plan_of(), _read)
        assert _do(config, plan_of(), _read) == first
        assert first["rows"] == 40
        again = _do(config, plan_of(), _fail_once, tmp_path / "failed")
        assert again["rows"] == 40
        assert not set(first["pids"]) & set(again["pids"])
    _wait_until(lambda: not any(map(psutil.pid_exists, again["pids"])))
    with pytest.MonkeyPatch.context() as patch:
        _press_ctrl_c(patch, tmp_path / "began")
        with pytest.raises(KeyboardInterrupt), ray_session(config):
            _do(config, plan_of(), _wait_long, tmp_path / "began")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(worker_group.WorkerGroup, "_look_again", _interrupt)
        with pytest.raises(KeyboardInterrupt), ray_session(config):
            _do(config, plan_of(), _read)
    pids = [int(file.name) for file in (tmp_path / "began").iterdir()]
    _wait_until(lambda: not any(map(psutil.pid_exists, pids)))
    _wait_until(lambda: _free_cpus() == before)
    assert not list((tmp_path / "ray").glob("*"))
