"""Saving: the power cut at every write, snapshots while training goes on, failures that are heard of, what is kept."""

import os
import shutil
import sys
import threading
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from faults import before_file, no_space
from records import manifest_of

from features.errors import DataError
from pipeline.checkpoint import write as writing
from pipeline.checkpoint.read import load_tensors
from pipeline.checkpoint.saver import Saver
from pipeline.checkpoint.write import write_checkpoint
from pipeline.config.checkpoint import CheckpointConfig
from pipeline.lineage.line import Line, LineLost
from pipeline.lineage.records import Manifest, Published

DAY = "2026-03-01"


def _manifest(step: int, attempt: str = "0001", *, complete: bool = False) -> Manifest | None:
    if dist.is_initialized() and dist.get_rank():
        return None
    return manifest_of(step=step, day=DAY, complete=complete, attempt=attempt)


def _name(step: int, attempt: str = "0001") -> str:
    return f"checkpoints/{DAY}/{attempt}/{step:010d}"


# --- The power is cut ---


class _Disk:
    """Watches a folder and keeps what a power cut would leave of it, before every operation on a file.

    Three disks for each moment: one that had written everything; one that had torn every file that was not flushed;
    and one that had written only what was flushed, entries of folders included.
    """

    active: "_Disk | None" = None

    def __init__(self, root: Path, states: Path) -> None:
        self.root, self.states = root, states
        self.count = 0
        self._contents: dict[int, bytes] = {}  # by inode, when it was flushed
        self._entries: dict[str, dict[str, int]] = {}  # by folder, when it was flushed: name and inode
        self._fsync = os.fsync

    def __enter__(self) -> "_Disk":
        if not hasattr(_Disk, "hooked"):
            _Disk.hooked = True
            sys.addaudithook(_Disk.on_event)
        for folder in [self.root, *(path for path in self.root.rglob("*") if path.is_dir())]:
            self._flush_folder(str(folder))
        for path in self.root.rglob("*"):
            if path.is_file():
                self._contents[path.stat().st_ino] = path.read_bytes()
        os.fsync, _Disk.active = self.flush, self
        return self

    def __exit__(self, *exc_info: object) -> None:
        _Disk.active, os.fsync = None, self._fsync
        self.keep()

    @staticmethod
    def on_event(event: str, arguments: tuple[Any, ...]) -> None:
        disk = _Disk.active
        if disk is None or event not in {"open", "os.rename", "os.link", "os.mkdir", "os.remove", "os.rmdir"}:
            return
        writes = event != "open" or any(sign in str(arguments[1]) for sign in "wax+") or arguments[2] & os.O_WRONLY
        if writes and str(arguments[0]).startswith(str(disk.root)):
            _Disk.active = None
            disk.keep()
            _Disk.active = disk

    def flush(self, descriptor: int) -> None:
        path = os.readlink(f"/proc/self/fd/{descriptor}")
        _Disk.active = None
        if os.path.isdir(path):
            self._flush_folder(path)
        else:
            with open(path, "rb") as file:
                self._contents[os.fstat(descriptor).st_ino] = file.read()
        self.keep()
        _Disk.active = self

    def _flush_folder(self, path: str) -> None:
        self._entries[path] = {entry.name: entry.inode() for entry in os.scandir(path)}

    def keep(self) -> None:
        """Keep the three disks of this moment."""
        folder = self.states / f"{self.count:04d}"
        self.count += 1
        shutil.copytree(self.root, folder / "whole")
        shutil.copytree(self.root, folder / "torn")
        for path in [path for path in (folder / "torn").rglob("*") if path.is_file()]:
            original = self.root / path.relative_to(folder / "torn")
            if self._contents.get(original.stat().st_ino) != original.read_bytes():
                path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        self._restore(str(self.root), folder / "flushed")

    def _restore(self, source: str, target: Path) -> None:
        target.mkdir(parents=True)
        for name, inode in self._entries.get(source, {}).items():
            if f"{source}/{name}" in self._entries or os.path.isdir(f"{source}/{name}"):
                self._restore(f"{source}/{name}", target / name)
            else:
                (target / name).write_bytes(self._contents.get(inode, b""))


def _save_and_publish(rank: int, num_ranks: int, root: str, states: str) -> int:
    """A checkpoint of step 10; then, watched, one of step 20 and its publication. Returns the states before that."""
    line = Line.of(root, "main")
    line.begin_attempt([DAY], "a", lambda: None)
    tensors = {"model": {"weight": torch.arange(1000.0)}}
    write_checkpoint(tensors, line.storage, _name(10), _manifest(10), dist.group.WORLD)
    _publish(line, 10)
    line.begin_attempt([DAY], "a", lambda: line.read_manifest(_name(10)))
    with _Disk(Path(root), Path(states)) as disk:
        write_checkpoint(tensors, line.storage, _name(20), _manifest(20, "0002", complete=True), dist.group.WORLD)
        saved = disk.count
        _publish(line, 20)
    return saved


def _publish(line: Line, step: int) -> None:
    line.publish(Published(day=DAY, generation=1, checkpoint=_name(step)), line.state().serial, "a")


def test_the_power_is_cut_at_every_write(run_ranks: Any, tmp_path: Path) -> None:
    """Catches a manifest that is on the disk before its files are, or a LATEST before its checkpoint."""
    root, states = tmp_path / "root", tmp_path / "states"
    (saved,) = run_ranks(partial(_save_and_publish, root=str(root), states=str(states)), 1)
    moments = sorted(states.iterdir())
    assert len(moments) > 10
    found = {}
    for kind in ("whole", "torn", "flushed"):
        found[kind] = []
        for moment in moments:
            line = Line.of(str(moment / kind), "main")
            newest, latest = line.newest(), line.latest()
            assert newest is not None
            assert latest is not None
            assert latest.checkpoint in (_name(10), newest.checkpoint)
            found[kind].append(newest.step)
        assert found[kind] == sorted(found[kind])  # the old one, then the new one
        assert found[kind][0] == 10
        assert found[kind][saved:] == [20] * len(found[kind][saved:]), "reported as saved, and lost"
    assert saved < len(moments)


def test_a_disk_that_flushed_nothing_loses_the_checkpoint(run_ranks: Any, tmp_path: Path) -> None:
    """The negative control: what was not flushed is seen to be lost, and what is half written to be torn."""
    root, states = tmp_path / "root", tmp_path / "states"
    (saved,) = run_ranks(partial(_save_unflushed, root=str(root), states=str(states)), 1)
    line = Line.of(str(states / f"{saved:04d}" / "flushed"), "main")
    assert line.newest() is None
    assert Line.of(str(states / f"{saved:04d}" / "whole"), "main").newest() is not None


def _save_unflushed(rank: int, num_ranks: int, root: str, states: str) -> int:
    line = Line.of(root, "main")
    line.begin_attempt([DAY], "a", lambda: None)
    with _Disk(Path(root), Path(states)) as disk:
        flush, os.fsync = os.fsync, lambda descriptor: None
        tensors = {"model": {"weight": torch.arange(1000.0)}}
        write_checkpoint(tensors, line.storage, _name(20), _manifest(20), dist.group.WORLD)
        os.fsync = flush
    return disk.count - 1


# --- In the background ---


def _tensors(value: float) -> dict[str, Any]:
    return {"model": {"weight": torch.full((1000,), value), "step": torch.tensor(value)}}


def _load(line: Line, name: str) -> dict[str, Any]:
    found = _tensors(-1.0)
    assert dist.group.WORLD is not None
    load_tensors(found, line.storage, name, dist.group.WORLD)
    return found


def _train_on_while_saving(rank: int, num_ranks: int, root: str) -> list[float]:
    """Change the tensors, in place, while they are being written; returns what the checkpoints hold."""
    line = Line.of(root, "main")
    saver = Saver(line, CheckpointConfig(keep=5), dist.new_group(backend="gloo"))
    tensors, held = _tensors(0.0), threading.Event()
    write = writing.save

    def save_slowly(*arguments: Any, **options: Any) -> None:
        held.wait(10)
        write(*arguments, **options)

    writing.save = save_slowly
    try:
        for step in (1, 2):
            for tensor in tensors["model"].values():
                tensor.fill_(step)
            if step == 2:
                held.set()
            saver.save(tensors, _name(step), _manifest(step))  # waits for the write before it
            for tensor in tensors["model"].values():
                tensor.fill_(99)  # training goes on
        saver.wait()
    finally:
        writing.save = write
    loaded = [_load(line, _name(step))["model"] for step in (1, 2)]
    return [float(tensor.max()) for found in loaded for tensor in found.values()]


def test_a_checkpoint_is_what_was_when_it_was_asked_for(run_ranks: Any, tmp_path: Path) -> None:
    """Catches a background write of live tensors, or of a copy that the next save overwrites."""
    Line.of(str(tmp_path), "main").begin_attempt([DAY], "a", lambda: None)
    for found in run_ranks(partial(_train_on_while_saving, root=str(tmp_path)), 2):
        assert found == [1.0, 1.0, 2.0, 2.0]


def _fail_in_the_background(
    rank: int, num_ranks: int, root: str, superseded: bool, threads: int = 1
) -> tuple[str, str]:
    """Returns what a check after a failed write says, and the next save."""
    line = Line.of(root, "main")
    saver = Saver(line, CheckpointConfig(writer_threads=threads), dist.new_group(backend="gloo"))
    with pytest.MonkeyPatch.context() as patch:
        if rank == 1 and not superseded:
            # DCP's own further threads take the first files.
            before_file(patch.setattr, lambda path: no_space() if path.endswith("_0.distcp") else time.sleep(0.2))
        saver.save(_tensors(1.0), _name(1), _manifest(1))
        deadline = time.monotonic() + 30
        said = []
        while not said and time.monotonic() < deadline:
            try:
                saver.check()
            except (OSError, RuntimeError, DataError) as error:
                said.append(f"{type(error).__name__}: {error}")
        try:
            saver.save(_tensors(2.0), _name(2), _manifest(2))
        except (OSError, RuntimeError, DataError) as error:
            said.append(f"{type(error).__name__}: {error}")
    return said[0], said[1]


@pytest.mark.parametrize("threads", [1, 3])
def test_a_write_that_fails_is_heard_of_on_all_ranks(run_ranks: Any, tmp_path: Path, threads: int) -> None:
    """Catches a failed write that one rank alone knows of, or nobody, or that half of a checkpoint remains of; and the
    error of a thread that DCP forgets."""
    line = Line.of(str(tmp_path), "main")
    line.begin_attempt([DAY], "a", lambda: None)
    fail = partial(_fail_in_the_background, root=str(tmp_path), superseded=False, threads=threads)
    for check, save in run_ranks(fail, 2):
        assert "No space left on device" in check
        assert check == save
    assert line.newest() is None


def test_an_overtaken_attempt_completes_no_checkpoint(run_ranks: Any, tmp_path: Path) -> None:
    """Catches an attempt that was taken over and goes on saving, or ends as a failure that is tried again."""
    line = Line.of(str(tmp_path), "main")
    for _ in range(2):
        line.begin_attempt([DAY], "a", lambda: None)
    for check, _ in run_ranks(partial(_fail_in_the_background, root=str(tmp_path), superseded=True), 2):
        assert check.startswith(LineLost.__name__)
        assert "attempt 0001 no longer holds" in check
    assert line.newest() is None


def _save_many(rank: int, num_ranks: int, root: str, pinned: int) -> None:
    line = Line.of(root, "main")
    saver = Saver(line, CheckpointConfig(keep=2), dist.new_group(backend="gloo"))
    for step in range(1, 7):
        saver.save(_tensors(step), _name(step), _manifest(step, complete=step == 1))
        saver.wait()
        if step == pinned:
            reading = line.pinned(_name(step), "evaluate")
            reading.__enter__()


def test_the_newest_few_are_kept(run_ranks: Any, tmp_path: Path) -> None:
    """Catches a disk that fills up; or a finished day, or a checkpoint that somebody reads, that is retired."""
    line = Line.of(str(tmp_path), "main")
    line.begin_attempt([DAY], "a", lambda: None)
    run_ranks(partial(_save_many, root=str(tmp_path), pinned=3), 1)
    assert sorted(manifest.step for manifest in line.manifests()) == [1, 3, 5, 6]


def _save_where_nothing_can_be_removed(rank: int, num_ranks: int, root: str) -> None:
    line = Line.of(root, "main")
    saver, remove = Saver(line, CheckpointConfig(keep=2), dist.new_group(backend="gloo")), Line.remove
    for step in range(1, 6):
        Line.remove = _refuse if step < 5 else remove
        saver.save(_tensors(step), _name(step), _manifest(step))
        saver.wait()


def _refuse(line: Line, checkpoint: str) -> None:
    raise OSError(39, "Directory not empty")


def test_an_old_checkpoint_that_cannot_be_removed_stays(run_ranks: Any, tmp_path: Path) -> None:
    """Catches a healthy run that dies of its own tidying; or one that never tries again."""
    line = Line.of(str(tmp_path), "main")
    line.begin_attempt([DAY], "a", lambda: None)
    run_ranks(partial(_save_where_nothing_can_be_removed, root=str(tmp_path)), 2)
    assert sorted(manifest.step for manifest in line.manifests()) == [4, 5]
