"""Signals that ask a run to save early: SIGTERM to the command, and Ray's notice that a node is taken away.

Rank 0 receives them and puts them into the vector that is summed over the ranks for every block of steps. So all ranks
act at the same step: a rank that stopped alone would leave the others waiting in a collective operation.
"""

import contextlib
import logging
import signal
import threading
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import ray
import ray.train
import torch.distributed as dist
from ray.exceptions import RayError
from ray.train import PreemptionInfo

logger = logging.getLogger(__name__)

_POLL_S = 0.5
_LOOK_S = 5.0


class Signals(NamedTuple):
    """Flags that a rank sends to all others with every block of batches; summed over the ranks.

    Args:
        stop: Above 0: save here and end.
        look: Above 0: all ranks ask Ray at this step for a notice of preemption.
    """

    stop: float = 0.0
    look: float = 0.0


@contextlib.contextmanager
def stop_on_sigterm() -> Iterator[threading.Event]:
    """Yield an event that SIGTERM sets, once; a second SIGTERM ends the process as usual.

    Off the main thread, which alone receives signals in Python, the event is never set.
    """
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield event
        return
    before = signal.getsignal(signal.SIGTERM) or signal.SIG_DFL  # None: the handler was not set from Python

    def handle(number: int, frame: Any) -> None:
        event.set()
        signal.signal(signal.SIGTERM, before)

    signal.signal(signal.SIGTERM, handle)
    try:
        yield event
    finally:
        signal.signal(signal.SIGTERM, before)


class SignalReader:
    """Reader of the signals: rank 0 asks the board for a stop request, and decides when to look for a preemption.

    Args:
        board: A `ProgressBoard`; None on all ranks but 0, which send no signals.
    """

    def __init__(self, board: Any) -> None:
        self._board = board
        self._answer: Any = None
        self._stop = False
        self._poll_at = self._look_at = time.monotonic()

    def __call__(self) -> Signals:
        """Return the signals of this moment; never wait."""
        now = time.monotonic()
        if self._board is None or now < self._poll_at:
            return Signals(stop=float(self._stop))
        self._poll_at = now + _POLL_S
        if self._answer is not None and ray.wait([self._answer], timeout=0)[0]:
            with contextlib.suppress(RayError):  # the board's node was lost: Ray restarts it elsewhere
                self._stop = bool(ray.get(self._answer))
            self._answer = None
        if self._answer is None:
            self._answer = self._board.is_stopping.remote()
        look = now >= self._look_at
        self._look_at = now + _LOOK_S if look else self._look_at
        return Signals(stop=float(self._stop), look=float(look))


def asked_to_stop(board: Any, group: dist.ProcessGroup) -> bool:
    """Return True if rank 0 finds a stop request; collective, for use between models, each of which has its own reader.

    Args:
        board: A `ProgressBoard`.
        group: Process group of all ranks, on gloo.
    """
    asked = [False]
    if board is not None and dist.get_rank() == 0:
        with contextlib.suppress(RayError):  # the board's node was lost: Ray restarts it elsewhere
            asked = [bool(ray.get(board.is_stopping.remote()))]
    dist.broadcast_object_list(asked, src=0, group=group)
    return asked[0]


class PreemptionNotice:
    """Ray's notices that a node of a worker is about to be taken away; reports each notice once."""

    def __init__(self) -> None:
        self._told: PreemptionInfo | None = None

    def is_new(self) -> bool:
        """Ask Ray; collective over Ray Train's own channel, some milliseconds."""
        info = ray.train.get_preemption_info()
        if info is None or (self._told and set(info.preempted_node_ids) <= set(self._told.preempted_node_ids)):
            return False
        self._told = info
        left = f"{info.deadline_ms / 1000 - time.time():.0f} s" if info.deadline_ms else "an unknown time"
        if dist.get_rank() == 0:
            logger.warning("ranks %s lose their node in %s: saving now", info.preempted_ranks, left)
        return True
