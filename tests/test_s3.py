"""Every operation on an S3 that is away, slow, broken or forgetful."""

import random
import re
import threading
import time
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from s3_proxy import Fault, Handler, Proxy, Request, stopped_server

from features.errors import ConfigError
from pipeline.storage import s3
from pipeline.storage.files import Storage
from pipeline.storage.s3 import PatientS3FileSystem

MIB = 1 << 20


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
    """Fill the storage with the files that the operations work on."""
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


LARGE = 32 * MIB  # more than sockets hold back


def test_a_body_goes_on_where_it_broke_off(storage: Storage, proxy: Proxy):
    """Catches a shard that is read from its first byte again whenever a connection breaks."""
    data = random.Random(3).randbytes(LARGE)
    storage.write("shard", data)
    proxy.requests.clear()
    with proxy.failing(_of_the_first("cut", "GET", "/shard")):
        assert storage.read("shard") == data
    asked = [request.asked for request in proxy.requests if request.method == "GET"]
    assert asked[0] == LARGE
    assert len(asked) == 2
    assert asked[1] < LARGE - 2 * MIB
    proxy.requests.clear()
    with proxy.failing(_of_the_first("cut", "GET", "/shard")):
        assert storage.read_range("shard", 5, LARGE - 7) == data[5:-7]
    assert [request.asked for request in proxy.requests][1] < LARGE - 2 * MIB


def test_a_body_is_of_one_object(storage: Storage, proxy: Proxy, server: str, monkeypatch: pytest.MonkeyPatch):
    """Catches the first bytes of one object and the last of the one that replaced it meanwhile."""
    old, new = b"1" * LARGE, b"2" * LARGE
    storage.write("shard", old)
    monkeypatch.setenv("AWS_ENDPOINT_URL", server)
    other = Storage(storage.url)
    other.filesystem = PatientS3FileSystem(skip_instance_cache=True)
    gets: list[Request] = []

    def replace(request: Request) -> str | None:
        if request.method != "GET" or "/shard" not in request.path:
            return None
        gets.append(request)
        if len(gets) == 2:
            other.write("shard", new)
        return "cut" if len(gets) == 1 else None

    with proxy.failing(replace):
        assert storage.read("shard") == new
    assert len(gets) == 3


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
            with stopped_server():
                running = pool.submit(_all_at_once, furnished)
                time.sleep(seconds)
                assert not running.done()
            _assert_right(running.result())
        for name, data in (("old/1", b"1"), ("old/deep/2", b"1"), ("tmp", b"1"), ("swapped", b"1")):
            furnished.write(name, data)
        furnished.remove("new")


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
    send = Handler.ask_upstream
    refusal = "AccessDenied"

    def refuse(handler: Handler, body: bytes) -> tuple[int, bytes, dict[str, str]]:
        if handler.command != "POST" or "delete" not in handler.path or not refusal:
            return send(handler, body)
        entry = f"<Error><Key>k</Key><Code>{refusal}</Code><Message>no</Message></Error>"
        answer = f"<?xml version='1.0'?><DeleteResult>{entry}</DeleteResult>".encode()
        return 200, answer, {"Content-Type": "application/xml"}

    monkeypatch.setattr(Handler, "ask_upstream", refuse)
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

    send = Handler.ask_upstream

    def forget(handler: Handler, body: bytes) -> tuple[int, bytes, dict[str, str]]:
        if len(completions) > 1 and handler.command == "POST":  # this server remembers for a while, others do not
            return 404, unknown, {"Content-Type": "application/xml"}
        return send(handler, body)

    with pytest.MonkeyPatch.context() as patch, proxy.failing(complete_twice):
        patch.setattr(Handler, "ask_upstream", forget)
        assert _write_large(storage) == OPERATIONS["write in parts"][1]
        assert len(completions) == 2
        with pytest.raises(FileNotFoundError):  # which is no success where nothing was completed before
            storage.filesystem.call_s3(
                "complete_multipart_upload", Bucket="bucket", Key="x", UploadId="y", MultipartUpload={"Parts": []}
            )
