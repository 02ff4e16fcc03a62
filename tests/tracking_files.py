"""Reading of event files of TensorBoard, with the checksums that its own reader checks."""

import struct
from pathlib import Path

from tensorboardX.proto.event_pb2 import Event
from tensorboardX.record_writer import masked_crc32c


def events_of(data: bytes) -> list[Event]:
    """All events of a file; a damaged or cut record fails."""
    events, place = [], 0
    while place < len(data):
        (length,) = struct.unpack_from("<Q", data, place)
        assert struct.unpack_from("<I", data, place + 8)[0] == masked_crc32c(data[place : place + 8])
        content = data[place + 12 : place + 12 + length]
        assert len(content) == length, "the last record is cut"
        assert struct.unpack_from("<I", data, place + 12 + length)[0] == masked_crc32c(content)
        events.append(Event.FromString(content))
        place += 16 + length
    return events


def points_of(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """The points of a run's folder by name, each with its step."""
    found: dict[str, list[tuple[int, float]]] = {}
    for file in sorted(folder.glob("events.out.tfevents.*")):
        for event in events_of(file.read_bytes()):
            for value in event.summary.value:
                found.setdefault(value.tag, []).append((event.step, value.simple_value))
    return found
