"""S3 that is away, slow, broken or forgetful: a real server behind a proxy that makes the faults."""

import contextlib
import functools
import http.client
import json
import os
import random
import re
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import date
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote, urlsplit

import pytest
import torch
import yaml
from torch import distributed as dist
from torch.distributed.checkpoint import load, save
from torch.distributed.checkpoint._fsspec_filesystem import FsspecReader, FsspecWriter
from torch.distributed.tensor import DeviceMesh, DTensor, Replicate, Shard, distribute_tensor

from features.encoding import Encoder
from features.errors import ConfigError
from features.synthetic.logs import SyntheticConfig, write_day
from pipeline import s3
from pipeline.datasource import read_unit
from pipeline.lineage.line import Line
from pipeline.s3 import PatientS3FileSystem
from pipeline.storage import Storage
from pipeline.units import list_days

MIB = 1 << 20


# --- The proxy ---


@dataclass
class Request:
    """A request that came by.

    Args:
        method: Of HTTP.
        path: Decoded, with the query.
        asked: Bytes of the object that were asked for, or sent.
    """

    method: str
    path: str
    asked: int = 0


Fault = Callable[[Request], str | None]


class Proxy:
    """Passes requests to the server behind it, except as `fault` says of each.

    A fault is `reset` (before the request is passed on), `hang` (until the fault is lifted, then on with it), a status
    (in XML; `html-502` as a load balancer says it), `lose` (carried out, the answer lost), `cut` (half the body), or
    `slow` (carried out at once, answered after 2 s).
    """

    def __init__(self, upstream: str) -> None:
        self.upstream = upstream
        self.fault: Fault = lambda _: None
        self.requests: list[Request] = []
        self._lift = threading.Event()
        self._server: ThreadingHTTPServer | None = None
        self._open: set[socket.socket] = set()
        self.port = 0
        self.start()

    def start(self) -> None:
        """Listen, on the same port as before."""
        handler = type("Handler", (_Handler,), {"proxy": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", self.port), handler)
        self._server.daemon_threads = True
        self.port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def stop(self) -> None:
        """Refuse connections, and reset those there are."""
        assert self._server is not None
        self._server.shutdown()
        self._server.server_close()
        for connection in list(self._open):
            _reset(connection)

    @contextlib.contextmanager
    def failing(self, fault: Fault) -> Iterator[None]:
        """A fault for a while."""
        self._lift.clear()
        self.fault = fault
        try:
            yield
        finally:
            self.fault = lambda _: None
            self._lift.set()

    @contextlib.contextmanager
    def away(self, kind: str) -> Iterator[None]:
        """An outage of a kind."""
        if kind != "refused":
            with self.failing(lambda _: kind):
                yield
            return
        self.stop()
        try:
            yield
        finally:
            self.start()


def _reset(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        connection.shutdown(socket.SHUT_RDWR)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    proxy: Proxy

    def setup(self) -> None:
        super().setup()
        self.proxy._open.add(self.connection)

    def finish(self) -> None:
        self.proxy._open.discard(self.connection)
        with contextlib.suppress(OSError):
            super().finish()

    def handle_expect_100(self) -> bool:
        return True  # whoever waits for it sends the body after a second anyway; a fault comes first

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def handle_one_request(self) -> None:
        with contextlib.suppress(OSError, http.client.HTTPException):
            super().handle_one_request()
            return
        self.close_connection = True

    def _serve(self) -> None:
        if self.headers.get("Expect"):
            self.send_response_only(100)
            self.end_headers()
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        request = Request(self.command, unquote(self.path), len(body))
        self.proxy.requests.append(request)
        fault = self.proxy.fault(request)
        if fault == "reset":
            self._break()
        elif fault and (refusal := re.fullmatch(r"(html-)?(\d+)", fault)):
            self._answer(int(refusal[2]), _page(refusal[1], int(refusal[2])), {"Content-Type": "text/plain"})
        else:
            self._pass_on(request, body, fault)

    do_GET = do_PUT = do_HEAD = do_POST = do_DELETE = _serve  # noqa: N815 - http.server's names

    def _pass_on(self, request: Request, body: bytes, fault: str | None) -> None:
        if fault == "hang":
            self.proxy._lift.wait()
        status, answer, headers = self._upstream(body)
        if self.command == "GET":
            request.asked = len(answer)
        if fault == "slow":
            time.sleep(2)
        if fault == "lose":
            self._break()
        else:
            self._answer(status, answer, headers, cut=fault == "cut")

    def _upstream(self, body: bytes) -> tuple[int, bytes, dict[str, str]]:
        connection = http.client.HTTPConnection(urlsplit(self.proxy.upstream).netloc, timeout=60)
        headers = {name: value for name, value in self.headers.items() if name not in ("Expect", "Connection")}
        connection.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
        for name, value in headers.items():
            connection.putheader(name, value)
        connection.endheaders(body)
        answer = connection.getresponse()
        data = answer.read()
        connection.close()
        hop = ("connection", "transfer-encoding", "content-length", "date", "server")
        kept = {name: value for name, value in answer.getheaders() if name.lower() not in hop}
        length = answer.getheader("Content-Length") if self.command == "HEAD" else None
        return answer.status, data, kept | {"Content-Length": length or str(len(data))}

    def _answer(self, status: int, body: bytes, headers: dict[str, str], cut: bool = False) -> None:
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(body))} | headers).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD" and status not in (204, 304):
            self.wfile.write(body[: len(body) // 2] if cut else body)
        if cut:
            self.wfile.flush()
            self._break()

    def _break(self) -> None:
        _reset(self.connection)
        self.close_connection = True


def _page(html: str | None, status: int) -> bytes:
    if html:
        return b"<html><body><h1>Bad gateway</h1>"
    code = {409: "ConditionalRequestConflict"}.get(status, "InternalError")
    return f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>We broke</Message></Error>".encode()


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
    PatientS3FileSystem._outage.end()
    proxy.stop()


@pytest.fixture
def storage(proxy: Proxy, s3_root: str) -> Storage:
    return Storage(s3_root).under(f"s3-{uuid.uuid4().hex}")


# --- Every operation ---


def _write_large(storage: Storage) -> bytes:
    """In parts, as DCP writes a rank's shards."""
    with storage.filesystem.open(storage.path("large"), "wb", block_size=5 * MIB) as file:
        for part in (b"1", b"2", b"3"):
            file.write(part * (4 * MIB))
    return storage.read("large")


def _swap(storage: Storage) -> tuple[bool, bool]:
    found = storage.read_versioned("swapped")
    assert found is not None
    return storage.replace("swapped", b"2", found[1]), storage.replace("swapped", b"3", found[1])


def _read_opened(storage: Storage) -> bytes:
    with storage.open_read("there") as file:
        file.seek(2)
        return file.read()


def _copy(storage: Storage) -> bytes:
    storage.filesystem.rename(storage.path("tmp"), storage.path("renamed"))  # as DCP does with its metadata
    return storage.read("renamed")


def _remove(storage: Storage) -> list[bool]:
    storage.remove("old")
    return [storage.exists(name) for name in ("old/1", "old/deep/2")]


Operation = Callable[[Storage], Any]
OPERATIONS: dict[str, tuple[Operation, Any]] = {
    "read": (lambda storage: storage.read("there"), b"there"),
    "read nothing": (lambda storage: storage.read_versioned("nothing"), None),
    "open_read": (_read_opened, b"ere"),
    "write": (lambda storage: (storage.write("written", b"1"), storage.read("written"))[1], b"1"),
    "write in parts": (_write_large, b"1" * (4 * MIB) + b"2" * (4 * MIB) + b"3" * (4 * MIB)),
    "create": (lambda storage: (storage.create("new", b"1"), storage.create("there", b"1")), (True, False)),
    "replace": (_swap, (True, False)),
    "names": (lambda storage: (storage.names("folder"), storage.names("none")), (["1", "2"], [])),
    "exists": (lambda storage: tuple(map(storage.exists, ("there", "folder", "none", ""))), (True, True, False, True)),
    "exists bucket": (lambda storage: Storage("s3://bucket").exists(), True),
    "remove": (_remove, [False, False]),
    "rename": (_copy, b"1"),
}


@pytest.fixture
def furnished(storage: Storage) -> Storage:
    """What the operations work on."""
    for name in ("there", "swapped", "folder/1", "folder/2", "old/1", "old/deep/2", "tmp"):
        storage.write(name, name.encode() if name == "there" else b"1")
    return storage


def _all_at_once(storage: Storage) -> dict[str, Any]:
    """The result, or error, of every operation, run in threads; a dict of futures' results."""
    with ThreadPoolExecutor(len(OPERATIONS)) as pool:
        futures = {name: pool.submit(operation, storage) for name, (operation, _) in OPERATIONS.items()}
    return {name: future.exception() or future.result() for name, future in futures.items()}


def _assert_right(results: dict[str, Any]) -> None:
    wrong = {name: str(found)[:200] for name, found in results.items() if found != OPERATIONS[name][1]}
    assert not wrong


@pytest.mark.parametrize("kind", ["refused", "reset", "hang", "500", "503", "html-502"])
def test_an_outage_is_sat_out(furnished: Storage, proxy: Proxy, kind: str, caplog: pytest.LogCaptureFixture):
    """Catches an operation that fails, or that takes an outage for an absent file, while the server is away for 4 s."""
    with ThreadPoolExecutor(1) as pool:
        with proxy.away(kind):
            running = pool.submit(_all_at_once, furnished)
            time.sleep(4)
            assert not running.done()
        _assert_right(running.result())
    lines = [record.getMessage() for record in caplog.records if record.name == s3.logger.name]
    expected = [] if kind == "hang" else ["does not serve", "serves again"]  # what hangs is no failure yet
    assert len(lines) == len(expected), lines  # one line when the waiting begins, not one for each request
    assert all(words in line for words, line in zip(expected, lines, strict=True)), lines


def test_without_waiting_every_operation_fails(furnished: Storage, proxy: Proxy, monkeypatch: pytest.MonkeyPatch):
    """The negative control; and catches an absent server that is taken for an absent file, or an empty folder."""
    monkeypatch.setattr(s3, "WAIT_S", 0.0)
    for kind in ("refused", "500"):
        with proxy.away(kind):
            for name, found in _all_at_once(furnished).items():
                assert isinstance(found, ConnectionError), (name, found)
                assert re.match(r"s3://bucket/.*: S3 at 127.0.0.1:\d+ has not served for \d+ s \(", str(found)), found


@pytest.mark.parametrize("fault", ["500", "reset", "cut", "lose"])
def test_a_share_of_requests_fails(furnished: Storage, proxy: Proxy, fault: str):
    """Catches a failure that is not tried again, a body that is not read again, and a put that does not know itself."""
    dice = random.Random(1)
    with proxy.failing(lambda _: fault if dice.random() < 0.4 else None):
        for name, (operation, expected) in OPERATIONS.items():
            assert operation(furnished) == expected, name


def test_slow_answers(furnished: Storage, proxy: Proxy, monkeypatch: pytest.MonkeyPatch):
    """Catches an answer that is given up and then wrong: what the slow server did meanwhile was taken for another's."""
    monkeypatch.setattr(PatientS3FileSystem, "read_timeout", 1)
    PatientS3FileSystem.clear_instance_cache()
    patient = Storage(furnished.url)
    once: set[str] = set()

    def first(request: Request) -> str | None:
        line = f"{request.method} {request.path}"
        seen = line in once
        once.add(line)
        return None if seen else "slow"

    with proxy.failing(first):
        _assert_right(_all_at_once(patient))


@pytest.mark.faults
def test_a_stopped_server_is_sat_out(furnished: Storage):
    """Catches the same with the real thing: SIGSTOP of the server for 20 s, and for longer than a read's timeout."""
    for seconds in (20, 40):
        with ThreadPoolExecutor(1) as pool:
            with _stopped_server():
                running = pool.submit(_all_at_once, furnished)
                time.sleep(seconds)
                assert not running.done()
            _assert_right(running.result())
        for name, data in (("old/1", b"1"), ("old/deep/2", b"1"), ("tmp", b"1"), ("swapped", b"1")):
            furnished.write(name, data)
        furnished.remove("new")


@contextlib.contextmanager
def _stopped_server() -> Iterator[None]:
    pid = _server_pid()
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def _server_pid() -> int:
    """The one child of this process that is the S3 server."""
    children = Path(f"/proc/{os.getpid()}/task").glob("*/children")
    pids = [int(pid) for children_of in children for pid in children_of.read_text().split()]
    (found,) = (pid for pid in pids if b"weed" in Path(f"/proc/{pid}/cmdline").read_bytes())
    return found


# --- Giving up, and what is not waited for ---


def test_one_outage_is_waited_for_once(furnished: Storage, proxy: Proxy, monkeypatch: pytest.MonkeyPatch):
    """Catches a process that waits anew for each step of its way out, or that never recovers after it gave up."""
    monkeypatch.setattr(s3, "WAIT_S", 3.0)
    with ThreadPoolExecutor(1) as pool:
        with proxy.away("refused"):
            started = time.monotonic()
            with pytest.raises(ConnectionError, match=r"^s3://bucket/.*/written: S3 at .* run the same command again$"):
                furnished.write("written", b"1")
            waited = time.monotonic() - started
            for operation in (lambda: furnished.remove("old"), lambda: _write_large(furnished)):
                with pytest.raises(ConnectionError):
                    operation()
            assert 3 <= waited < 20
            assert time.monotonic() - started - waited < 5  # two steps that wait anew take 6 s
            time.sleep(3.1)  # after which it may well be another outage
            running = pool.submit(furnished.read, "there")
            time.sleep(0.5)
        assert running.result() == b"there"
    _assert_right(_all_at_once(furnished))


def test_one_object_that_never_answers(furnished: Storage, proxy: Proxy, monkeypatch: pytest.MonkeyPatch):
    """Catches a request that is tried for ever, because others succeed meanwhile."""
    monkeypatch.setattr(s3, "WAIT_S", 2.0)
    done = threading.Event()

    def read_others() -> None:
        while not done.wait(0.05):
            furnished.read("swapped")

    with ThreadPoolExecutor(1) as pool, proxy.failing(lambda r: "503" if "/there" in r.path else None):
        others = pool.submit(read_others)
        started = time.monotonic()
        try:
            with pytest.raises(ConnectionError, match="InternalError"):
                furnished.read("there")
        finally:
            done.set()
        others.result()
        assert time.monotonic() - started < 20


@pytest.mark.parametrize("wrong", ["secret", "key", "none", "bucket"])
def test_what_is_refused_fails_at_once(
    storage: Storage, wrong: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    """Catches a wrong key, or bucket, that is waited for, told in a riddle or many lines, or with the secret."""
    planted = f"pl/anted+{uuid.uuid4().hex}"
    if wrong == "none":
        monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nowhere")
        monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
        monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    elif wrong != "bucket":
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", planted)
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "access" if wrong == "secret" else "nobody")
    PatientS3FileSystem.clear_instance_cache()
    refused = Storage("s3://no-such-bucket/root" if wrong == "bucket" else storage.url)
    words = {"none": "AWS_ACCESS_KEY_ID", "bucket": "there is no bucket 'no-such-bucket'"}.get(wrong, "credentials")
    operations = [lambda: refused.read("file"), lambda: refused.names("folder"), lambda: refused.exists("file")]
    operations += [refused.exists, lambda: refused.remove("folder"), lambda: refused.read_versioned("file")]
    if wrong != "bucket":  # this server makes a bucket for whoever may make one
        operations += [lambda: refused.write("file", b""), lambda: refused.create("file", b"")]
    started = time.monotonic()
    for operation in operations:
        with pytest.raises((PermissionError, ConfigError)) as caught:
            operation()
        text = str(caught.value)
        assert re.match(r"s3://[\w-]+/", text), text
        assert words in text
        assert "\n" not in text
        told: BaseException | None = caught.value
        while told is not None:
            assert planted not in str(told)
            told = told.__cause__
    assert time.monotonic() - started < 20  # it took some seconds on a machine with much else to do
    assert not caplog.records


def test_a_misspelt_bucket_is_not_made(proxy: Proxy):
    """Catches a checkpoint that goes where nobody looks: s3fs makes a bucket when torch asks for a folder in it."""
    misspelt = Storage("s3://buckett/root")
    misspelt.filesystem.makedirs(misspelt.path("checkpoint"), exist_ok=True)
    with pytest.raises(ConfigError, match="there is no bucket 'buckett'"):
        misspelt.names()


def test_a_file_that_cannot_be_deleted(furnished: Storage, proxy: Proxy, monkeypatch: pytest.MonkeyPatch):
    """Catches a removal that reports success: S3 answers 200 and lists what it refused, which s3fs passes over."""
    send = _Handler._upstream
    refusal = "AccessDenied"

    def refuse(handler: _Handler, body: bytes) -> tuple[int, bytes, dict[str, str]]:
        if handler.command != "POST" or "delete" not in handler.path or not refusal:
            return send(handler, body)
        entry = f"<Error><Key>k</Key><Code>{refusal}</Code><Message>no</Message></Error>"
        answer = f"<?xml version='1.0'?><DeleteResult>{entry}</DeleteResult>".encode()
        return 200, answer, {"Content-Type": "application/xml"}

    monkeypatch.setattr(_Handler, "_upstream", refuse)
    with pytest.raises(PermissionError, match="refuses delete_objects"):
        furnished.remove("old")
    refusal = "SlowDown"
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(furnished.remove, "old")
        time.sleep(0.5)
        refusal = ""
        running.result()
    assert not furnished.exists("old/1")


# --- Answers that were lost ---


def _of_the_first(fault: str, method: str, words: str) -> Fault:
    """A fault of the first request with a method whose path has the words."""
    left = [fault]
    return lambda r: left.pop() if left and r.method == method and words in r.path else None


def test_a_put_whose_answer_is_lost_knows_itself(storage: Storage, proxy: Proxy):
    """Catches a winner that takes itself for a loser: the number, or LATEST, is taken and nobody has it."""
    with proxy.failing(_of_the_first("lose", "PUT", "/attempt")):
        assert storage.create("attempt", b"1")
    assert not storage.create("attempt", b"1")  # the same content does not make it ours
    found = storage.read_versioned("attempt")
    assert found is not None
    with proxy.failing(_of_the_first("lose", "PUT", "/attempt")):
        assert storage.replace("attempt", b"2", found[1])
    assert not storage.replace("attempt", b"3", found[1])
    assert storage.read("attempt") == b"2"


def test_a_conflict_is_not_decided_yet(storage: Storage, proxy: Proxy):
    """Catches a race that nobody wins: AWS answers 409 while another put of the key, perhaps our own, is under way."""
    with proxy.failing(_of_the_first("409", "PUT", "/attempt")):
        assert storage.create("attempt", b"1")
    with proxy.failing(_of_the_first("409", "PUT", "/attempt")):
        assert not storage.create("attempt", b"2")


def test_of_equal_racers_one_wins(storage: Storage, proxy: Proxy, server: str, monkeypatch: pytest.MonkeyPatch):
    """Catches a lost put that takes another's file for its own because the contents are equal: two have one number."""
    storage.write("ready", b"")  # which connects it to the proxy
    monkeypatch.setenv("AWS_ENDPOINT_URL", server)
    other = Storage(storage.url)
    other.filesystem = PatientS3FileSystem(skip_instance_cache=True)
    took: list[bool] = []

    def overtake(request: Request) -> str | None:
        if took or request.method != "PUT" or "/attempt" not in request.path:
            return None
        took.append(other.create("attempt", b"1"))
        return "reset"

    with proxy.failing(overtake):
        assert [storage.create("attempt", b"1"), *took] == [False, True]


def test_a_multi_part_write_whose_answer_is_lost(storage: Storage, proxy: Proxy):
    """Catches a checkpoint that fails because its file is there: completing an upload twice says that there is none."""
    unknown = b"<?xml version='1.0'?><Error><Code>NoSuchUpload</Code><Message>gone</Message></Error>"
    completions: list[str] = []

    def complete_twice(request: Request) -> str | None:
        if request.method != "POST" or "uploadId=" not in request.path:
            return None
        completions.append(request.path)
        return "lose" if len(completions) == 1 else None

    send = _Handler._upstream

    def forget(handler: _Handler, body: bytes) -> tuple[int, bytes, dict[str, str]]:
        if len(completions) > 1 and handler.command == "POST":  # this server remembers for a while, others do not
            return 404, unknown, {"Content-Type": "application/xml"}
        return send(handler, body)

    with pytest.MonkeyPatch.context() as patch, proxy.failing(complete_twice):
        patch.setattr(_Handler, "_upstream", forget)
        assert _write_large(storage) == OPERATIONS["write in parts"][1]
        assert len(completions) == 2
        with pytest.raises(FileNotFoundError):  # which is no success where nothing was completed before
            storage.filesystem.call_s3(
                "complete_multipart_upload", Bucket="bucket", Key="x", UploadId="y", MultipartUpload={"Parts": []}
            )


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
        deadline = time.monotonic() + 240
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
    manifest = line.read_manifest(latest["checkpoint"])
    assert manifest is not None
    assert manifest.content["complete"]
    assert manifest.content["rows"] == ROWS
    assert sum(count for count, _ in manifest.content["cursor"]["units"].values()) == ROWS


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
    with _stopped_server():
        time.sleep(20)
        assert running.poll() is None, project.said()
    code, line = project.ended(running, 400)
    assert (code, line["result"], line["rows"]) == (0, "trained", ROWS), project.said()
    _assert_trained_once(project)
    code, line = project.ended(project.start("evaluate", NEXT), 300)
    assert code == 0, project.said()
    assert line["tasks"][0]["model"]["rows"] == ROWS
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
