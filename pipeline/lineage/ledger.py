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
from pipeline.lineage.line import Line
from pipeline.storage.sealed_json import seal, unseal


@dataclass(frozen=True, slots=True)
class LedgerEntry:
    """What the ledger says of one training of a day.

    Args:
        content: The entry's JSON. `parent` has line, day and generation of the entry before it, or is null.
    """

    content: dict[str, Any]

    @property
    def day(self) -> str:
        """ISO date."""
        return self.content["day"]

    @property
    def generation(self) -> int:
        """The how-manieth training of the day on its line, from 1."""
        return self.content["generation"]

    @property
    def checkpoint(self) -> str:
        """Its checkpoint, as its own line names it."""
        return self.content["checkpoint"]

    @property
    def reference(self) -> dict[str, Any]:
        """What the next entry calls its parent."""
        return {key: self.content[key] for key in ("line", "day", "generation")}


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
            return LedgerEntry(unseal(self.line.storage.read(name)))
        except FileNotFoundError as error:
            raise DataError(f"{self.line.storage.url}/{name} is missing: restore it from a backup") from error
        except ValueError as error:
            raise DataError(f"{self.line.storage.url}/{name} is damaged ({error}): restore it from a backup") from error

    def newest(self) -> LedgerEntry | None:
        """The entry that LATEST names; None where nothing is published."""
        state = self.line.state()
        if "checkpoint" not in state:
            return None
        if "branch" in state:  # forked, and nothing of its own is published yet
            return self._of(state["branch"])
        return self.read(state["day"], state["generation"])

    def chain(self) -> Iterator[LedgerEntry]:
        """What is published, the newest day first, through parents and across the lines that it was forked from."""
        entry = self.newest()
        while entry is not None:
            yield entry
            parent = entry.content["parent"]
            entry = self._of(parent) if parent else None

    def find(self, day: str) -> LedgerEntry | None:
        """The published entry of a day, if it is done."""
        for entry in self.chain():
            if entry.day <= day:
                return entry if entry.day == day else None
        return None

    def _of(self, reference: Mapping[str, Any]) -> LedgerEntry:
        line = self.line
        if reference["line"] != line.name:
            line = Line(line.storage.sibling(reference["line"]))
        return Ledger(line).read(reference["day"], reference["generation"])

    def enter(self, content: Mapping[str, Any], parent: LedgerEntry | None, serial: int) -> LedgerEntry:
        """Write the next generation of a day, or find the entry that a try wrote which was cut off after it.

        Args:
            content: All but line, generation, parent and serial; day and checkpoint are needed.
            parent: The entry that it follows.
            serial: Of LATEST when it was begun.
        """
        while True:
            known = self.generations(content["day"])
            newest = known[-1] if known else None
            if newest and (newest.content["serial"], newest.checkpoint) == (serial, content["checkpoint"]):
                return newest
            entry = LedgerEntry(
                dict(content)
                | {
                    "line": self.line.name,
                    "day": content["day"],
                    "generation": newest.generation + 1 if newest else 1,
                    "parent": parent.reference if parent else None,
                    "serial": serial,
                }
            )
            name = f"ledger/{entry.day}/{entry.generation}.json"
            if self.line.storage.create(name, seal(entry.content)):
                return entry


def config_hash(config: Mapping[str, Any]) -> str:
    """Twelve hexadecimal digits of a config that was written out."""
    return hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()[:12]
