"""Storage on a local disk and on a real S3 server: whole files, exclusive creation, compare-and-swap."""

import os
import pickle
import stat
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier
from typing import Any

import pytest

from features.errors import ConfigError
from pipeline.storage.files import Storage

_RACERS = 8


@pytest.fixture(params=["local", "s3"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    root = str(tmp_path) if request.param == "local" else request.getfixturevalue("s3_root")
    return Storage(root).under(f"storage-{uuid.uuid4().hex}")


def _elsewhere(storage: Storage) -> Storage:
    """The same files as another process sees them, which shares no cache with this one."""
    other = pickle.loads(pickle.dumps(storage))
    other.filesystem = type(storage.filesystem)(skip_instance_cache=True)
    return other


def _race(storage: Storage, work: Callable[[Storage, int], Any]) -> list[Any]:
    """Return the results of 8 threads that start at once."""
    start = Barrier(_RACERS)

    def run(racer: int) -> Any:
        start.wait()
        return work(storage, racer)

    with ThreadPoolExecutor(_RACERS) as pool:
        return list(pool.map(run, range(_RACERS)))


# --- The contract, on both ---


def test_what_is_written_is_read(storage: Storage):
    """A file that is written twice keeps its older half, or a part of a longer older one."""
    storage.write("a/b/file", b"a longer first version")
    storage.write("a/b/file", b"second")
    storage.write("a/empty", b"")
    assert storage.read("a/b/file") == b"second"
    assert storage.read("a/empty") == b""
    with storage.open_read("a/b/file") as file:
        assert (file.read(3), file.read()) == (b"sec", b"ond")


def test_what_is_not_there(storage: Storage):
    """A missing file is an empty one, or the error of one file system is another one's."""
    storage.write("a/file", b"1")
    for name in ("nothing", "a/nothing", "no/folder/file"):
        with pytest.raises(FileNotFoundError):
            storage.read(name)
        assert storage.read_versioned(name) is None
        assert not storage.exists(name)
        assert storage.names(name) == []
    storage.remove("no/folder")


def test_names_are_those_directly_in_a_folder(storage: Storage):
    """Names come with their path, from deeper folders, or with the files that are just being written."""
    for name in ("b/2", "b/10", "b/c/3", "b/c/4", "a", "b/.writing-x", ".a.lock"):
        storage.write(name, b"1")
    assert storage.names() == ["a", "b"]
    assert storage.names("b") == ["10", "2", "c"]
    assert storage.under("b").names("c") == storage.under("b/c").names() == ["3", "4"]
    assert storage.exists("b/c")
    assert storage.exists("b/c/3")
    assert not storage.exists("b/c/5")


def test_others_are_seen_at_once(storage: Storage):
    """A listing or a size that was remembered hides what another process has written since."""
    other = _elsewhere(storage)
    other.write("a/1", b"1")
    assert (storage.names("a"), storage.exists("a/2"), storage.read("a/1")) == (["1"], False, b"1")
    other.write("a/2", b"2")
    other.write("a/1", b"longer")
    assert (storage.names("a"), storage.exists("a/2")) == (["1", "2"], True)
    with storage.open_read("a/1") as file:
        assert file.read() == b"longer"
    other.remove("a")
    assert storage.names("a") == []  # SeaweedFS lists an empty folder in itself, as S3 does with a folder's marker


def test_remove_takes_all_of_a_folder_and_nothing_else(storage: Storage):
    """A folder whose name begins alike goes with it, or what another process added stays."""
    for name in ("run/1", "run/deep/er/2", "run-2/1", "file"):
        storage.write(name, b"1")
    storage.names("run")
    _elsewhere(storage).write("run/added", b"1")
    storage.remove("run")
    assert not any(storage.exists(name) for name in ("run/1", "run/deep/er/2", "run/added"))
    assert storage.names("run-2") == ["1"]
    assert storage.read("file") == b"1"


def test_create_refuses_what_is_there(storage: Storage):
    """The second attempt takes the first one's number."""
    assert storage.create("attempts/1", b"first")
    assert not storage.create("attempts/1", b"second")
    assert storage.read("attempts/1") == b"first"
    assert storage.create("attempts/2", b"")
    assert not storage.create("attempts/2", b"second")


def test_of_racing_creators_one_wins(storage: Storage):
    """Two attempts get one number; the negative control, a look and then a write, has several winners."""
    won = _race(storage, lambda own, racer: own.create("file", b"%d" % racer))
    assert won.count(True) == 1
    assert storage.read("file") == b"%d" % won.index(True)

    def look_and_write(own: Storage, racer: int) -> bool:
        free = not own.exists("control")
        time.sleep(0.05)
        own.write("control", b"%d" % racer)
        return free

    assert _race(storage, look_and_write).count(True) > 1
    assert all(name.isalnum() for name in storage.names())  # no temporary is left


def test_replace_compares_and_swaps(storage: Storage):
    """LATEST is moved although somebody has moved it since it was read."""
    assert storage.replace("LATEST", b"1", None)
    assert not storage.replace("LATEST", b"x", None)
    found = storage.read_versioned("LATEST")
    assert found is not None
    data, version = found
    assert data == b"1"
    assert storage.replace("LATEST", b"2", version)
    assert not storage.replace("LATEST", b"3", version)
    assert storage.read("LATEST") == b"2"
    assert not storage.replace("never", b"4", version)
    storage.remove("LATEST")
    assert not storage.replace("LATEST", b"5", version)
    assert storage.read_versioned("LATEST") is None


def test_of_racing_writers_one_wins_each_version(storage: Storage):
    """Increments are lost; the negative control, a read and then a write, loses some."""
    storage.write("counter", b"0")
    storage.write("control", b"0")

    def increment(own: Storage, _: int) -> int:
        while True:
            found = own.read_versioned("counter")
            assert found is not None
            if own.replace("counter", b"%d" % (int(found[0]) + 1), found[1]):
                return int(found[0])

    def carelessly(own: Storage, _: int) -> None:
        value = int(own.read("control"))
        time.sleep(0.05)
        own.write("control", b"%d" % (value + 1))

    assert sorted(_race(storage, increment)) == list(range(_RACERS))
    assert storage.read("counter") == b"%d" % _RACERS
    _race(storage, carelessly)
    assert int(storage.read("control")) < _RACERS


# --- The local disk ---


def test_a_crash_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A half-written manifest, or a temporary that is taken for a file."""
    storage = Storage(str(tmp_path))
    storage.write("manifest", b"old")
    found = storage.read_versioned("manifest")
    assert found is not None

    def crash(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", crash)
    for write in (lambda: storage.write("manifest", b"new"), lambda: storage.replace("manifest", b"new", found[1])):
        with pytest.raises(KeyboardInterrupt):
            write()
    monkeypatch.setattr(os, "link", crash)
    with pytest.raises(KeyboardInterrupt):
        storage.create("other", b"new")
    monkeypatch.undo()
    assert storage.read("manifest") == b"old"
    assert storage.names() == ["manifest"]
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".writing")] == []
    assert storage.replace("manifest", b"new", found[1])  # the lock of a crashed writer holds nobody up


def test_what_a_killed_writer_leaves_is_no_file(tmp_path: Path):
    """A process that is killed cannot remove its temporary, and the next one takes it for an attempt."""
    storage = Storage(str(tmp_path))
    storage.write("a/1", b"1")
    (tmp_path / "a" / ".writing-abc").write_bytes(b"half")
    assert storage.names("a") == ["1"]


_RACING_PROCESS = """
import sys, time
from pathlib import Path
from pipeline.storage.files import Storage
storage, racer = Storage(sys.argv[1]), sys.argv[2].encode()
storage.write(f"ready/{sys.argv[2]}", b"")
while not Path(sys.argv[1], "go").exists():
    time.sleep(.001)
created = [storage.create(f"created/{turn}", racer) for turn in range(20)]
for _ in range(20):
    while True:
        data, version = storage.read_versioned("counter")
        if storage.replace("counter", b"%d" % (int(data) + 1), version):
            break
print(sum(created))
"""


def test_racing_processes_on_a_local_disk(tmp_path: Path):
    """Catches a lock that holds between threads and not between processes."""
    storage = Storage(str(tmp_path))
    storage.write("counter", b"0")
    processes = [
        subprocess.Popen([sys.executable, "-c", _RACING_PROCESS, str(tmp_path), str(racer)], stdout=subprocess.PIPE)
        for racer in range(_RACERS)
    ]
    while len(storage.names("ready")) < _RACERS:
        assert all(process.poll() in (None, 0) for process in processes)
        time.sleep(0.01)
    storage.write("go", b"")
    created = [int(process.communicate()[0]) for process in processes]
    assert sum(created) == 20
    assert storage.read("counter") == b"%d" % (20 * _RACERS)


def test_a_storage_travels_to_another_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A worker of Ray starts elsewhere and looks for `runs/demo` below its own directory."""
    monkeypatch.chdir(tmp_path)
    storage = Storage("runs/demo/")
    storage.write("file", b"1")
    packed = pickle.dumps(storage)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert pickle.loads(packed).read("file") == b"1"
    assert storage.under("a").url == f"{tmp_path}/runs/demo/a"


class _Disk:
    """State that a power cut would leave: entries of folders, and files, as they were when last flushed."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._folders: dict[int, set[str]] = {}
        self._files: dict[int, int] = {}
        flush = os.fsync

        def fsync(descriptor: int) -> None:
            flush(descriptor)
            found = os.fstat(descriptor)
            if stat.S_ISDIR(found.st_mode):
                self._folders[found.st_ino] = set(os.listdir(descriptor))
            else:
                self._files[found.st_ino] = found.st_size

        monkeypatch.setattr(os, "fsync", fsync)

    def keeps(self, top: Path, name: str) -> bool:
        """Return True if a file below an old folder is there, whole, after a power cut."""
        place = top
        for part in Path(name).parts:
            if part not in self._folders.get(place.stat().st_ino, set()):
                return False
            place /= part
        found = place.stat()
        return self._files.get(found.st_ino) == found.st_size


def test_what_is_written_survives_a_power_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A manifest that was reported as written is gone with its folder, whose own entry nobody flushed."""
    disk, storage = _Disk(monkeypatch), Storage(str(tmp_path / "new" / "root"))
    storage.write("a/b/written", b"1")
    storage.create("c/d/created", b"1")
    storage.under("e/f").create("g/created", b"1")
    (tmp_path / "new" / "root" / "h" / "i").mkdir(parents=True)  # by another process, which has not come to flush it
    storage.write("h/i/written", b"1")
    storage.write("h/i/swapped", b"1")
    found = storage.read_versioned("h/i/swapped")
    assert found is not None
    assert storage.replace("h/i/swapped", b"22", found[1])
    names = ("a/b/written", "c/d/created", "e/f/g/created", "h/i/written", "h/i/swapped")
    assert [name for name in names if not disk.keeps(tmp_path, f"new/root/{name}")] == []


def test_sync_keeps_what_others_wrote(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A manifest survives a power cut and the tensors that it promises do not, since DCP makes its own folders."""
    disk, storage = _Disk(monkeypatch), Storage(str(tmp_path / "root"))
    folder = Path(storage.path("checkpoints/day/1"))
    folder.mkdir(parents=True)
    with (folder / "__0_0.distcp").open("wb") as file:
        file.write(b"1")
        file.flush()
        os.fsync(file.fileno())
    assert not disk.keeps(tmp_path, "root/checkpoints/day/1/__0_0.distcp")  # the negative control
    storage.sync("checkpoints/day/1")
    assert disk.keeps(tmp_path, "root/checkpoints/day/1/__0_0.distcp")


def test_replace_where_there_is_no_folder(tmp_path: Path):
    """A swap of a file whose folder is gone crashes where the race is lost."""
    assert not Storage(str(tmp_path)).replace("no/folder/LATEST", b"1", "00")


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("s3://AKIA:s3cr3t@bucket/x", "credentials in it"),
        ("s3://AKIA:s3cr/3t@bucket/x", "credentials in it"),
        ("s3://s3cr3t@bucket/x", "credentials in it"),
        ("s3://bucket/x?secret=s3cr3t", "options or patterns"),
        ("s3://bucket/x[1]", "options or patterns"),  # a removal would take it for a pattern
        ("s3:///x", "''"),
        ("s3://", "''"),
        ("s3://b/x", "'b'"),
        ("s3:/bucket/x", "'s3'"),
        ("s3:bucket/x", "'s3'"),
        ("s3a://bucket/x", "'s3a'"),
        ("S3://bucket/x", "'S3'"),
        ("https://key:s3cr3t@host/bucket", "'https'"),
        ("gs://bucket/x", "'gs'"),
        ("file:///tmp/x", "'file'"),
        ("simplecache::s3://bucket/x", "'simplecache'"),
    ],
)
def test_urls_that_are_refused(url: str, words: str):
    """A secret in a config, and from there in a log; or a misspelt url that makes a folder called `s3:`."""
    with pytest.raises(ConfigError, match=r"expected .*s3://bucket/prefix") as caught:
        Storage(url)
    text = str(caught.value)
    assert words in text
    assert "\n" not in text
    assert "s3cr" not in text


@pytest.mark.parametrize("name", ["a:b", "user@host", "what?", "x=1", "s3"])
def test_folders_that_look_like_urls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str):
    """A folder's name that is no url is refused as one, or read as a pattern."""
    monkeypatch.chdir(tmp_path)
    Storage(name).write("file", b"1")
    assert (tmp_path / name / "file").read_bytes() == b"1"
    Storage(name).remove("file")
    assert not (tmp_path / name / "file").exists()


# --- S3 ---


def test_an_error_is_not_taken_for_a_lost_race(s3_root: str):
    """s3fs gives a failed condition and a dozen real errors one number: an attempt would count up for ever."""
    with pytest.raises(OSError, match="bucket"):
        Storage("s3://-bucket-").create("file", b"1")  # no name for a bucket


def test_a_refused_key_is_an_error(s3_root: str):
    """Writes that are not allowed are lost silently."""
    wrong = Storage(s3_root)
    wrong.filesystem = type(wrong.filesystem)(key="access", secret="wrong")
    for write in (wrong.write, wrong.create):
        with pytest.raises(PermissionError):
            write("file", b"1")
    with pytest.raises(PermissionError):
        wrong.read("file")
