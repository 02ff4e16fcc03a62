"""Bound on the turn rate of Ray Data's scheduling loop.

The loop waits for its tasks' output, and output held back by back-pressure is available already. So whenever a model
trains more slowly than its log is read, as intended, the loop turns without a pause and takes a whole core of the node.
"""

import time
from typing import Any

from ray.data._internal.execution.execution_callback import ExecutionCallback

_PERIOD_S = 0.02


class PacedLoop(ExecutionCallback):
    """Callback that makes each turn of the loop take at least 20 ms; a turn passes on all available, allowed output."""

    def __init__(self) -> None:
        self._turned_at = 0.0

    def on_execution_step(self, executor: Any) -> None:
        """Sleep for the rest of the turn."""
        time.sleep(max(0.0, self._turned_at + _PERIOD_S - time.monotonic()))
        self._turned_at = time.monotonic()
