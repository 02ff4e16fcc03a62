"""Faults: the one place where tests break into the product's training, checkpoints and leases.

A test says what happens and at which point; this module knows which function of the product that point is:

| point                | function of the product           |
|----------------------|-----------------------------------|
| a trainer is built   | `Trainer.__init__`                |
| a step is made       | `Trainer.next_step`               |
| a part is saved      | `Trainer.save`                    |
| a file is opened     | `HashingFileSystem.create_stream` |
| a manifest is due    | `write.commit`                    |
| a training begins    | `train_days.train_worker`         |
| a lease is taken     | `lease.this_process`              |
| a batch is made      | `Batcher.next_batch`              |

Every builder takes `patch`: `monkeypatch.setattr` in a test, whose end undoes it, or `setattr` in a worker, which keeps
it until its process ends. Ray's workers cannot import this file, so it is sent to them by value.
"""

import contextlib
import functools
import itertools
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray

from models.batch import LogBatch
from models.ranker import StepOutput
from pipeline.checkpoint import write
from pipeline.ingest.batcher import Batcher
from pipeline.lineage import lease
from pipeline.lineage.records import ProcessIdentity
from pipeline.trainer import train_days
from pipeline.trainer.step_sync import CountedBatches
from pipeline.trainer.train import Trainer, train_worker

Patch = Callable[[Any, str, Any], None]

ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])


# --- Points ---


def at_trainer(patch: Patch, act: Callable[[], None]) -> None:
    """Act before a trainer is built."""
    initialise = Trainer.__init__

    def act_and_initialise(self: Trainer, *arguments: Any) -> None:
        act()
        initialise(self, *arguments)

    patch(Trainer, "__init__", act_and_initialise)


def after_step(patch: Patch, act: Callable[[Trainer, StepOutput | None], None]) -> None:
    """Act after every step; the output is None where a part of a day has ended instead."""
    next_step = Trainer.next_step

    def step_and_act(self: Trainer, batches: CountedBatches) -> StepOutput | None:
        output = next_step(self, batches)
        act(self, output)
        return output

    patch(Trainer, "next_step", step_and_act)


def after_save(patch: Patch, act: Callable[..., None]) -> None:
    """Act after a save was asked for: `act(trainer, complete=...)`."""
    save = Trainer.save

    def save_and_act(self: Trainer, *arguments: Any, complete: bool) -> None:
        save(self, *arguments, complete=complete)
        act(self, complete=complete)

    patch(Trainer, "save", save_and_act)


def before_file(patch: Patch, act: Callable[[str], None]) -> None:
    """Act before a file of a checkpoint is opened to be written; takes its path."""
    create_stream = write.HashingFileSystem.create_stream

    def act_and_create(self: Any, path: Any, mode: str) -> Any:
        if "w" in mode:
            act(str(path))
        return create_stream(self, path, mode)

    patch(write.HashingFileSystem, "create_stream", act_and_create)


def before_manifest(patch: Patch, act: Callable[[], None]) -> None:
    """Act before rank 0 completes a checkpoint by its manifest."""
    commit = write.commit

    def act_and_commit(*arguments: Any) -> Any:
        act()
        return commit(*arguments)

    patch(write, "commit", act_and_commit)


def replace_worker(patch: Patch, worker: Callable[..., dict[str, Any]], **arguments: Any) -> None:
    """Run a function with the given arguments in the place of `train_worker`."""
    patch(train_days, "train_worker", functools.partial(worker, **arguments))


def be_another_process(patch: Patch, **changes: Any) -> ProcessIdentity:
    """Take leases under another identity, which is returned: this process's, with changes."""
    other = lease.this_process().model_copy(update=changes)
    patch(lease, "this_process", lambda: other)
    return other


# --- What happens there ---


def count_what_was_read(patch: Patch) -> None:
    """Let the cursor follow the reader, which is ahead of the model: a mistake, for a negative control."""
    next_batch, read = Batcher.next_batch, []

    def next_and_note(self: Batcher, step: int) -> LogBatch:
        batch = next_batch(self, step)
        read.append(batch.cursor)
        return batch

    def count(trainer: Trainer, output: StepOutput | None) -> None:
        if output is not None:
            cursor = output.batch.cursor
            spans = tuple(itertools.chain.from_iterable(one.spans for one in read))
            in_space = sum((one.in_space for one in read), start=cursor.in_space * 0)
            output.batch.cursor = replace(cursor, spans=spans, in_space=in_space)
        read.clear()

    patch(Batcher, "next_batch", next_and_note)
    after_step(patch, count)


def no_space(*_: Any) -> None:
    """Fail as a full disk does."""
    raise OSError(28, "No space left on device")


def worker_on_a_full_disk(job: Any, lane: Any, step: int) -> dict[str, Any]:
    """Run `train_worker` on a disk that is full from the checkpoint of a step on."""
    before_file(setattr, lambda path: no_space() if f"{step:010d}" in path else None)
    return train_worker(job, lane)


def set_clock_back(patch: Patch, seconds: float) -> None:
    """Let this process's clock be late."""
    now = time.time
    patch(time, "time", lambda: now() - seconds)


@dataclass(frozen=True)
class Fault:
    """Fault that happens to a run, once.

    Args:
        kind: `kill` or `stop` a worker, `kill_data_task`, or kill a worker while it writes: `writing` its file or at
            the `manifest`.
        step: After which step; the earliest checkpoint that is written from it on, for those while writing.
        rank: Of which worker.
        folder: Where the fault notes that it has happened, and ranks what they have stepped.
    """

    kind: str
    step: int
    rank: int
    folder: Path

    def happens(self) -> bool:
        """Return True at the first call: the fault happens now, and no more."""
        return first_time(self.mark)

    @property
    def mark(self) -> Path:
        return self.folder / f"{self.kind}-{self.step}-happened"

    @property
    def killed(self) -> Path:
        """Is there once a data task was found and killed."""
        return self.folder / f"{self.mark.name}-killed"

    @property
    def happened_at(self) -> float:
        return self.mark.stat().st_mtime


def first_time(mark: Path) -> bool:
    """Create a file, and return True if it was not there, for all processes."""
    try:
        os.close(os.open(mark, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return False
    return True


def train_with_faults(faults: Sequence[Fault], monkeypatch: pytest.MonkeyPatch, run: Callable[[], Any]) -> Any:
    """Run with faults, and return its result; all of them must have happened."""
    faults[0].folder.mkdir()
    with monkeypatch.context() as patch:
        replace_worker(patch.setattr, faulty_worker, faults=faults)
        result = run()
    missing = [fault.mark.name for fault in faults if not fault.mark.exists()]
    assert not missing, "they did not happen: the test would see nothing"
    return result


def faulty_worker(job: Any, lane: Any, faults: Sequence[Fault]) -> dict[str, Any]:
    """`train_worker` with faults in one folder; the code of the worker itself is the product's."""
    rank = ray.train.get_context().get_world_rank()
    own = [0]

    def note_and_fail(trainer: Trainer, output: StepOutput | None) -> None:
        own[0] = trainer.step
        if output is not None:
            with (faults[0].folder / f"stepped-{os.getpid()}").open("a") as file:
                file.write(f"{time.time()} {trainer.step} {output.batch.cursor.num_rows}\n")
        for fault in faults:
            if rank == fault.rank and trainer.step >= fault.step and fault.kind in _AT_STEPS and fault.happens():
                _AT_STEPS[fault.kind](fault)

    def happens(kind: str) -> bool:
        """Return True if a fault of this rank happens at this write."""
        due = (fault for fault in faults if fault.kind == kind and own[0] >= fault.step)
        return any(fault.happens() for fault in due if kind == "manifest" or fault.rank == rank)

    def leave_half(path: str) -> None:
        if happens("writing"):
            _leave_half(path)
            kill_me()

    after_step(setattr, note_and_fail)
    before_file(setattr, leave_half)
    before_manifest(setattr, lambda: kill_me() if happens("manifest") else None)
    return train_worker(job, lane)


def _leave_half(path: str) -> None:
    if "://" not in path:  # of S3's files there is no half
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_bytes(b"half a file")


def kill_me(*_: Any, **__: Any) -> None:
    """Kill this process."""
    os.kill(os.getpid(), signal.SIGKILL)


def _stop_me(_: Fault) -> None:
    os.kill(os.getpid(), signal.SIGSTOP)


def _kill_data_task(fault: Fault) -> None:
    """Kill a process of this session's Ray that reads units, as soon as there is one; training goes on meanwhile."""
    raylet = psutil.Process().parent()
    assert raylet is not None
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        for process in raylet.children():
            with contextlib.suppress(psutil.NoSuchProcess):
                if process.cmdline()[:1] and process.cmdline()[0].startswith("ray::ReadUnit"):
                    process.kill()
                    fault.killed.touch()
                    return
        time.sleep(0.002)


def _start_killing(fault: Fault) -> None:
    threading.Thread(target=_kill_data_task, args=(fault,), daemon=True).start()


_AT_STEPS: dict[str, Callable[[Fault], None]] = {"kill": kill_me, "stop": _stop_me, "kill_data_task": _start_killing}
