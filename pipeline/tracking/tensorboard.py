"""Event files of TensorBoard, on a local disk or on S3.

A local file is appended to, since TensorBoard follows an open file. S3 cannot append: the file is kept in memory and
written whole, now and then, through the storage of all other files. A day's file has some megabytes. The writer of
tensorboardX is not used: its own thread hides errors, and its bounded queue stops the caller on a full disk.
"""

import os
import socket
import struct
import time
from collections.abc import Mapping

from tensorboardX.proto.event_pb2 import Event
from tensorboardX.proto.summary_pb2 import Summary
from tensorboardX.record_writer import masked_crc32c

from pipeline.storage.files import Storage

_UPLOAD_S = 30.0  # between two writes of the whole file to S3


class TensorBoardTracker:
    """One event file of a run.

    Args:
        storage: Storage of the run's folder.
    """

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        unique = f"{time.time_ns() // 1000}.{socket.gethostname()}.{os.getpid()}"
        self._name = f"events.out.tfevents.{unique}"
        self._pending = bytearray(_record(Event(wall_time=time.time(), file_version="brain.Event:2")))
        self._uploaded_at = -_UPLOAD_S

    def scalars(self, values: Mapping[str, float], step: int, at: float) -> None:
        """Keep one point; on S3 up to 30 s in memory."""
        summary = Summary(value=[Summary.Value(tag=name, simple_value=value) for name, value in values.items()])
        self._pending += _record(Event(wall_time=at, step=step, summary=summary))
        if self._storage.is_local:
            self._append()
        elif time.monotonic() - self._uploaded_at > _UPLOAD_S:
            self._upload()

    def close(self) -> None:
        """Keep what has been held back."""
        if not self._storage.is_local:
            self._upload()

    def _append(self) -> None:
        """Append the pending records; after an error a later call writes them again, from the end of the last one."""
        os.makedirs(self._storage.path(), exist_ok=True)
        path, left = self._storage.path(self._name), bytes(self._pending)
        with open(path, "ab", buffering=0) as file:  # a buffer would be written once more as the file is closed
            whole = file.tell()
            try:
                while left:
                    left = left[file.write(left) :]
            except OSError:
                os.truncate(path, whole)  # half a record would hide all that follow
                raise
        self._pending.clear()

    def _upload(self) -> None:
        self._storage.write(self._name, bytes(self._pending))
        self._uploaded_at = time.monotonic()


def _record(event: Event) -> bytes:
    """Return an event as a TFRecord: length, its checksum, content, its checksum."""
    data = event.SerializeToString()
    length = struct.pack("<Q", len(data))
    return b"".join([length, struct.pack("<I", masked_crc32c(length)), data, struct.pack("<I", masked_crc32c(data))])
