"""Plans of reading the units of a small log, for tests of the data source."""

from features.encoding import Encoder
from pipeline.ingest.datasource import Bundle, Parcel, PlannedParcel, ReadPlan
from pipeline.ingest.units import list_days
from pipeline.storage.files import Storage

DAY = "2026-03-01"


def read_plan_of(
    logs: Storage, encoder: Encoder, *, max_rows: int = 1000, passes: int = 1, shuffle: bool = False
) -> ReadPlan:
    """Return a plan that reads the units of the log's first day."""
    (day,) = list_days(logs, [DAY], max_rows)
    return ReadPlan(logs, encoder, (day.units,) * passes, tuple(range(passes)), seed=5, shuffle_rows=shuffle)


def unit_entries(plan: ReadPlan, units: list[int] | None = None, segment: int = 0) -> list[PlannedParcel]:
    """Return the plan of a parcel for each unit."""
    return [
        PlannedParcel("unit", segment, unit=index) for index in (range(len(plan.units[0])) if units is None else units)
    ]


def numbers_of(parcel: Parcel) -> list[int]:
    """Return the row numbers of a parcel, which the log has as its dense feature."""
    assert parcel.rows is not None, parcel.text
    return parcel.rows.dense[:, 0].astype(int).tolist()


def alone(entries: list[PlannedParcel]) -> list[Bundle]:
    """Return each parcel as a block of its own."""
    return [(entry,) for entry in entries]
