"""Batches that a thread makes ahead of the training thread."""

import contextlib
import queue
import threading
from collections.abc import Callable, Iterator

import torch

from models.batch import LogBatch

_LOOK_S = 0.1  # seconds between looks of a thread whose batches nobody takes, if it is to end
_END_S = 10.0  # seconds for which an unfinished read is waited for at the end


class BatchesAhead:
    """Thread that makes a rank's batches ahead, each in one buffer; the cursors travel with their batches.

    The batches and their order are those of `make`. Only the time at which a batch is made changes.

    Args:
        make: Makes the batch of a step.
        first_step: Step of the first batch.
        num: Batches that wait for the training thread, at most.
        pin: True for batches in page-locked memory.
    """

    def __init__(self, make: Callable[[int], LogBatch], first_step: int, num: int, *, pin: bool) -> None:
        self._make, self._pin = make, pin
        self._made: queue.Queue[LogBatch | BaseException] = queue.Queue(num)
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(first_step,), name="batches", daemon=True)
        self._thread.start()

    def next_batch(self, step: int) -> LogBatch:
        """Return the batch of a step; the steps follow each other.

        Raises:
            BaseException: The error that `make` raised for this step. There is no batch after it.
        """
        found = self._made.get()
        if isinstance(found, BaseException):
            raise found
        assert found.cursor.step == step, f"a batch of step {found.cursor.step} for step {step}"
        return found

    def close(self) -> None:
        """End the thread; what it has made is dropped. A read that does not end is left to the end of the process."""
        self._closed.set()
        self._thread.join(_END_S)

    def _run(self, step: int) -> None:
        while not self._closed.is_set():
            try:
                found = self._make(step).flattened(pin=self._pin)
            except BaseException as error:  # noqa: BLE001 - the training thread raises it
                found = error
            self._hand_over(found)
            if isinstance(found, BaseException):
                return
            step += 1

    def _hand_over(self, found: LogBatch | BaseException) -> None:
        while not self._closed.is_set():
            with contextlib.suppress(queue.Full):
                self._made.put(found, timeout=_LOOK_S)
                return


@contextlib.contextmanager
def made_ahead(
    make: Callable[[int], LogBatch], first_step: int, num: int, device: torch.device
) -> Iterator[Callable[[int], LogBatch]]:
    """Make batches ahead for the time of the context, where that is of use.

    Args:
        make: Makes the batch of a step.
        first_step: Step of the first batch.
        num: Batches of a block. With 1, on a CPU, the training thread makes each batch when it needs it.
        device: Device of this rank.

    Yields:
        A function like `make`.
    """
    if num == 1 and device.type == "cpu":
        yield make
        return
    ahead = BatchesAhead(make, first_step, num, pin=device.type == "cuda")
    try:
        yield ahead.next_batch
    finally:
        ahead.close()
