"""Units that a measurement leaves out since they cannot be read; above the limit of training the day is refused."""

from collections.abc import Iterator

from features.errors import DataError
from pipeline.ingest.cursor import check_quarantined_rows
from pipeline.ingest.datasource import Parcel
from pipeline.ingest.units import DayLog
from pipeline.trainer.worker_setup import Groups


class LeftOut:
    """Units of a day that a rank leaves out.

    Args:
        day: The day.

    Attributes:
        day: The day.
    """

    def __init__(self, day: DayLog) -> None:
        self.day = day
        self._units: set[int] = set()
        self._first = ""

    def watched(self, parcels: Iterator[Parcel]) -> Iterator[Parcel]:
        """Yield the parcels of a lane unchanged, and note those without rows."""
        for parcel in parcels:
            if parcel.rows is None:
                self._units.add(parcel.unit)
                self._first = self._first or parcel.text
            yield parcel

    def rows_and_reason(self) -> tuple[int, str]:
        """Return the number of the noted units' rows, and the error of the first."""
        return sum(self.day.units[unit].num_rows for unit in self._units), self._first


def refusal(problem: str | None, left_out: LeftOut, limit: float, groups: Groups) -> str | None:
    """Return the reason for which a measured day is refused, the same text on every rank; collective.

    Args:
        problem: This rank's error of reading or measuring, if any.
        left_out: Units that this rank has left out.
        limit: Largest share of the day's rows, `ingest.max_quarantined`.
        groups: The worker's process groups.

    Returns:
        The first error of a rank, or else that of too many unreadable rows; None without one.
    """
    gathered = groups.gather((problem, *left_out.rows_and_reason()))
    error = next((text for text, _, _ in gathered if text), None)
    if error is not None:
        return error
    reason = next((text for _, _, text in gathered if text), "")
    try:
        check_quarantined_rows(sum(rows for _, rows, _ in gathered), reason, left_out.day, limit)
    except DataError as refused:
        return str(refused)
    return None
