"""A bound on how often Ray Data's scheduling loop turns.

The loop waits for its tasks' output, and output that back-pressure holds back is there already: so while a model trains
more slowly than its log is read, which is how it should be, the loop turns without a pause and takes a whole core from
whatever else runs on the node.
"""

import time
from typing import Any

from ray.data._internal.execution.execution_callback import ExecutionCallback

_PERIOD_S = 0.02


class PacedLoop(ExecutionCallback):
    """Lets each turn of the loop take at least 20 ms; a turn passes on all output that is there and allowed."""

    def __init__(self) -> None:
        self._turned_at = 0.0

    def on_execution_step(self, executor: Any) -> None:
        """Sleep for what is left of the turn."""
        time.sleep(max(0.0, self._turned_at + _PERIOD_S - time.monotonic()))
        self._turned_at = time.monotonic()
