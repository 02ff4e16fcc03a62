"""Progress of a run, from the workers to the command: a bar on a terminal, plain log lines elsewhere.

A figure that is not known yet is left out: rows per second before the second look, the loss of a task before the first
steps are summed over the ranks.
"""

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import ray
from tqdm import tqdm

from features.figure import figure, named_figures
from pipeline.cluster.console import console

logger = logging.getLogger(__name__)

_POLL_S = 0.5
_LINE_S = 10.0
_BEGUN = "{desc}: {percentage:3.0f}%|{bar:10}| {n_fmt}/{total_fmt} rows"
_MOVING = "{desc}: {percentage:3.0f}%|{bar:10}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}, {rate_fmt}{postfix}]"


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingFigures:
    """Figures of a training for its live view, beside rows and losses.

    Args:
        line: Name of the line.
        day: ISO date of the day that is trained.
        attempt: Fencing number of the attempt, in four digits.
        part: Index of the part among those of the model.
        rows_before: Rows of the part that earlier attempts have trained.
        rows_in_space: Rows of the part in each task's sample space, those of earlier attempts included.
        seconds: Seconds since this attempt began the part.
        waited_s: Seconds of these in which rank 0 waited for its batches.
        save_s: Seconds of the newest finished save of this attempt; None: there is none.
        save_stall_s: Seconds of these in which training stood still; None: there is no save.
    """

    line: str
    day: str
    attempt: str
    part: int
    rows_before: int
    rows_in_space: dict[str, int]
    seconds: float
    waited_s: float
    save_s: float | None = None
    save_stall_s: float | None = None


@dataclass(frozen=True, slots=True)
class Progress:
    """Progress of a run.

    Args:
        what: Name of the work, e.g. `train 2026-11-20`.
        rows: Number of rows done.
        total: Number of rows of the day.
        losses: Mean loss per task over the newest steps; without tasks whose loss is not known.
        training: Figures of a training; None: other work.
    """

    what: str
    rows: int
    total: int
    losses: dict[str, float] = field(default_factory=dict)
    training: TrainingFigures | None = None


@ray.remote(num_cpus=0, max_restarts=-1)
class ProgressBoard:
    """Newest progress, and the request to stop; an actor, since workers and watcher are different processes."""

    def __init__(self) -> None:
        self.newest: Progress | None = None
        self.stopping = False

    def post(self, progress: Progress) -> None:
        """Replace the newest progress."""
        self.newest = progress

    def read(self) -> Progress | None:
        """Return the newest progress."""
        return self.newest

    def request_stop(self) -> None:
        """Ask the workers to save and end."""
        self.stopping = True

    def is_stopping(self) -> bool:
        """Return True once the workers have been asked to end."""
        return self.stopping


class ProgressReporter:
    """Reporter of rank 0: posts at most twice a second and never waits.

    Args:
        board: A `ProgressBoard`, or None to post nothing.
        what: Name of the work.
        total: Number of rows of the day.
    """

    def __init__(self, board: Any, what: str, total: int) -> None:
        self._board, self._what, self._total = board, what, total
        self._posted_at = 0.0

    def is_due(self) -> bool:
        """Return True if the next call of `post` posts without being final."""
        return self._board is not None and time.monotonic() - self._posted_at > _POLL_S

    def post(
        self, rows: int, losses: dict[str, float], training: TrainingFigures | None = None, *, final: bool = False
    ) -> None:
        """Post the number of rows done; too frequent calls are skipped.

        Args:
            rows: Number of rows done.
            losses: Mean loss per task; exactly 0 where no row has been counted, and then left out.
            training: Figures of a training.
            final: True to post in any case.
        """
        if self._board is not None and (final or self.is_due()):
            self._posted_at = time.monotonic()
            known = {name: loss for name, loss in losses.items() if loss != 0}
            self._board.post.remote(Progress(self._what, rows, self._total, known, training))


class ProgressWatcher:
    """Watcher of the command: a thread that shows the board's progress, as a context manager.

    Args:
        board: A `ProgressBoard`.
        asked_to_stop: Event that is passed on to the workers once set.
        listener: Function that is given each progress that the board is found with; it may not wait.
    """

    def __init__(
        self, board: Any, asked_to_stop: threading.Event, listener: Callable[[Progress], None] | None = None
    ) -> None:
        self._board, self._listener = board, listener
        self._asked_to_stop, self._told = asked_to_stop, False
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._display = ProgressDisplay()

    def __enter__(self) -> "ProgressWatcher":
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._stop.set()
        self._thread.join()
        self._look()
        self._display.close()

    def _watch(self) -> None:
        while not self._stop.wait(_POLL_S):
            self._pass_on()
            self._look()

    def _pass_on(self) -> None:
        if not self._asked_to_stop.is_set():
            return
        if not self._told:
            logger.warning("SIGTERM: the workers save where they are and end")
        self._board.request_stop.remote()  # repeatedly: a board whose node was lost has forgotten it
        self._told = True

    def _look(self) -> None:
        try:
            newest: Any = ray.get(self._board.read.remote(), timeout=5)
        except ray.exceptions.RayError:  # the cluster is going down; the command itself reports the reason
            return
        if newest is not None:
            self._display.show(newest)
            if self._listener is not None:
                self._listener(newest)


class ProgressDisplay:
    """Display of progress: one bar a piece of work on a terminal, a log line now and then elsewhere."""

    def __init__(self) -> None:
        self._shown: Progress | None = None
        self._bar: tqdm | None = None
        self._since, self._first_rows, self._line_at = 0.0, 0, 0.0

    def show(self, newest: Progress) -> None:
        """Show the newest progress, if it is new."""
        shown, self._shown = self._shown, newest
        if newest == shown:
            return
        begins = shown is None or newest.what != shown.what or newest.rows < shown.rows  # fewer: a restart
        if begins:
            self.close()
            self._since, self._first_rows, self._line_at = time.monotonic(), newest.rows, -_LINE_S
        if console.draws:
            self._draw(newest)
        elif newest.rows == newest.total or (not begins and time.monotonic() - self._line_at > _LINE_S):
            self._log(newest)

    def close(self) -> None:
        """Leave the bar as it is."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def _draw(self, newest: Progress) -> None:
        if self._bar is None:
            self._bar = tqdm(
                total=newest.total,
                desc=newest.what,
                initial=newest.rows,
                bar_format=_BEGUN,
                unit=" rows",
                unit_scale=True,
                ascii=True,
                ncols=console.num_columns - 1,
                file=console.stream,
            )
            return
        self._bar.bar_format = _MOVING
        self._bar.set_postfix({name: figure(loss) for name, loss in newest.losses.items()}, refresh=False)
        self._bar.n, self._bar.ncols = newest.rows, console.num_columns - 1
        self._bar.refresh()

    def _log(self, newest: Progress) -> None:
        self._line_at = time.monotonic()
        parts = [f"{newest.what}: {newest.rows:,} of {newest.total:,} rows"]
        if newest.rows > self._first_rows:
            parts.append(f"{(newest.rows - self._first_rows) / (self._line_at - self._since):,.0f} rows/s")
        parts += [named_figures(newest.losses)] if newest.losses else []
        logger.info(", ".join(parts))
