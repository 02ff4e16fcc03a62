"""Background writer of a run's checkpoints."""

import functools
import logging
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch.distributed as dist

from features.errors import DataError
from pipeline.checkpoint.host_copy import HostCopy
from pipeline.checkpoint.write import write_checkpoint
from pipeline.config.checkpoint import CheckpointConfig
from pipeline.lineage.line import Line
from pipeline.lineage.records import Manifest

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class SaveTime:
    """Time of a finished save on this rank.

    Args:
        seconds: Seconds from its request to its manifest.
        stall_s: Seconds of these in which training stood still: all of them if it was not written in the background.
    """

    seconds: float
    stall_s: float


class Saver:
    """Writer of a run's checkpoints, one at a time, while training continues.

    Args:
        line: Line of the checkpoints.
        config: Interval of saves, and number of checkpoints to keep.
        group: A gloo process group for the writing thread alone.

    Attributes:
        num_saved: Number of checkpoints handed to the writer.
        newest: Time of the newest finished save; None: there is none.
    """

    def __init__(self, line: Line, config: CheckpointConfig, group: dist.ProcessGroup) -> None:
        self._line, self._config, self._group = line, config, group
        self._copy: HostCopy | None = None
        self._thread: threading.Thread | None = None
        self._failed: Exception | None = None
        self._within_day: list[str] = []
        self.num_saved = 0
        self.newest: SaveTime | None = None

    def save(
        self,
        tensors: dict[str, Any],
        name: str,
        manifest: Manifest | None,
        extra_files: Mapping[str, bytes] | None = None,
    ) -> None:
        """Copy the tensors and write them in the background, after the write before it. Collective.

        Args:
            tensors: Tensors of all parts, as from `TrainState.tensors`.
            name: Name of the checkpoint.
            manifest: Its manifest, on rank 0; None on the others.
            extra_files: Further files by name; those of rank 0 are written.

        Raises:
            Exception: The error of the write before it.
        """
        began = time.monotonic()
        self.wait()
        self.num_saved += 1
        if not self._config.background:
            self._write(tensors, name, manifest, extra_files)
            self.check()
            took = time.monotonic() - began
            self.newest = SaveTime(took, took)
            return
        self._copy = self._copy or HostCopy(tensors)
        copied = self._copy.refresh(tensors)
        arguments = (began, time.monotonic() - began, copied, name, manifest, extra_files)
        self._thread = threading.Thread(target=self._write_and_time, args=arguments, daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Raise the error of a failed write, if there is one."""
        if self._failed is not None:
            raise self._failed

    def wait(self) -> None:
        """Wait for the write in progress, if there is one.

        Raises:
            Exception: The error of that write.
        """
        self.leave()
        self.check()

    def leave(self) -> None:
        """Wait for the write in progress, whatever its end: the process group and the tensors get other users."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _write_and_time(self, began: float, stall_s: float, *arguments: Any) -> None:
        self._write(*arguments)
        if self._failed is None:
            self.newest = SaveTime(time.monotonic() - began, stall_s)

    def _write(
        self, tensors: dict[str, Any], name: str, manifest: Manifest | None, extra_files: Mapping[str, bytes] | None
    ) -> None:
        holds = functools.partial(self._line.check_holder, manifest.attempt) if manifest else None
        try:
            threads = self._config.writer_threads
            write_checkpoint(tensors, self._line.storage, name, manifest, self._group, holds, extra_files, threads)
            if manifest is not None:
                logger.info("saved %s", name)
                if not manifest.complete:
                    self._retire(name)
        except Exception as error:  # noqa: BLE001 - it is raised where the run looks next
            self._failed = error

    def _retire(self, newest: str) -> None:
        """Remove all but the newest few checkpoints within days of this attempt; those of other attempts stay."""
        self._within_day.append(newest)
        for name in self._within_day[: -self._config.keep]:
            try:
                if not self._line.is_pinned(name):
                    self._line.remove(name)
                    self._within_day.remove(name)
            except (OSError, DataError) as error:  # the new one is complete; that counts
                logger.warning("%s stays for now: %s", name, error)
