"""The queue of the workers without Ray: a thread of the command keeps it, and workers call it through a socket."""

import asyncio
import contextlib
import functools
import tempfile
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import Client, Connection, Listener
from types import SimpleNamespace
from typing import Any

from local_objects import Kept
from ray import cloudpickle

from pipeline.cluster.job_queue import JobQueue


def local_queue() -> Any:
    """Returns a new queue, as its actor's handle."""
    return _Queue().handle


class _Queue:
    """The product's `JobQueue`, and the threads that serve it."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._folder = tempfile.mkdtemp(prefix="queue-")
        self._queue = JobQueue()
        self.handle = _Handle(f"{self._folder}/socket")
        _LOCAL_QUEUES[self.handle.address] = self
        listener = Listener(self.handle.address, backlog=64)
        threading.Thread(target=self._loop.run_forever, daemon=True).start()
        threading.Thread(target=self._listen, args=(listener,), daemon=True).start()

    def call(self, name: str, arguments: Sequence[Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(getattr(self._queue, name)(*arguments), self._loop).result()

    def _listen(self, listener: Listener) -> None:
        while True:
            threading.Thread(target=self._answer, args=(listener.accept(),), daemon=True).start()

    def _answer(self, connection: Connection) -> None:
        with contextlib.suppress(EOFError, OSError), connection:  # a worker was killed
            connection.send_bytes(cloudpickle.dumps(self.call(*cloudpickle.loads(connection.recv_bytes()))))


_LOCAL_QUEUES: dict[str, _Queue] = {}  # of this process


@dataclass(frozen=True)
class _Handle:
    """A queue as its actor's handle: every method has a `remote`, which here waits for its result."""

    address: str

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # of pickle
            raise AttributeError(name)
        return SimpleNamespace(remote=functools.partial(_call_queue, self.address, name))


def _call_queue(address: str, name: str, *arguments: Any) -> Kept:
    if address in _LOCAL_QUEUES:
        return Kept(_LOCAL_QUEUES[address].call(name, arguments))
    with Client(address) as connection:
        connection.send_bytes(cloudpickle.dumps((name, arguments)))
        return Kept(cloudpickle.loads(connection.recv_bytes()))
