"""Setup that several test files need: hypothesis' fixed profile, real gloo ranks, a real S3 server, and tiny logs."""

import contextlib
import functools
import io
import json
import logging
import os
import pickle
import socket
import subprocess
import sys
import time
import traceback
import uuid
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import s3fs
import torch
import torch.distributed as dist
from hypothesis import HealthCheck, settings
from s3_proxy import Proxy
from xdist.scheduler import LoadScopeScheduling

from features.encoding import Encoder
from features.schema import Schema
from pipeline.storage.files import Storage
from pipeline.storage.s3 import PatientS3FileSystem

settings.register_profile(
    "fixed", derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow], max_examples=60
)
settings.load_profile("fixed")


_SLOWEST = ("ray_cluster", "local_training", "run_ranks", "s3_root")  # fixtures of slow tests, the slowest first


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """On several processes: the tests of a file on one, those of the session's Ray too, and the slow ones first."""
    if hasattr(config, "workerinput"):
        _group(items)


def _group(items: list[pytest.Item]) -> None:
    torch.set_num_threads(1)
    slowness: dict[str, int] = {}
    for item in items:
        group, fixtures = _group_of(item.nodeid), getattr(item, "fixturenames", ())
        own = next((place for place, name in enumerate(_SLOWEST) if name in fixtures), len(_SLOWEST))
        slowness[group] = min(own, slowness.get(group, own))
    items.sort(key=lambda item: slowness[_group_of(item.nodeid)])


@functools.cache
def _group_of_file(name: str) -> str:
    return "ray" if "ray_cluster" in (Path(__file__).parents[1] / name).read_text() else name


def _group_of(nodeid: str) -> str:
    """The group of a test: its file, or that of all files which use the session's Ray."""
    return _group_of_file(nodeid.partition("::")[0])


class _FileScheduling(LoadScopeScheduling):
    """Scheduling of whole groups. That of xdist's own groups has no effect with this pytest, whose ids are computed."""

    def _split_scope(self, nodeid: str) -> str:
        return _group_of(nodeid)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> _FileScheduling:
    return _FileScheduling(config, log)


@pytest.fixture(scope="session")
def run_ranks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., list[Any]]]:
    """Runs `worker(rank, num_ranks)` in real gloo processes and returns what each rank returned.

    The processes live for the whole session, and are forked from one that has imported TorchRec.
    """
    from local_training import fork_server  # here, so that the tests that need no ranks do not pay for it

    context = fork_server()
    groups: dict[int, list[tuple[Any, Any]]] = {}
    folder = tmp_path_factory.mktemp("ranks")

    def start(rank: int, num_ranks: int) -> tuple[Any, Any]:
        ours, theirs = context.Pipe()
        arguments = (theirs, rank, num_ranks, str(folder), dict(os.environ))
        process = context.Process(target=_serve_rank, args=arguments, daemon=True)
        process.start()
        return process, ours

    def run(worker: Callable[[int, int], Any], num_ranks: int) -> list[Any]:
        if num_ranks not in groups:
            groups[num_ranks] = [start(rank, num_ranks) for rank in range(num_ranks)]
        for _, pipe in groups[num_ranks]:
            pipe.send(pickle.dumps(worker))
        failed = [text for _, pipe in groups[num_ranks] if (text := pipe.recv())]
        assert not failed, failed[0]
        return [torch.load(folder / f"{rank}-of-{num_ranks}", weights_only=False) for rank in range(num_ranks)]

    yield run
    for process, pipe in (member for members in groups.values() for member in members):
        pipe.send(None)
        process.join(30)


def _serve_rank(pipe: Any, rank: int, num_ranks: int, folder: str, environment: dict[str, str]) -> None:
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    os.environ |= environment | {
        "LOCAL_RANK": str(rank),
        "LOCAL_WORLD_SIZE": str(num_ranks),
        "GLOO_SOCKET_IFNAME": "lo",
    }
    store = f"file://{folder}/store-{num_ranks}"
    dist.init_process_group("gloo", store, timedelta(seconds=60), rank=rank, world_size=num_ranks)
    groups = dist.distributed_c10d._world.pg_map
    while (worker := pipe.recv()) is not None:
        try:
            torch.save(pickle.loads(worker)(rank, num_ranks), f"{folder}/{rank}-of-{num_ranks}")
            problem = ""
        except Exception:  # noqa: BLE001 - the test that asked for it shows it
            problem = traceback.format_exc()
        for group in [group for group in groups if group is not dist.group.WORLD]:
            dist.destroy_process_group(group)  # of the many that a session makes, each has threads
        pipe.send(problem)
    dist.destroy_process_group()


@pytest.fixture(scope="session")
def s3_root(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The root `s3://bucket` of a real S3 server, with the environment that leads to it.

    A Ray that is to know it has to be started after it.
    """
    folder = tmp_path_factory.mktemp("s3")
    secret = f"pl/anted+{uuid.uuid4().hex}"  # a test looks for it wherever a run writes
    identity = {"name": "tests", "credentials": [{"accessKey": "access", "secretKey": secret}]}
    identity["actions"] = ["Admin", "Read", "Write", "List", "Tagging"]
    (folder / "s3.json").write_text(json.dumps({"identities": [identity]}))
    servers = ("master.port", "volume.port", "filer.port", "s3.port")
    ports = _free_ports([name for server in servers for name in (server, f"{server}.grpc")])
    options = {"dir": folder, "ip": "127.0.0.1", "ip.bind": "127.0.0.1", "s3.config": folder / "s3.json"}
    options |= {"master.telemetry": "false", "s3.port.iceberg": 0, "s3.port.lance": 0, "volume.max": 64}
    options |= {"master.volumeSizeLimitMB": 64}
    command = [str(Path(sys.executable).parent / "weed"), "server", "-s3"]
    command += [f"-{name}={value}" for name, value in (options | ports).items()]
    environment = {
        "AWS_ACCESS_KEY_ID": "access",
        "AWS_SECRET_ACCESS_KEY": secret,
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{ports['s3.port']}",
    }
    with (folder / "log").open("wb") as log, pytest.MonkeyPatch.context() as patch:
        server = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
        try:
            for name, value in environment.items():
                patch.setenv(name, value)
            _wait_for_bucket(server, ports["s3.port"], folder / "log")
            yield "s3://bucket"
        finally:
            server.kill()  # it takes its time over a SIGTERM, and nobody wants its files
            server.wait()
            for port in ports.values():
                for left in Path("/tmp").glob(f"seaweedfs-*-{port}.sock"):
                    left.unlink()


def _free_ports(names: list[str]) -> dict[str, int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in names]
        for opened in sockets:
            opened.bind(("127.0.0.1", 0))
        return {name: opened.getsockname()[1] for name, opened in zip(names, sockets, strict=True)}


def _wait_for_bucket(server: subprocess.Popen[bytes], port: int, log: Path) -> None:
    deadline = time.monotonic() + 60
    while True:
        assert server.poll() is None, log.read_text()[-2000:]
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            filesystem = s3fs.S3FileSystem()
            with contextlib.suppress(FileExistsError):
                filesystem.mkdir("bucket")
            return filesystem.pipe_file("bucket/ready", b"")  # there is a volume to write to
        except OSError:
            assert time.monotonic() < deadline, log.read_text()[-2000:]
            time.sleep(0.1)


@pytest.fixture(scope="module")
def server(s3_root: str) -> str:
    """The endpoint of the server itself."""
    return os.environ["AWS_ENDPOINT_URL"]


@pytest.fixture
def proxy(server: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    """A proxy that the environment leads to."""
    proxy = Proxy(server)
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{proxy.port}")
    PatientS3FileSystem.clear_instance_cache()
    yield proxy
    PatientS3FileSystem.clear_instance_cache()
    PatientS3FileSystem.outage.end()
    proxy.stop()


@pytest.fixture
def storage(proxy: Proxy, s3_root: str) -> Storage:
    """An empty folder behind the proxy."""
    return Storage(s3_root).under(f"s3-{uuid.uuid4().hex}")


@pytest.fixture(scope="session")
def tiny_encoder() -> Encoder:
    """Return an encoder of the logs of `write_log`; the dense value is the row's number in the whole log."""
    tasks = [{"name": "ctr", "label": "click"}, {"name": "like", "label": "liked"}]
    features = [
        {"kind": "id", "name": "video", "table": "video"},
        {"kind": "sequence", "name": "history", "table": "video", "max_length": 8},
        {"kind": "dense", "name": "number", "standardise": False},
    ]
    tables = [{"name": "video", "num_rows": 1000, "dim": 4}]
    return Encoder(
        Schema.model_validate({"tables": tables, "features": features, "tasks": tasks, "slot": "slot"}), None
    )


@pytest.fixture(scope="session")
def write_log(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Storage]:
    """Writes days of files of row groups of the given sizes; columns follow from the row's number, some are null.

    Days are 2026-03-01 and so on, files `part-0.parquet` and so on.
    """

    def write(days: list[list[list[int]]], root: str | None = None) -> Storage:
        logs = Storage(root or str(tmp_path_factory.mktemp("log")))
        files = {
            f"dt=2026-03-{day_index + 1:02d}/part-{part}.parquet": sizes
            for day_index, parts in enumerate(days)
            for part, sizes in enumerate(parts)
        }
        first = 0
        for file, sizes in files.items():
            data = io.BytesIO()
            with pq.ParquetWriter(data, _tiny_rows(0, 0).schema, write_page_checksum=True) as writer:
                for size in sizes:
                    writer.write_table(_tiny_rows(first, size))
                    first += size
            if logs.is_local:  # without waiting for the disk
                Path(logs.path(file)).parent.mkdir(exist_ok=True)
                Path(logs.path(file)).write_bytes(data.getvalue())
            else:
                logs.write(file, data.getvalue())
        return logs

    return write


def _tiny_rows(first: int, size: int) -> pa.Table:
    numbers = range(first, first + size)
    columns = {
        "number": pa.array(numbers, pa.int64()),
        "video": pa.array([None if k % 5 == 4 else k for k in numbers], pa.int64()),
        "history": pa.array([[k, None, k + 1, k + 2][: k % 5] for k in numbers], pa.list_(pa.int64())),
        "click": pa.array([k % 2 for k in numbers], pa.int8()),
        "liked": pa.array([None if k % 3 == 0 else k % 3 == 1 for k in numbers], pa.bool_()),
        "slot": pa.array([k % 7 for k in numbers], pa.int8()),
    }
    return pa.table(columns)


@pytest.fixture
def local_training() -> Iterator[None]:
    """Puts processes of our own in the place of Ray for one test; see `local_training.py`."""
    from local_training import on_processes  # here, so that the tests that need no Ray do not pay for it

    with on_processes():
        yield


@pytest.fixture(scope="session")
def ray_cluster(s3_root: str) -> Iterator[None]:
    """The session's one Ray: real, in processes of its own, with more logical CPUs than this machine has cores.

    It knows the S3 server, whose address and keys are in the environment that it is started with.
    """
    import ray  # here, so that the tests that need no Ray do not pay for it

    os.environ |= {"RAY_DATA_LOG_LEVEL": "ERROR", "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "180"}
    ray.init(
        address="local",
        num_cpus=6,
        object_store_memory=400 * 2**20,
        include_dashboard=True,
        dashboard_host="127.0.0.1",
        log_to_driver=False,
        logging_level=logging.ERROR,
    )
    yield
    ray.shutdown()
