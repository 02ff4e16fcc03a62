"""Samples of the ids of a day, in a file beside its entry: an entry stays small enough to read."""

import hashlib
import logging
from typing import Any

from pipeline.lineage.ledger_entry import LedgerEntry, SketchFile
from pipeline.lineage.line import Line
from pipeline.storage.sealed_json import seal, unseal

logger = logging.getLogger(__name__)


def store_sketches(line: Line, day: str, profile: dict[str, Any]) -> tuple[dict[str, Any], SketchFile]:
    """Write the samples of a profile beside the day's entries.

    The file is named by its content, so that two writers never replace each other's.

    Args:
        line: The line.
        day: ISO date.
        profile: Profile of the day, as `DayProfile.to_json` gives it.

    Returns:
        The profile without its samples, and the name and checksum of the file.
    """
    data = seal({"ids": profile["ids"]})
    digest = hashlib.sha256(data).hexdigest()
    file = f"ledger/{day}/ids-{digest[:16]}.json"
    line.storage.write(file, data)
    rest = {name: figures for name, figures in profile.items() if name != "ids"}
    return rest, SketchFile(line=line.name, file=file, bytes=len(data), sha256=digest)


def profile_of(line: Line, entry: LedgerEntry) -> dict[str, Any] | None:
    """Return the profile of an entry with its samples of ids; None if the entry has no profile.

    A line goes on without samples that are lost: that day is not compared, and a warning names the file.

    Args:
        line: The line that reads; the file may be on another one.
        entry: The entry, of this version or of an earlier one, which has the samples inside.
    """
    if entry.profile is None or entry.sketches is None:
        return entry.profile
    mark = entry.sketches
    storage = line.storage.sibling(mark.line)
    try:
        data = storage.read(mark.file)
        if hashlib.sha256(data).hexdigest() != mark.sha256:
            raise ValueError("its checksum is not the entry's")
        return entry.profile | {"ids": unseal(data)["ids"]}
    except (FileNotFoundError, ValueError) as error:
        reason = "it is missing" if isinstance(error, FileNotFoundError) else str(error)
        where = f"{storage.url}/{mark.file}"
        logger.warning("the samples of ids of %s are not compared, %s: %s", entry.day, where, reason)
        return entry.profile | {"ids": {}}
