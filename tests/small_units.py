"""Plans of reading the units of a small log, for tests of the data source."""

from collections.abc import Sequence

import numpy as np

from features.encoding import Encoder
from pipeline.ingest.bundles import Bundle, Bundles, PlannedParcel, SegmentBundles
from pipeline.ingest.datasource import Parcel, ReadPlan
from pipeline.ingest.units import Unit, Units, list_days
from pipeline.storage.files import Storage

DAY = "2026-03-01"


def read_plan_of(
    logs: Storage, encoder: Encoder, *, max_rows: int = 1000, passes: int = 1, shuffle: bool = False
) -> tuple[ReadPlan, Units]:
    """Return a plan for reading the log's first day, and the units of the day."""
    (day,) = list_days(logs, [DAY], max_rows)
    return ReadPlan(logs, encoder, tuple(range(passes)), seed=5, shuffle_rows=shuffle), day.units


def unit_entries(units: Sequence[Unit], chosen: Sequence[int] | None = None, segment: int = 0) -> list[PlannedParcel]:
    """Return the plan of a parcel for each unit, or for the chosen ones."""
    places = range(len(units)) if chosen is None else chosen
    return [PlannedParcel("unit", segment, place, units[place]) for place in places]


def numbers_of(parcel: Parcel) -> list[int]:
    """Return the row numbers of a parcel, which the log has as its dense feature."""
    assert parcel.rows is not None, parcel.text
    return parcel.rows.dense[:, 0].astype(int).tolist()


def alone(entries: list[PlannedParcel]) -> list[Bundle]:
    """Return each parcel as a block of its own."""
    return [(entry,) for entry in entries]


def planned(bundles: Sequence[Bundle]) -> Bundles:
    """Return bundles as a plan keeps them: a piece begins at a signal, and where the segment changes."""
    pieces: list[list[Bundle]] = []
    for bundle in bundles:
        first = bundle[0]
        if not pieces or first.kind in ("start", "bad") or first.segment != pieces[-1][0][0].segment:
            pieces.append([])
        pieces[-1].append(bundle)
    return Bundles([_piece(piece) for piece in pieces])


def _piece(bundles: list[Bundle]) -> SegmentBundles:
    first = bundles[0][0]
    signals = [first] if first.kind in ("start", "bad") else []
    named = [[(entry, entry.source) for entry in bundle if entry.source] for bundle in bundles[len(signals) :]]
    found = [pair for bundle in named for pair in bundle]
    return SegmentBundles(
        first.segment,
        len(signals),
        first if signals else None,
        Units(source for _, source in found),
        np.array([entry.unit for entry, _ in found], np.int32),
        np.array([entry.skip for entry, _ in found], np.int64),
        np.cumsum([0, *map(len, named)], dtype=np.int64),
    )
