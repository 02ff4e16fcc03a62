"""Console of a command: the project's own lines for the person, and a log file for all other output.

Ray, FBGEMM, gloo and their child processes write to stdout and stderr as they like. So a quiet command lets both point
to a log file, and writes its own lines to a copy of the real stderr.
"""

import contextlib
import io
import logging
import os
import re
import sys
import tempfile
from typing import Any

OWN_LOGGERS = ("__main__", "jobs", "pipeline", "models", "features")
FORMAT = "%(asctime)s %(levelname).1s %(message)s"
_STDERR = 2
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")

logger = logging.getLogger(__name__)


def without_colours(text: str) -> str:
    """Return a text without the colour codes that Ray puts into its errors and lines."""
    return _COLOURS.sub("", text)


class _PlainFormatter(logging.Formatter):
    """Formatter of lines without colour codes, for files and pipes."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line of a record, with its traceback."""
        return without_colours(super().format(record))


class Screen(io.TextIOBase):
    """Text stream over a file descriptor that never fails: a person may close the terminal while a command runs.

    Args:
        descriptor: The file descriptor.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def fileno(self) -> int:
        """Return the file descriptor."""
        return self._descriptor

    def isatty(self) -> bool:
        """Return True on a terminal."""
        return os.isatty(self._descriptor)

    def write(self, text: str) -> int:
        """Write text at once, and drop what a closed stream does not take."""
        with contextlib.suppress(OSError):
            os.write(self._descriptor, text.encode(errors="backslashreplace"))
        return len(text)


class Console(logging.Handler):
    """Console of this process, and the handler of its log lines; outside a command it writes to `sys.stderr`."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.setFormatter(_PlainFormatter(FORMAT))
        self._screen: Screen | None = None
        self._file: str | None = None

    @property
    def stream(self) -> Any:
        """Text stream of the lines for the person."""
        return self._screen or sys.stderr

    @property
    def draws(self) -> bool:
        """True if a bar can be drawn: on a terminal to which nobody else writes."""
        return self._file is not None and self.stream.isatty()

    @property
    def num_columns(self) -> int:
        """Width of the terminal; 80 where it does not say."""
        with contextlib.suppress(OSError):
            return os.get_terminal_size(self.stream.fileno()).columns or 80
        return 80

    def open(self, name: str, *, verbose: bool) -> None:
        """Begin a command: show its own lines, and send all other output to a log file.

        Args:
            name: Name of the command, part of the file's name.
            verbose: True to show the other output too, without a file.
        """
        self._screen = Screen(os.dup(_STDERR))
        if not verbose:
            with contextlib.suppress(OSError):  # no place for temporary files: show everything
                descriptor, self._file = tempfile.mkstemp(".log", f"counterpoise-{name}-")
                os.dup2(descriptor, _STDERR)
                os.close(descriptor)
        logging.basicConfig(level=logging.INFO, stream=sys.stderr, force=True)
        logging.getLogger().handlers[0].setFormatter(_PlainFormatter(FORMAT))
        for own in map(logging.getLogger, OWN_LOGGERS):
            own.setLevel(logging.DEBUG)
            if self._file is not None:
                own.addHandler(self)

    def write(self, text: str) -> None:
        """Show a line, or several, above a bar that is drawn there."""
        from tqdm import tqdm  # here, since every worker process imports this module

        with tqdm.external_write_mode(file=self.stream):
            self.stream.write(f"{text}\n")

    def emit(self, record: logging.LogRecord) -> None:
        """Show a log record."""
        try:
            self.write(self.format(record))
        except Exception:  # noqa: BLE001 - a closed stderr or a wrong log call must not end a command
            self.handleError(record)

    def close_log(self, *, keep: bool) -> str | None:
        """End a command: name its log file, or remove it.

        Returns:
            Path of the kept file; None without one.
        """
        if self._file is None or keep:
            return self._file
        with contextlib.suppress(OSError):
            os.remove(self._file)
        return None

    def restore(self) -> None:
        """Let stderr point to the person again, before a traceback."""
        if self._screen is not None:
            os.dup2(self._screen.fileno(), _STDERR)


console = Console()
