"""The ledger of a line: one entry for each training of a day, which says what it was and what it was worth.

An entry is written once, before LATEST moves to it, and never changed. A day is done when an entry that is reachable
from LATEST through parents says so; what a rollback leaves behind stays readable and is reachable no more.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from features.errors import DataError
from pipeline.lineage.ledger_entry import LedgerEntry
from pipeline.lineage.line import Line
from pipeline.lineage.records import EntryReference


@dataclass(frozen=True, slots=True)
class Ledger:
    """The entries of a line.

    Args:
        line: The line.
    """

    line: Line

    def generations(self, day: str) -> list[LedgerEntry]:
        """All trainings of a day, the first one first; published, rolled back, or cut off before they were."""
        numbers = sorted(int(name.removesuffix(".json")) for name in self.line.storage.names(f"ledger/{day}"))
        return [self.read(day, number) for number in numbers]

    def read(self, day: str, generation: int) -> LedgerEntry:
        """One entry.

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
        """The entry that LATEST names; None where nothing is published."""
        state = self.line.state()
        if state.branch is not None:  # forked, and nothing of its own is published yet
            return self._of(state.branch)
        return self.read(state.published.day, state.published.generation) if state.published else None

    def chain(self) -> Iterator[LedgerEntry]:
        """What is published, the newest day first, through parents and across the lines that it was forked from."""
        entry = self.newest()
        while entry is not None:
            yield entry
            entry = self._of(entry.parent) if entry.parent else None

    def find(self, day: str) -> LedgerEntry | None:
        """The published entry of a day, if it is done."""
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
        """Write the next generation of a day, or find the entry that a try wrote which was cut off after it.

        Args:
            entry: The entry, whose line, generation, parent and serial are filled in here.
            parent: Entry that it follows.
            serial: Serial of LATEST when it was begun.
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
    """Twelve hexadecimal digits of a config that was written out."""
    return hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()[:12]
