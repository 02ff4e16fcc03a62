"""The receiving end of the stream: a rank's blocks, cut into segments."""

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from ray.data import DataIterator

from features.errors import DataError
from pipeline.ingest.datasource import Parcel, unpack
from pipeline.ingest.plan import Header

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Segment:
    """A part of a pass, as one rank receives it.

    Args:
        header: Its first parcel's header.
        parcels: Its units, in lane order; those that could not be read or encoded have no rows.
    """

    header: Header
    parcels: Iterator[Parcel]


def receive_blocks(lane: DataIterator, prefetch_units: int) -> Iterator[Any]:
    """Yield a rank's blocks unchanged, each of them one Arrow row.

    Args:
        lane: The rank's lane, as `RunPlan.lanes` gives it.
        prefetch_units: Blocks to fetch ahead.
    """
    whole: Any = None  # a batch is a block, whatever its size
    return iter(lane.iter_batches(batch_size=whole, batch_format="pyarrow", prefetch_batches=prefetch_units))


def read_segments(blocks: Iterator[Any], on_bad: str | None = None) -> Iterator[Segment]:
    """Cut a rank's blocks into segments; each has to be read to its end before the next.

    Args:
        blocks: A rank's blocks, as `receive_blocks` gives them.
        on_bad: First words of the warning for a unit that could not be read or encoded; such a unit is one of
            its segment's parcels, without rows. None: such a unit is an error.

    Raises:
        DataError: While the parcels are read: a unit could not be read or encoded.
    """
    waiting: list[Parcel] = []

    def parcels() -> Iterator[Parcel]:
        for block in blocks:
            for parcel in unpack(block):
                if parcel.kind == "start":  # a block of its own
                    waiting.append(parcel)
                    return
                if parcel.kind == "bad":
                    if on_bad is None or parcel.unit < 0:
                        raise DataError(parcel.text)
                    logger.warning("%s %s", on_bad, parcel.text)
                if parcel.kind in ("unit", "bad"):
                    yield parcel

    for _ in parcels():
        raise AssertionError("a lane begins with the start of a segment")
    while waiting:
        yield Segment(Header.from_json(waiting.pop().text), parcels())
