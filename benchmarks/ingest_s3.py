"""CPU and wall time of reading row groups from S3 by our reader, over pyarrow's own reading of the same columns."""

import contextlib
import os
import shutil
import socket
import statistics
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow.fs
import pyarrow.parquet as pq

from benchmarks.workload import DAY, load, project
from pipeline.ingest.datasource import read_unit
from pipeline.ingest.units import list_days
from pipeline.storage.files import Storage

_ROWS, _QUICK_ROWS = 2**20, 2**18
_ROW_GROUP_ROWS = 65_536
_KEYS = {"AWS_ACCESS_KEY_ID": "benchmark", "AWS_SECRET_ACCESS_KEY": uuid.uuid4().hex}


def run(quick: bool) -> dict[str, Any]:
    """Read every row group of the log from a SeaweedFS server of our own, in turns.

    Both read one row group after the other in one process, with the columns of the schema, and check the pages.
    pyarrow's is `pyarrow.fs.S3FileSystem` with `pre_buffer`. The server's time is in the wall time alone.

    Args:
        quick: A quarter of the rows, 3 turns.
    """
    rows, turns = (_QUICK_ROWS, 3) if quick else (_ROWS, 5)
    with project(rows, _ROW_GROUP_ROWS, 20_000) as folder, _server(folder) as bucket:
        _, encoder, _ = load(folder)
        logs = Storage(f"{bucket}/logs")
        for file in sorted((folder / "logs").rglob("*.parquet")):
            logs.write(str(file.relative_to(folder / "logs")), file.read_bytes())
        (day,) = list_days(logs, [DAY.isoformat()], _ROW_GROUP_ROWS)
        columns = encoder.columns
        ways: dict[str, Callable[[], int]] = {
            "ours": lambda: sum(len(read_unit(logs, unit, columns)[columns[0]]) for unit in day.units),
            "pyarrow": lambda: _by_pyarrow(logs, [(unit.file, unit.row_group) for unit in day.units], columns),
        }
        taken: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
        for turn in range(turns + 1):
            for name, way in ways.items():
                began = time.process_time(), time.perf_counter()
                assert way() == rows, "rows were lost"
                if turn:  # the first connects
                    taken[name].append((time.process_time() - began[0], time.perf_counter() - began[1]))
    cpu, wall = ({name: statistics.median(one[at] for one in found) for name, found in taken.items()} for at in (0, 1))
    return {
        "rows": rows,
        "units": len(day.units),
        "cpu_s": cpu,
        "wall_s": wall,
        "cpu_over_pyarrow": cpu["ours"] / cpu["pyarrow"],
        "wall_over_pyarrow": wall["ours"] / wall["pyarrow"],
    }


def _by_pyarrow(logs: Storage, groups: list[tuple[str, int]], columns: list[str]) -> int:
    endpoint = os.environ["AWS_ENDPOINT_URL"].removeprefix("http://")
    filesystem = pyarrow.fs.S3FileSystem(
        access_key=_KEYS["AWS_ACCESS_KEY_ID"],
        secret_key=_KEYS["AWS_SECRET_ACCESS_KEY"],
        endpoint_override=endpoint,
        scheme="http",
    )
    rows = 0
    for file, row_group in groups:
        path = filesystem.open_input_file(logs.path(file))
        with pq.ParquetFile(path, pre_buffer=True, page_checksum_verification=True) as opened:
            rows += opened.read_row_group(row_group, columns=columns, use_threads=False).num_rows
    return rows


@contextlib.contextmanager
def _server(folder: Path) -> Iterator[str]:
    """Start a SeaweedFS server with a bucket, and let the environment lead to it; end it at the end."""
    weed = shutil.which("weed", path=str(Path(sys.executable).parent))
    assert weed is not None, "SeaweedFS is not installed: make test installs it"
    names = ("master", "volume", "filer", "s3")
    ports = dict(zip([f"{name}.port{kind}" for name in names for kind in ("", ".grpc")], _free_ports(8), strict=True))
    identity = '{"identities": [{"name": "benchmark", "credentials": [{"accessKey": "%s", "secretKey": "%s"}], '
    identity = identity % tuple(_KEYS.values()) + '"actions": ["Admin", "Read", "Write", "List", "Tagging"]}]}'
    (folder / "s3.json").write_text(identity)
    (folder / "weed").mkdir()
    options = {"dir": folder / "weed", "ip": "127.0.0.1", "ip.bind": "127.0.0.1", "s3.config": folder / "s3.json"}
    options |= {"master.telemetry": "false", "s3.port.iceberg": 0, "s3.port.lance": 0, "volume.max": 64}
    options |= {"master.volumeSizeLimitMB": 64}
    os.environ |= _KEYS | {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{ports['s3.port']}"}
    command = [weed, "server", "-s3", *(f"-{name}={value}" for name, value in (options | ports).items())]
    with (folder / "weed.log").open("wb") as log:
        server = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
    try:
        _make_bucket(server)
        yield "s3://bucket"
    finally:
        server.kill()
        server.wait()
        for port in ports.values():
            for left in Path("/tmp").glob(f"seaweedfs-*-{port}.sock"):
                left.unlink()


def _free_ports(number: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(number)]
        for opened in sockets:
            opened.bind(("127.0.0.1", 0))
        return [opened.getsockname()[1] for opened in sockets]


def _make_bucket(server: "subprocess.Popen[bytes]") -> None:
    import s3fs

    deadline = time.monotonic() + 60
    while True:
        assert server.poll() is None, "the server has ended"
        try:
            filesystem = s3fs.S3FileSystem(skip_instance_cache=True)
            with contextlib.suppress(FileExistsError):
                filesystem.mkdir("bucket")
            return filesystem.pipe_file("bucket/ready", b"")  # there is a volume to write to
        except OSError:
            assert time.monotonic() < deadline, "the server does not start"
            time.sleep(0.2)
