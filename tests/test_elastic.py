"""Nodes that come and go: a notice of preemption is answered by a checkpoint, and the run goes on with who is left."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from ray._raylet import GcsClient
from ray.cluster_utils import Cluster
from ray.core.generated import autoscaler_pb2
from training_commands import DAY, Command, config_of, start_command, write_log_of

from pipeline.config.project import Config
from pipeline.lineage.audit import audit_line
from pipeline.lineage.line import Line
from pipeline.lineage.stored_checkpoint import Manifest

ROWS, EVERY = 300_000, 100  # more rows than are trained before the test has seen what it wants
NOTICE_S = 20

__all__ = ["start_command"]  # a fixture
pytestmark = [pytest.mark.faults, pytest.mark.timeout(1200)]


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    """A head with room for one worker and the reading, in processes of its own."""
    others = {process.pid for process in psutil.Process().children(recursive=True)}  # the session's Ray
    head = {"num_cpus": 1, "include_dashboard": True, "dashboard_host": "127.0.0.1", "dashboard_port": 0}
    cluster = Cluster(initialize_head=True, head_node_args=head | {"object_store_memory": 200 * 2**20})
    started = [process for process in psutil.Process().children(recursive=True) if process.pid not in others]
    yield cluster
    cluster.shutdown()
    for process in started:
        if process.is_running():
            process.kill()


def _add_node(cluster: Cluster) -> Any:
    return cluster.add_node(num_cpus=1, object_store_memory=200 * 2**20)


def _wait(command: Command, what: Callable[[], bool], timeout_s: float = 400) -> None:
    deadline = time.monotonic() + timeout_s
    while not what():
        assert command.process.poll() is None, command.log.read_text()[-3000:]
        assert time.monotonic() < deadline, command.log.read_text()[-3000:]
        time.sleep(0.1)


def _elastic(logs: Path, root: Path, address: str) -> Config:
    workers = {"min": 1, "max": 2, "cpus": 0.75, "resize_every_s": 5, "timeout_s": 60, "max_failures": 3}
    ingest = {"batch_size": 8, "unit": {"max_rows": 100}, "object_store_mb": 8, "read_cpus": 0.25}
    config = config_of(logs, root, checkpoint={"every_steps": EVERY, "keep": 100}, ray={"address": address})
    sections = {"workers": workers, "ingest": ingest}
    return type(config).model_validate(config.model_dump(by_alias=True, exclude_defaults=True) | sections)


def test_nodes_come_and_go(
    tmp_path: Path, cluster: Cluster, start_command: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches a notice that is not heard, a run that waits for a lost node, and one that never takes a new one."""
    # Ray takes a node that has just gone for one that is there, and asks it for a worker as long as this. The session's
    # Ray, for whose sake it is long, is not the one of this test.
    monkeypatch.setenv("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "30")
    node = _add_node(cluster)
    config = _elastic(write_log_of(tmp_path / "logs", ROWS), tmp_path / "root", cluster.address)
    line = Line.of(config.root, config.line)

    def newest() -> Manifest | None:
        return max(line.manifests(), key=lambda manifest: manifest.step, default=None)

    def trained_on(ranks: int, after: int) -> Callable[[], bool]:
        return lambda: any(len(line.lanes(m)) == ranks and m.step > after for m in line.manifests())

    command = start_command(config)
    _wait(command, trained_on(2, 0))
    deadline_ms = int((time.time() + NOTICE_S) * 1000)
    reason = autoscaler_pb2.DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION")
    accepted, _ = GcsClient(address=cluster.gcs_address).drain_node(node.node_id, reason, "a test", deadline_ms)
    assert accepted
    noticed = time.monotonic()
    _wait(command, lambda: any(m.step % EVERY for m in line.manifests()), NOTICE_S)
    _wait(command, lambda: "lose their node in" in command.log.read_text(), NOTICE_S)  # Ray brings lines a little later
    time.sleep(max(0.0, NOTICE_S - (time.monotonic() - noticed)))
    cluster.remove_node(node, allow_graceful=False)
    saved = newest()
    assert saved is not None
    _wait(command, trained_on(1, saved.step))
    _add_node(cluster)
    alone = newest()
    assert alone is not None
    _wait(command, trained_on(2, alone.step))
    command.process.terminate()
    result = command.wait()
    assert "stopped by SIGTERM" in result["error"], command.log.read_text()[-3000:]
    last = newest()
    assert last is not None
    assert audit_line(config, last.checkpoint)["rows"] == last.rows
    records = line.attempts([DAY])
    assert [record.result for record in records[-3:]] == ["restarted", "restarted", "interrupted"]
