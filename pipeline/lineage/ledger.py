"""The ledger of a line: one entry for each training of a day, with its inputs, checks and metrics.

An entry is written once, before LATEST moves to it, and never changed. A day is done if an entry for it is reachable
from LATEST through parents. Entries that a rollback leaves behind stay readable and are not reachable.
"""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from features.errors import DataError
from pipeline.lineage.ledger_entry import LedgerEntry
from pipeline.lineage.line import Line
from pipeline.lineage.records import EntryReference


@dataclass(frozen=True, slots=True)
class Ledger:
    """Entries of a line.

    Args:
        line: The line.
    """

    line: Line

    def generations(self, day: str) -> list[LedgerEntry]:
        """Return all trainings of a day, the first one first: published, rolled back, or cut off before publication."""
        files = [re.fullmatch(r"(\d+)\.json", name) for name in self.line.storage.names(f"ledger/{day}")]
        return [self.read(day, number) for number in sorted(int(match[1]) for match in files if match)]

    def read(self, day: str, generation: int) -> LedgerEntry:
        """Read one entry.

        Raises:
            DataError: It is missing or damaged.
        """
        name = f"ledger/{day}/{generation}.json"
        try:
            return LedgerEntry.from_bytes(self.line.storage.read(name))
        except FileNotFoundError as error:
            raise DataError(f"{self.line.storage.url}/{name} is missing: restore it from a backup") from error
        except ValueError as error:
            raise DataError(
                f"{self.line.storage.url}/{name} is damaged ({' '.join(str(error).split())}): restore it from a backup"
            ) from error

    def newest(self) -> LedgerEntry | None:
        """Return the entry that LATEST names; None if nothing is published."""
        state = self.line.state()
        if state.branch is not None:  # forked, and nothing of its own is published yet
            return self._of(state.branch)
        return self.read(state.published.day, state.published.generation) if state.published else None

    def chain(self) -> Iterator[LedgerEntry]:
        """Yield the published entries, the newest day first, through parents and across the lines of origin."""
        entry = self.newest()
        while entry is not None:
            yield entry
            entry = self._of(entry.parent) if entry.parent else None

    def find(self, day: str) -> LedgerEntry | None:
        """Return the published entry of a day; None if the day is not done."""
        for entry in self.chain():
            if entry.day <= day:
                return entry if entry.day == day else None
        return None

    def _of(self, reference: EntryReference) -> LedgerEntry:
        line = self.line
        if reference.line != line.name:
            line = Line(line.storage.sibling(reference.line))
        return Ledger(line).read(reference.day, reference.generation)

    def enter(self, entry: LedgerEntry, parent: LedgerEntry | None, serial: int) -> LedgerEntry:
        """Write the next generation of a day, or find its entry from a try that was cut off after writing.

        Args:
            entry: The entry; this method fills in its line, generation, parent and serial.
            parent: Entry that it follows.
            serial: Serial of LATEST at the beginning of the training.
        """
        while True:
            known = self.generations(entry.day)
            newest = known[-1] if known else None
            if newest and (newest.serial, newest.checkpoint) == (serial, entry.checkpoint):
                return newest
            place = {"line": self.line.name, "generation": newest.generation + 1 if newest else 1, "serial": serial}
            entry = entry.model_copy(update=place | {"parent": parent.reference if parent else None})
            if self.line.storage.create(f"ledger/{entry.day}/{entry.generation}.json", entry.to_bytes()):
                return entry


def config_hash(config: Mapping[str, Any]) -> str:
    """Return twelve hexadecimal digits that identify a config as it was written out."""
    return hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()[:12]
