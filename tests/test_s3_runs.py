"""Logs, checkpoints and whole runs on an S3 that is away, broken, or refuses."""

import contextlib
import functools
import json
import os
import random
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
import torch
import yaml
from s3_proxy import Proxy, stopped_server
from torch import distributed as dist
from torch.distributed.checkpoint import load, save
from torch.distributed.checkpoint._fsspec_filesystem import FsspecReader, FsspecWriter
from torch.distributed.tensor import DeviceMesh, DTensor, Replicate, Shard, distribute_tensor

from features.encoding import Encoder
from features.synthetic.logs import SyntheticConfig, write_day
from pipeline.ingest.datasource import read_unit
from pipeline.ingest.units import list_days
from pipeline.lineage.line import Line
from pipeline.storage import s3
from pipeline.storage.files import Storage
from pipeline.storage.s3 import PatientS3FileSystem

MIB = 1 << 20


# --- Logs and checkpoints ---


def test_logs_are_read_through_faults(
    storage: Storage, proxy: Proxy, write_log: Callable[..., Storage], tiny_encoder: Encoder
):
    """Catches a unit that is taken for a bad one, or read wrongly, because the server broke off in the middle."""
    logs = write_log([[[100, 57], [30]]], f"{storage.url}/logs")
    dice = random.Random(2)
    faults = ("cut", "500", "reset", None)
    with proxy.failing(lambda _: dice.choice(faults)):
        (day,) = list_days(logs, ["2026-03-01"], 40)
        numbers = [
            number for unit in day.units for number in read_unit(logs, unit, tiny_encoder.columns)["number"].to_pylist()
        ]
    assert numbers == list(range(187))


TABLES = {"users": 4 * MIB, "videos": 2 * MIB}  # bytes per rank
DENSE = 64 << 10


def _tensors(num_ranks: int, fill: bool) -> dict[str, DTensor]:
    """A dense weight that every rank has, and behind it in its file two tables that are sharded by rows."""
    mesh = DeviceMesh("cpu", list(range(num_ranks)))
    tensors = {}
    for name, size in ({"dense": DENSE} | TABLES).items():
        placement = Replicate() if name == "dense" else Shard(0)
        rows = size // 256 * (1 if name == "dense" else num_ranks)
        whole = torch.arange(rows * 64, dtype=torch.float32).reshape(rows, 64)
        tensors[name] = distribute_tensor(whole if fill else torch.zeros_like(whole), mesh, [placement])
    return tensors


def _checkpoint(action: str, url: str, endpoints: tuple[str, ...], environment: dict[str, str], *rank: int) -> bool:
    """Save or load in one rank, through the rank's own proxy; a load says whether all is as it was."""
    os.environ |= environment | {"AWS_ENDPOINT_URL": endpoints[rank[0]]}
    PatientS3FileSystem.clear_instance_cache()
    storage, group = Storage(url), dist.group.WORLD
    tensors = _tensors(rank[1], fill=action == "save")
    if action == "save":
        writer = FsspecWriter(storage.url, sync_files=False)
        writer.fs.fs = storage.filesystem  # pyright: ignore[reportAttributeAccessIssue]
        save(tensors, storage_writer=writer, process_group=group)
        return True
    reader = FsspecReader(storage.url)
    reader.fs.fs = storage.filesystem  # pyright: ignore[reportAttributeAccessIssue]
    load(tensors, storage_reader=reader, process_group=group)
    expected = _tensors(rank[1], fill=True)
    return all(torch.equal(tensors[name].to_local(), expected[name].to_local()) for name in tensors)


def test_a_rank_writes_and_reads_its_own_shards(
    storage: Storage, server: str, s3_root: str, run_ranks: Callable[..., list[Any]]
):
    """Catches a rank that sends or fetches another's shards, and a checkpoint that an outage of 3 s breaks."""
    proxies = [Proxy(server) for _ in range(2)]
    endpoints = tuple(f"http://127.0.0.1:{proxy.port}" for proxy in proxies)
    environment = {name: os.environ[name] for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")}
    url = f"{storage.url}/checkpoint"
    moved = {}
    for action, method in (("save", "PUT"), ("load", "GET")):
        for proxy in proxies:
            proxy.requests.clear()
        with ThreadPoolExecutor(1) as pool, contextlib.ExitStack() as outage:
            for proxy in proxies:
                outage.enter_context(proxy.away("refused"))
            running = pool.submit(run_ranks, functools.partial(_checkpoint, action, url, endpoints, environment), 2)
            time.sleep(3)
            assert not running.done()
            outage.close()
            assert running.result() == [True, True]
        moved[action] = [_bytes_by_file(proxy, method) for proxy in proxies]
    for proxy in proxies:
        proxy.stop()
    own = sum(TABLES.values())
    files = [set(found) for found in moved["save"]]
    assert [found & {"__0_0.distcp", "__1_0.distcp"} for found in files] == [{"__0_0.distcp"}, {"__1_0.distcp"}]
    for rank, found in enumerate(moved["save"]):
        assert own <= found[f"__{rank}_0.distcp"] < own + 2 * DENSE
    for rank, found in enumerate(moved["load"]):
        mine, other = (found.get(f"__{of}_0.distcp", 0) for of in (rank, 1 - rank))
        assert own <= mine < own + MIB  # what is read ahead, and read twice, is bounded
        assert other < DENSE + MIB // 2  # only the dense weight


def _bytes_by_file(proxy: Proxy, method: str) -> dict[str, int]:
    moved: dict[str, int] = {}
    for request in proxy.requests:
        name = request.path.partition("?")[0].rsplit("/", 1)[-1]
        if request.method == method and "/checkpoint/" in request.path:
            moved[name] = moved.get(name, 0) + request.asked
    return moved


# --- Whole runs ---

DAY, NEXT = "2026-01-01", "2026-01-02"
ROWS = 40_000


@dataclass
class Project:
    """A project on S3, and the commands on it, each with a Ray of its own.

    Args:
        config: Path of the config; its root and logs are on S3.
        root: The root on S3.
        ray: Where Ray keeps its sessions, and their logs.
        outputs: Folder of what the commands said.
    """

    config: Path
    root: str
    ray: Path
    outputs: Path

    def start(self, job: str, *arguments: str, **environment: str) -> subprocess.Popen[bytes]:
        """Start a command."""
        place = self.outputs / f"{len(list(self.outputs.iterdir())):03d}-{job}"
        command = [sys.executable, "-m", f"jobs.{job}", "--config", str(self.config), "--days", *arguments]
        with open(f"{place}.out", "wb") as out, open(f"{place}.err", "wb") as err:
            surroundings = os.environ | {"RAY_TMPDIR": str(self.ray)} | environment
            return subprocess.Popen(command, cwd=HERE, stdout=out, stderr=err, env=surroundings)

    def ended(self, process: subprocess.Popen[bytes], within_s: float) -> tuple[int, dict[str, Any]]:
        """Wait for the command that was started last; returns its exit code and JSON line."""
        try:
            process.wait(within_s)
        finally:
            process.kill()
        text = sorted(self.outputs.glob("*.out"))[-1].read_text()
        assert text.count("\n") == 1, self.said()
        return process.returncode, json.loads(text)

    def checkpoints(self) -> list[str]:
        """Names of the checkpoints, complete or not."""
        line = Storage(self.root).under("lines/main/checkpoints")
        return [f"{attempt}/{step}" for attempt in line.names(DAY) for step in line.names(f"{DAY}/{attempt}")]

    def wait_for_checkpoint(self, process: subprocess.Popen[bytes], attempt: str) -> None:
        """Wait until a run is in the middle of its day."""
        deadline = time.monotonic() + 600
        while not any(name.startswith(attempt) for name in self.checkpoints()):
            assert process.poll() is None, self.said()
            assert time.monotonic() < deadline, self.said()
            time.sleep(0.5)

    def said(self) -> str:
        """The end of what the last command said."""
        return "".join(path.read_text()[-3000:] for path in sorted(self.outputs.iterdir())[-2:])


HERE = Path(__file__).parent.parent


@pytest.fixture
def project(storage: Storage, tmp_path: Path) -> Iterator[Project]:
    """The demo's model without what needs statistics, over two small days on S3."""
    world = SyntheticConfig(
        seed=3,
        first_day=date.fromisoformat(DAY),
        rows_per_day=ROWS,
        num_users=500,
        num_videos=500,
        num_authors=50,
        files_per_day=4,
        row_group_rows=1000,
    )
    for day in (DAY, NEXT):
        write_day(world, date.fromisoformat(day), tmp_path / "logs")
        for file in (tmp_path / "logs" / f"dt={day}").iterdir():
            storage.write(f"logs/dt={day}/{file.name}", file.read_bytes())
    config = yaml.safe_load((HERE / "jobs/configs/demo.yaml").read_text())
    config |= {"root": f"{storage.url}/root", "logs": {"path": f"{storage.url}/logs"}}
    config |= {"checkpoint": {"every_steps": 10}, "workers": {"num": 2, "timeout_s": 200, "max_failures": 0}}
    schema = config["schema"]
    schema["features"] = [
        feature | ({"standardise": False} if feature["kind"] == "dense" else {})
        for feature in schema["features"]
        if feature["kind"] != "bucket"
    ]
    schema["tables"] = [table for table in schema["tables"] if table["name"] != "age_bucket"]
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(config))
    (tmp_path / "outputs").mkdir()
    with tempfile.TemporaryDirectory(prefix="r", dir="/tmp", ignore_cleanup_errors=True) as ray:  # sockets: short paths
        yield Project(path, config["root"], Path(ray), tmp_path / "outputs")


def _assert_trained_once(project: Project) -> None:
    line = Line.of(project.root, "main")
    latest = line.latest()
    assert latest is not None
    manifest = line.read_manifest(latest.checkpoint)
    assert manifest is not None
    assert manifest.complete
    assert manifest.rows == ROWS
    assert sum(count for count, _ in line.cursor(manifest).units.values()) == ROWS


def _assert_no_secret(project: Project) -> None:
    secret = os.environ["AWS_SECRET_ACCESS_KEY"]
    assert len(secret) > 20, "conftest plants a random key, which a word like `secret` is not"
    planted = [text.encode() for text in (secret, quote(secret, safe=""), quote(secret), json.dumps(secret)[1:-1])]
    logs = [path for path in project.ray.rglob("*") if path.is_file() and not path.is_symlink()]
    said = list(project.outputs.iterdir())
    assert any("worker" in path.name for path in logs)
    root = Storage(project.root)
    found = {str(path): path.read_bytes() for path in (*logs, *said)}
    found |= {name: root.filesystem.cat_file(name) for name in root.filesystem.find(root.path())}
    assert any(name.endswith("manifest.json") for name in found)
    assert [name for name, data in found.items() if any(text in data for text in planted)] == []


@pytest.mark.faults
@pytest.mark.ray
@pytest.mark.timeout(1200)
def test_a_run_sits_out_a_stopped_server(project: Project):
    """Catches a run that an outage of 20 s breaks, and a key that is told to somebody."""
    running = project.start("train", DAY)
    project.wait_for_checkpoint(running, "0001")
    with stopped_server():
        time.sleep(20)
        assert running.poll() is None, project.said()
    code, line = project.ended(running, 400)
    assert (code, line["result"], line["rows"]) == (0, "trained", ROWS), project.said()
    _assert_trained_once(project)
    code, line = project.ended(project.start("evaluate", NEXT), 300)
    assert code == 0, project.said()
    assert line["tasks"]["ctr"]["rows"] == ROWS
    assert f"{project.root}/reports/" in line["figures"]
    _assert_no_secret(project)
    Storage(project.root).write("leak", quote(os.environ["AWS_SECRET_ACCESS_KEY"]).encode())
    with pytest.raises(AssertionError, match="leak"):  # the negative control
        _assert_no_secret(project)


@pytest.mark.faults
@pytest.mark.ray
@pytest.mark.timeout(1200)
def test_a_run_without_a_server_fails_and_resumes(project: Project, proxy: Proxy):
    """Catches a run that hangs when the server is gone for good, ends in a riddle, or does not go on where it was."""
    running = project.start("train", DAY)
    project.wait_for_checkpoint(running, "0001/0000000020")
    proxy.stop()
    stopped = time.monotonic()
    try:
        code, line = project.ended(running, 8 * s3.WAIT_S)
    finally:
        proxy.start()
    assert code == 1, line
    assert "has not served for" in line["error"], line
    assert time.monotonic() - stopped < 5 * s3.WAIT_S
    code, line = project.ended(project.start("train", DAY), 400)
    assert (code, line["result"]) == (0, "trained"), project.said()
    _assert_trained_once(project)
    assert any(name.startswith("0002") for name in project.checkpoints())
    _assert_no_secret(project)


@pytest.mark.faults
@pytest.mark.ray
@pytest.mark.timeout(1200)
def test_a_run_that_is_refused_says_so(project: Project):
    """Catches a wrong key or bucket that ends in a traceback, or with the key in it."""
    secret = f"pl/anted+{uuid.uuid4().hex}"
    text = project.config.read_text()
    for place, code, words, environment in (
        (project.root, 1, "check the credentials", {"AWS_SECRET_ACCESS_KEY": secret}),
        (f"s3://key:{secret}@bucket/root", 2, "credentials in it", {}),
        ("s3://no-such-bucket/root", 2, "there is no bucket", {}),
    ):
        project.config.write_text(text.replace(project.root, place))
        found, line = project.ended(project.start("train", DAY, **environment), 120)
        assert (found, words in line["error"]) == (code, True), line
        said = project.said()
        assert "Traceback" not in said
        assert secret not in said
        assert quote(secret, safe="") not in said
