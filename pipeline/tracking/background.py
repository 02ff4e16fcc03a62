"""A thread between a run and a tracker: what the tracker does not take in time is dropped, and the run goes on."""

import contextlib
import functools
import logging
import queue
import threading
import time
from collections.abc import Callable, Mapping

from pipeline.tracking.tracker import RunKey, Tracker

logger = logging.getLogger(__name__)

CLOSE_S = 5.0
_MOST_POINTS = 1000
_REST_S = 30.0  # from an error to the next try
_LONGEST_REASON = 300  # characters of an error

_Point = tuple[RunKey, Mapping[str, float], int, float]


class BackgroundTracker:
    """Points on their way to a tracker; no method raises or waits, except `close` for at most its time.

    An error is told once, in one line, and so is a tracker that hangs. After an error the tracker rests; then the next
    point tries it again.

    Args:
        name: Name of the tracker in that line.
        open_run: Function that opens the tracker's run; runs in the thread.
    """

    def __init__(self, name: str, open_run: Callable[[RunKey], Tracker]) -> None:
        self._name, self._open_run = name, open_run
        self._points: queue.Queue[_Point | None] = queue.Queue(_MOST_POINTS)  # None: the end
        self._told = False
        self._run: RunKey | None = None
        self._tracker: Tracker | None = None
        self._rests_until = 0.0
        self._thread = threading.Thread(target=self._write_all, name=f"tracking {name}", daemon=True)
        self._thread.start()

    def put(self, run: RunKey, values: Mapping[str, float], step: int, at: float) -> None:
        """Hand on one point, or drop it if the tracker is far behind."""
        try:
            self._points.put_nowait((run, values, step, at))
        except queue.Full:
            self._tell("does not keep up")

    def close(self, seconds: float = CLOSE_S) -> None:
        """Wait until the points are written, for a bounded time."""
        while True:
            try:
                self._points.put_nowait(None)
                break
            except queue.Full:
                with contextlib.suppress(queue.Empty):
                    self._points.get_nowait()
        self._thread.join(seconds)
        if self._thread.is_alive():
            self._tell("does not answer")

    def _write_all(self) -> None:
        while (point := self._points.get()) is not None:
            if time.monotonic() >= self._rests_until:
                self._try(functools.partial(self._write, *point))
        self._try(self._end_run)

    def _write(self, run: RunKey, values: Mapping[str, float], step: int, at: float) -> None:
        if run != self._run or self._tracker is None:
            self._end_run()
            self._tracker, self._run = self._open_run(run), run
        self._tracker.scalars(values, step, at)

    def _end_run(self) -> None:
        ended, self._tracker = self._tracker, None
        if ended is not None:
            ended.close()

    def _try(self, work: Callable[[], None]) -> None:
        try:
            work()
        except Exception as error:  # noqa: BLE001 - whatever a tracker does, training goes on
            self._rests_until = time.monotonic() + _REST_S
            self._tell(" ".join(f"failed: {type(error).__name__}: {error}".split())[:_LONGEST_REASON])

    def _tell(self, problem: str) -> None:
        if not self._told:
            self._told = True
            logger.warning("tracking by %s %s; the run goes on, and points may be missing", self._name, problem)
