"""The records of a line's state: LATEST, and one record for each attempt and day; a damaged one stops everything."""

from collections.abc import Sequence
from typing import TypeVar

from features.errors import ConfigError, DataError
from pipeline.lineage.records import Attempt, Latest
from pipeline.storage.files import Storage
from pipeline.storage.record import LaterVersion, Record

AnyRecord = TypeVar("AnyRecord", bound=Record)

LATEST = "LATEST"
_REBUILD = "make it again from the ledger with jobs.daily --rollback DAY REASON, DAY being the newest that is right"


def read_latest(storage: Storage) -> tuple[Latest, str | None]:
    """Return LATEST and its version in the storage.

    Args:
        storage: Folder of the line.

    Raises:
        ConfigError: A later version wrote it.
        DataError: LATEST is damaged, or gone although the line has been trained.
    """
    found = storage.read_versioned(LATEST)
    if found is None and storage.names("attempts"):
        raise DataError(f"{storage.url}/LATEST is gone, and the line has been trained: {_REBUILD}")
    return (_intact(storage, Latest, LATEST, found[0]), found[1]) if found else (Latest(), None)


def read_attempts(storage: Storage, days: Sequence[str]) -> list[Attempt]:
    """Return the attempts at some days, by number.

    Args:
        storage: Folder of the line.
        days: ISO dates.

    Raises:
        ConfigError: A later version wrote a record.
        DataError: A record is damaged.
    """
    records = {}
    for day in days:
        for name in storage.names(f"attempts/{day}"):
            file = f"attempts/{day}/{name}"
            record = _intact(storage, Attempt, file, storage.read(file))
            records[record.attempt] = record
    return [records[number] for number in sorted(records)]


def write_attempt(storage: Storage, attempt: Attempt) -> None:
    """Write the record of an attempt, at each of its days.

    Args:
        storage: Folder of the line.
        attempt: The attempt.
    """
    for day in attempt.days:
        storage.write(f"attempts/{day}/{attempt.attempt:04d}.json", attempt.to_bytes())


def _intact(storage: Storage, kind: type[AnyRecord], name: str, data: bytes) -> AnyRecord:
    """Read a record of the line; stop with a plain error where it cannot be read."""
    try:
        return kind.from_bytes(data)
    except LaterVersion as error:
        raise ConfigError(f"{storage.url}/{name} cannot be read: {error}") from error
    except ValueError as error:
        what = _REBUILD if name == LATEST else "restore it from a backup, or use a new line"
        raise DataError(f"{storage.url}/{name} is damaged ({' '.join(str(error).split())}): {what}") from error
