"""Log lines of the workers: marked by the worker that writes them, recognised by the command to which Ray brings them.

Ray appends the stderr of each of its processes to a file, and publishes the lines of all these files to the command. So
a line is not lost with the worker that wrote it.
"""

import contextlib
import logging
import re
import sys
from typing import Any

from ray._private.ray_logging import global_worker_stdstream_dispatcher
from ray._private.worker import print_worker_logs

from pipeline.cluster.console import OWN_LOGGERS, without_colours

logger = logging.getLogger(__name__)

_MARKED = re.compile(r"counterpoise (DEBUG|INFO|WARNING|ERROR|CRITICAL): (.*)")
_OF_RAY = "ray_print_logs"  # Ray's own handler, which it also removes at the end of a connection


class MarkingHandler(logging.Handler):
    """Handler that writes a record as one marked line to the stderr of its process."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record."""
        try:
            text = " ".join(self.format(record).splitlines())
            sys.stderr.write(f"counterpoise {record.levelname}: {text}\n")
        except Exception:  # noqa: BLE001 - a full disk or a wrong log call must not end a training
            self.handleError(record)


def mark_own_lines() -> None:
    """Mark the project's own log lines of this process, from now on; a second call changes nothing."""
    handler = MarkingHandler()
    for own in map(logging.getLogger, OWN_LOGGERS):
        if not any(isinstance(known, MarkingHandler) for known in own.handlers):
            own.addHandler(handler)
        own.propagate = False  # else Ray Train would print each line again


def take_worker_lines() -> None:
    """Receive the workers' lines of the present connection to Ray in place of Ray, which would print them all."""
    global_worker_stdstream_dispatcher.remove_handler(_OF_RAY)
    global_worker_stdstream_dispatcher.add_handler(_OF_RAY, receive_lines)


def receive_lines(batch: dict[str, Any]) -> None:
    """Log the project's own lines among lines of a worker, and let Ray print the others to stderr.

    Args:
        batch: Lines of one process, as Ray publishes them.
    """
    others = []
    for line in batch["lines"]:
        if marked := _MARKED.fullmatch(line):
            logger.log(logging.getLevelName(marked[1]), "%s", marked[2])
        else:
            others.append(without_colours(line))
    with contextlib.suppress(OSError):  # a full disk or a closed stderr must not end Ray's thread
        rest: Any = batch | {"lines": others}
        print_worker_logs(rest, sys.stderr)
