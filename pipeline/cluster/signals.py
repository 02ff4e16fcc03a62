"""What may ask a run to save before its time: SIGTERM to the command, and Ray's notice that a node is taken away.

Rank 0 hears of it and says so in the vector that every step sums over the ranks, so that all of them act at the same
step: a rank that stopped alone would leave the others waiting in a collective operation.
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
    """What a rank says to all others with every batch; summed over the ranks.

    Args:
        stop: Above 0: end here, save, and be gone.
        look: Above 0: all ranks ask Ray at this step whether a node is about to be taken away.
    """

    stop: float = 0.0
    look: float = 0.0


@contextlib.contextmanager
def stop_on_sigterm() -> Iterator[threading.Event]:
    """An event that SIGTERM sets, once; a second SIGTERM ends the process as it would have without this.

    Off the main thread, where Python takes no signals, the event is never set.
    """
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield event
        return
    before = signal.getsignal(signal.SIGTERM) or signal.SIG_DFL  # None: it was not set from Python

    def handle(number: int, frame: Any) -> None:
        event.set()
        signal.signal(signal.SIGTERM, before)

    signal.signal(signal.SIGTERM, handle)
    try:
        yield event
    finally:
        signal.signal(signal.SIGTERM, before)


class SignalReader:
    """A rank's part in the signals: rank 0 asks the board whether to stop, and when to look for a preemption.

    Args:
        board: A `ProgressBoard`; None on all ranks but 0, which have nothing to say.
    """

    def __init__(self, board: Any) -> None:
        self._board = board
        self._answer: Any = None
        self._stop = False
        self._poll_at = self._look_at = time.monotonic()

    def __call__(self) -> Signals:
        """What to say with the next batch; never waits."""
        now = time.monotonic()
        if self._board is None or now < self._poll_at:
            return Signals(stop=float(self._stop))
        self._poll_at = now + _POLL_S
        if self._answer is not None and ray.wait([self._answer], timeout=0)[0]:
            with contextlib.suppress(RayError):  # the board's node was lost: it is started again elsewhere
                self._stop = bool(ray.get(self._answer))
            self._answer = None
        if self._answer is None:
            self._answer = self._board.is_stopping.remote()
        look = now >= self._look_at
        self._look_at = now + _LOOK_S if look else self._look_at
        return Signals(stop=float(self._stop), look=float(look))


def asked_to_stop(board: Any, group: dist.ProcessGroup) -> bool:
    """Whether rank 0 finds that the run is to end; collective, for between models, each of which listens anew.

    Args:
        board: A `ProgressBoard`.
        group: Of all ranks, on gloo.
    """
    asked = [False]
    if board is not None and dist.get_rank() == 0:
        with contextlib.suppress(RayError):  # the board's node was lost: it is started again elsewhere
            asked = [bool(ray.get(board.is_stopping.remote()))]
    dist.broadcast_object_list(asked, src=0, group=group)
    return asked[0]


class PreemptionNotice:
    """Whether Ray says that a node of a worker is about to be taken away; tells each notice once."""

    def __init__(self) -> None:
        self._told: PreemptionInfo | None = None

    def is_new(self) -> bool:
        """Ask Ray; collective over Ray Train's own channel, some milliseconds."""
        info = ray.train.get_preemption_info()
        if info is None or (self._told and set(info.preempted_node_ids) <= set(self._told.preempted_node_ids)):
            return False
        self._told = info
        left = f"{info.deadline_ms / 1000 - time.time():.0f} s" if info.deadline_ms else "an unknown time"
        logger.warning("ranks %s lose their node in %s: saving now", info.preempted_ranks, left)
        return True
