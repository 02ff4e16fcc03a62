"""RayJobs of the launcher on a real Ray each: the entrypoint and the environment of the manifest really run."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from kubernetes_server import KubernetesServer, api, cluster
from ray.dashboard.modules.job.sdk import JobSubmissionClient
from scheduled_lines import template
from training_commands import DAY, ROWS, config_of, write_log_of

from jobs.submitted import job_of
from pipeline.config.load import load_config
from pipeline.lineage.ledger import Ledger
from pipeline.lineage.line import Line
from pipeline.submission.kubernetes_api import KubernetesApi
from pipeline.submission.kubernetes_place import KubernetesPlace
from pipeline.submission.launcher import Launcher
from pipeline.submission.ray_place import RayPlace, once_there
from pipeline.submission.schedule import Decision, Window
from pipeline.submission.submit import ended, follow, records_of, start_or_attach

__all__ = ["api", "cluster"]  # fixtures
PROJECT = Path(__file__).parents[1]


class RayHead:
    """A Ray of its own, as a RayJob's cluster is: `ray start --head`, and its Jobs API."""

    def __init__(self, folder: Path) -> None:
        ports = [_free_port() for _ in range(2)]
        self.address = f"http://127.0.0.1:{ports[1]}"
        command = [str(Path(sys.executable).parent / "ray"), "start", "--head", "--block", "--num-cpus=5"]
        command += [f"--port={ports[0]}", f"--dashboard-port={ports[1]}", "--dashboard-host=127.0.0.1"]
        command += ["--node-ip-address=127.0.0.1", "--object-store-memory=200000000", f"--temp-dir={folder}"]
        command += ["--dashboard-agent-listen-port=0"]  # the session's Ray holds the default port
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        self._process = subprocess.Popen(
            command,
            cwd=PROJECT,  # as WORKDIR of the image
            env=os.environ | {"PATH": path, "PYTHONPATH": str(PROJECT), "RAY_AUTH_MODE": "disabled"},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        self.folder = folder

    def await_client(self) -> JobSubmissionClient:
        """Return a client, once the Jobs API answers."""
        until = time.monotonic() + 600
        while True:
            try:
                return JobSubmissionClient(self.address)
            except (ConnectionError, RuntimeError):
                assert time.monotonic() < until
                time.sleep(0.5)

    def kill(self) -> None:
        """End all of it at once, as the deletion of its pods does."""
        children = _descendants(self._process.pid)
        for pid in [self._process.pid, *children]:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        self._process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)


def _descendants(pid: int) -> list[int]:
    import psutil

    return [child.pid for child in psutil.Process(pid).children(recursive=True)]


def _free_port() -> int:
    with socket.socket() as opened:
        opened.bind(("127.0.0.1", 0))
        return opened.getsockname()[1]


@pytest.fixture
def heads(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Starts Rays, and ends what is left of them."""
    started: list[RayHead] = []

    def start() -> RayHead:
        started.append(RayHead(Path(f"/tmp/cp{os.getpid()}-{len(started)}")))  # short: Ray's sockets lie below it
        return started[-1]

    yield start
    for head in started:
        if head._process.poll() is None:
            head.kill()


class Operator:
    """The operator's part for one submission: it submits the RayJob's entrypoint with its environment."""

    def __init__(self, server: KubernetesServer, name: str, head: RayHead) -> None:
        self._server, self._name, self._client = server, name, head.await_client()
        spec = server.read(name)["spec"]
        env = yaml.safe_load(spec["runtimeEnvYAML"])
        self._id = once_there(lambda: self._client.submit_job(entrypoint=spec["entrypoint"], runtime_env=env))
        server.set_status(name, "Running", "RUNNING", jobId=self._id)

    def await_end(self) -> str:
        until = time.monotonic() + 600
        while not (status := self._client.get_job_status(self._id)).is_terminal():
            assert time.monotonic() < until, self._client.get_job_logs(self._id)[-2000:]
            time.sleep(0.5)
        self._server.set_status(self._name, "Complete" if status.value == "SUCCEEDED" else "Failed", status.value)
        return f"{status.value} {self._client.get_job_logs(self._id)[-3000:]}"


@pytest.mark.faults
@pytest.mark.ray
def test_a_killed_attempt_and_its_successor(
    tmp_path: Path, cluster: KubernetesServer, api: KubernetesApi, heads: Any
) -> None:
    """Catches a manifest whose command or environment does not run, and a successor that begins from nothing."""
    root, logs = tmp_path / "root", write_log_of(tmp_path / "logs", ROWS)
    rayjob = template(tmp_path)
    config_file = _mounted_config(rayjob, tmp_path / "etc", config_of(logs, root))
    config = load_config(config_file)

    def tick() -> Decision:
        daily = lambda day: job_of("daily", ["--config", str(config_file), "--day", day, "--max-catch-up", "0"])[0]  # noqa: E731
        launcher = Launcher(config, api, KubernetesPlace(api, rayjob, None), daily)
        return launcher.tick(Window(DAY, DAY))

    first = tick()
    job = job_of("daily", ["--config", str(config_file), "--day", DAY])[0]
    head = heads()
    Operator(cluster, job.submission(1), head)
    line = Line.of(config.root, "main")
    _await_checkpoint(line)
    head.kill()
    cluster.set_status(job.submission(1), "Failed", "RUNNING", reason="AppFailed")
    assert (first.what, first.number) == ("create", 1)
    assert line.latest() is None

    second = tick()
    assert (second.what, second.number) == ("create", 2)
    head = heads()
    said = Operator(cluster, job.submission(2), head).await_end()
    records = records_of(config.root, job.name)
    assert said.startswith("SUCCEEDED"), said
    assert (records[1].exit_code, records[2].exit_code) == (None, 0)
    assert records[2].line is not None
    assert records[2].line["result"] == "published"
    assert tick().what == "nothing"
    newest = Ledger(line).newest()
    assert newest is not None
    assert (newest.day, newest.rows) == (DAY, ROWS)
    attempts = line.attempts([DAY])
    assert attempts[-1].start_step > 0  # it went on from a checkpoint of the first

    _check_jobs_api(head, config_file)


def _check_jobs_api(head: RayHead, config_file: Path) -> None:
    """Submit to the same Ray with this checkout uploaded: the job's own exit code and line come back."""
    place = RayPlace(head.address)
    history = job_of("history", ["--config", str(config_file)])[0]
    submission, result = start_or_attach(place, history)
    shown: list[str] = []
    follow(place, submission, shown.append)
    end = ended(history.config.root, submission)
    assert (result, end["exit_code"], end["line"]["result"]) == ("submitted", 0, "listed"), "".join(shown)
    assert DAY in "".join(shown)
    assert not place.start(history, 1)  # the name is taken
    assert start_or_attach(place, history) == (history.submission(2), "submitted")


def _mounted_config(rayjob: dict[str, Any], folder: Path, config: Any) -> Path:
    """Write a configuration to where the head of a RayJob has it mounted; return its path."""
    folder.mkdir()
    content = config.model_dump(mode="json", by_alias=True, exclude_defaults=True) | {"ray": {"address": "auto"}}
    (folder / "config.yaml").write_text(yaml.safe_dump(json.loads(json.dumps(content))))
    head = rayjob["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["containers"][0]
    for mount in head["volumeMounts"]:
        if mount["name"] == "run-config":
            mount["mountPath"] = str(folder)
    return folder / "config.yaml"


def _await_checkpoint(line: Line) -> None:
    until = time.monotonic() + 600
    while line.newest() is None:
        assert time.monotonic() < until
        time.sleep(0.2)


def test_no_ray_answers() -> None:
    """Catches a traceback of a library where an address is wrong."""
    with pytest.raises(ConnectionError, match=r"no Ray answers at http://127.0.0.1:9: correct --address"):
        RayPlace("http://127.0.0.1:9")
