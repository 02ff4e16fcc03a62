"""The product's own training on processes of the test's own, in the place of Ray's: a start takes a second, not thirty.

Everything of the product runs as it does on Ray: the command's part, the plan of the stream, the data tasks' reading of
real files, real gloo ranks, the trainer, the checkpoints, what a failure is told as. Only what Ray itself does is done
here: it keeps objects, deals one-row blocks round and round (`test_ray_streaming.py::test_ray_deals_the_lanes` holds
Ray to that), starts a group of workers, ends all of it when one of them dies or fails, and starts it again as often as
`max_failures` says for each training or measurement. The queue of the workers is the product's, behind a socket. The
workers are forked from a process that has imported TorchRec.

`on_processes()` puts this in Ray's place for the rest of a process: a test's, through the fixture `local_training`, or
a command's that a test starts.
"""

import contextlib
import ctypes
import functools
import itertools
import logging
import multiprocessing
import os
import pickle
import shutil
import signal
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from multiprocessing.connection import Connection, wait
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray
import ray.data
import ray.train
from local_objects import Kept, keep_objects
from local_queue import local_queue
from ray import cloudpickle
from ray.train import WorkerGroupError
from ray.train.v2._internal.execution.failure_handling import FailureDecision

from pipeline.cluster import progress, serve_jobs, worker_group
from pipeline.cluster.trainer_of_jobs import FailuresOfWork

_PRELOAD = [
    "local_training",
    "pipeline.trainer.train",
    "pipeline.evaluation.evaluate",
    "pipeline.migration.migrate",
    "jobs.daily",
]
_DIES_WITH_PARENT = 1  # PR_SET_PDEATHSIG
_NOTICED_S = 2.0  # how long the others have to say what they met, once one rank has failed


@contextlib.contextmanager
def on_processes(survivors: Path | None = None) -> Iterator[None]:
    """Puts processes of our own in the place of Ray until the end of the context.

    Args:
        survivors: Workers live on when the command that started them dies, as they do for a minute after a Ray head,
            and leave their process ids in this folder; None: they die with it.
    """
    with pytest.MonkeyPatch.context() as patch:
        keep_objects(patch.setattr)
        patch.setattr(ray, "is_initialized", lambda: True)
        patch.setattr(ray, "cluster_resources", lambda: {"CPU": 100.0})
        patch.setattr(ray.data, "range", lambda _: None)
        patch.setattr(ray.data, "from_items", lambda rows, **_: _Items(rows))
        patch.setattr(ray.data, "read_datasource", lambda source, **_: _Blocks(source.get_read_tasks(1)))
        patch.setattr(progress.ProgressBoard, "remote", _Board)
        patch.setattr(worker_group, "queue_on_this_node", local_queue)
        patch.setattr(worker_group, "end_stream", lambda lanes: None)
        patch.setattr(worker_group, "TorchTrainer", functools.partial(ProcessTrainer, survivors=survivors))
        yield


# --- Progress ---


class _Board:
    """`ProgressBoard` in a folder; as on Ray, nobody waits for what is posted."""

    def __init__(self) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="board-"))
        self.post = SimpleNamespace(remote=functools.partial(_post, self._folder))
        self.read = SimpleNamespace(remote=functools.partial(_read, self._folder))
        self.request_stop = SimpleNamespace(remote=functools.partial(_request_stop, self._folder))
        self.is_stopping = SimpleNamespace(remote=functools.partial(_is_stopping, self._folder))


def _post(folder: Path, newest: Any) -> None:
    (folder / "next").write_bytes(pickle.dumps(newest))
    (folder / "next").rename(folder / "newest")


def _read(folder: Path) -> Kept:
    file = folder / "newest"
    return Kept(pickle.loads(file.read_bytes()) if file.exists() else None)


def _request_stop(folder: Path) -> Kept:
    return Kept((folder / "stop").touch())


def _is_stopping(folder: Path) -> Kept:
    return Kept((folder / "stop").exists())


# --- Data ---


@dataclass(frozen=True)
class _Items:
    """Rows that are mapped where they are asked for."""

    rows: Sequence[Any]
    work: Callable[[Any], Any] | None = None

    def map(self, work: Callable[[Any], Any], *, num_cpus: float) -> "_Items":
        assert num_cpus <= 1
        return _Items(self.rows, pickle.loads(cloudpickle.dumps(work)))

    def iter_rows(self) -> Iterator[Any]:
        assert self.work is not None
        return map(self.work, self.rows)


@dataclass(frozen=True)
class _Blocks:
    """The blocks of read tasks in order, of which every rank reads all and takes its own."""

    tasks: Sequence[Callable[[], Any]]
    rank: int = 0
    num_ranks: int = 1

    def streaming_split(self, num_ranks: int, *, equal: bool) -> list["_Blocks"]:
        assert not equal, "it drops rows to make the lanes even"
        return [_Blocks(self.tasks, rank, num_ranks) for rank in range(num_ranks)]

    def iter_batches(self, *, batch_size: int | None, batch_format: str, prefetch_batches: int) -> Iterator[Any]:
        assert (batch_size, batch_format) == (None, "pyarrow"), "a batch is a block"
        blocks = itertools.chain.from_iterable(task() for task in self.tasks)
        return itertools.islice(blocks, self.rank, None, self.num_ranks)


# --- Workers ---


class ProcessTrainer:
    """`TorchTrainer`, as a `WorkerGroup` calls it."""

    def __init__(
        self,
        train_loop_per_worker: Callable[[dict[str, Any]], Any],
        *,
        train_loop_config: dict[str, Any],
        scaling_config: Any,
        torch_config: Any,
        run_config: Any,
        survivors: Path | None = None,
    ) -> None:
        assert torch_config.backend == "gloo"
        fork_server()  # here: the thread that fits would change the environment of the command's
        self._work = train_loop_per_worker, train_loop_config
        self._num_ranks: int = scaling_config.num_workers
        self._timeout_s: int = torch_config.timeout_s
        self._queue = train_loop_config["queue"]
        self._failures = FailuresOfWork(run_config.failure_config, self._queue)
        self._survivors = survivors
        self._group: _Group | None = None
        self._is_aborted = False
        self.abort = SimpleNamespace(remote=self._abort)

    def fit(self) -> None:
        """Runs the workers to their end, again after a failure."""
        self._queue.begin.remote(self)
        while not self._is_aborted:
            with _Group(self._work, self._num_ranks, self._timeout_s, self._survivors) as self._group:
                failures = self._group.end()
            self._queue.forget_workers.remote()
            if not failures:
                return
            error = WorkerGroupError("\n".join(map(str, failures.values())), failures)
            if self._is_aborted or self._failures.make_decision(error) == FailureDecision.RAISE:
                raise error

    def _abort(self) -> Kept:
        self._is_aborted = True
        if self._group is not None:
            self._group.kill()
        return Kept(None)


def fork_server() -> Any:
    """A process that has imported what workers need, and forks them."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_PRELOAD)
    here = Path(__file__).parent
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", f"{here}{os.pathsep}{here.parent}")
        multiprocessing.forkserver.ensure_running()  # pyright: ignore[reportAttributeAccessIssue]
    return context


class _Group:
    """One start of all ranks; whatever is left of them is killed at its end."""

    def __init__(self, work: Any, num_ranks: int, timeout_s: int, survivors: Path | None) -> None:
        self._folder = tempfile.mkdtemp(prefix="gloo-")
        self._ranks: list[tuple[Any, Connection]] = []
        context, environment = fork_server(), dict(os.environ)
        for rank in range(num_ranks):
            ours, theirs = context.Pipe()
            store = f"file://{self._folder}/store"
            order = _Order(rank, num_ranks, store, timeout_s, environment, survivors, *work)
            process = context.Process(target=_serve, args=(theirs, cloudpickle.dumps(order)), daemon=True)
            process.start()
            theirs.close()
            self._ranks.append((process, ours))

    def __enter__(self) -> "_Group":
        return self

    def __exit__(self, *error: object) -> None:
        self.kill()
        for process, pipe in self._ranks:
            process.join()
            pipe.close()
        shutil.rmtree(self._folder)

    def kill(self) -> None:
        for process, _ in self._ranks:
            process.kill()

    def end(self) -> dict[int, Exception]:
        """Return the errors of the ranks that failed."""
        failures: dict[int, Exception] = {}
        waiting = {pipe: rank for rank, (_, pipe) in enumerate(self._ranks)}
        while waiting:
            ready = wait(list(waiting), _NOTICED_S if failures else None)
            if not ready:
                break
            for pipe in ready:
                rank = waiting.pop(pipe)
                try:
                    failure = cloudpickle.loads(pipe.recv_bytes())
                except (EOFError, ConnectionResetError):
                    self._ranks[rank][0].join()
                    failure = RuntimeError(f"it died, exit code {self._ranks[rank][0].exitcode}")
                if failure is not None:
                    failures[rank] = failure
        return dict(sorted(failures.items()))


@dataclass(frozen=True)
class _Order:
    """Order to a rank: its place in the group, and the function to run."""

    rank: int
    num_ranks: int
    store: str
    timeout_s: int
    environment: dict[str, str]
    survivors: Path | None
    loop: Callable[[dict[str, Any]], Any]
    settings: dict[str, Any]


def _serve(pipe: Connection, data: bytes) -> None:
    """A worker, in a process of its own."""
    import torch
    import torch.distributed as dist

    ctypes.CDLL(None).prctl(_DIES_WITH_PARENT, signal.SIGKILL)  # the server that forks
    torch.set_num_threads(1)
    order: _Order = cloudpickle.loads(data)
    if order.survivors is None:
        threading.Thread(target=_die_with, args=(pipe,), daemon=True).start()
    else:
        (order.survivors / str(os.getpid())).touch()
    try:
        os.environ.clear()
        rank = str(order.rank)
        os.environ |= order.environment | {"LOCAL_RANK": rank, "RANK": rank, "GLOO_SOCKET_IFNAME": "lo"}
        os.environ |= {"LOCAL_WORLD_SIZE": str(order.num_ranks), "WORLD_SIZE": str(order.num_ranks)}
        keep_objects(setattr)
        context = SimpleNamespace(
            get_world_rank=lambda: order.rank,
            get_local_rank=lambda: order.rank,
            get_world_size=lambda: order.num_ranks,
        )
        ray.train.get_context = lambda: context
        ray.train.get_preemption_info = lambda: None
        timeout = timedelta(seconds=order.timeout_s)
        dist.init_process_group("gloo", order.store, timeout, rank=order.rank, world_size=order.num_ranks)
        serve_jobs.broadcast_from_rank_zero = _from_first
        order.loop(order.settings)
        answer = None
    except Exception as error:  # noqa: BLE001 - the group's end tells it
        traceback.print_exc()
        answer = error
    pipe.send_bytes(cloudpickle.dumps(answer))
    threading.Event().wait()  # others may still be reading from this rank: the group ends all of them


def _from_first(value: Any) -> Any:
    """`broadcast_from_rank_zero` of Ray Train."""
    import torch.distributed as dist

    values = [value]
    dist.broadcast_object_list(values, src=0)
    return values[0]


def _die_with(pipe: Connection) -> None:
    """Ends this worker with the process that started it."""
    with contextlib.suppress(EOFError, OSError):
        pipe.recv_bytes()
    os._exit(1)


# --- Commands ---


class Command:
    """A function in a process of its own that has imported what commands need; its output goes to files.

    Args:
        function: Returns the exit code.
        arguments: Its arguments.
        out: Takes its stdout.
        err: Takes its stderr.
    """

    def __init__(self, function: Callable[..., int], arguments: Sequence[Any], out: Path, err: Path) -> None:
        data = cloudpickle.dumps((function, tuple(arguments), str(out), str(err), dict(os.environ), os.getcwd()))
        self._process = fork_server().Process(target=_run_command, args=(data,))
        self._process.start()
        self._out = out
        self.pid = self._process.pid

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        return self._process.exitcode

    def kill(self) -> None:
        self._process.kill()

    def wait(self, timeout: float | None = None) -> int | None:
        self._process.join(timeout)
        assert self._process.exitcode is not None, f"the command does not end within {timeout} s"
        return self._process.exitcode

    def communicate(self, timeout: float | None = None) -> tuple[str, None]:
        self.wait(timeout)
        return self._out.read_text(), None


def _run_command(data: bytes) -> None:
    function, arguments, out, err, environment, folder = cloudpickle.loads(data)
    os.chdir(folder)
    os.environ.clear()
    os.environ |= environment
    for number, path in ((1, out), (2, err)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    code = function(*arguments)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


logging.getLogger("ray.train").setLevel(logging.ERROR)
