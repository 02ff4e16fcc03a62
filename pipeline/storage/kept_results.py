"""Kept results of the steps of a long job, so that a restarted job continues."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pipeline.storage.files import Storage
from pipeline.storage.record import Record


class KeptResult(Record):
    """Result of a step.

    Args:
        inputs: Checksum of all that the result depends on.
        result: The result, as JSON.
    """

    inputs: str
    result: Any


@dataclass(frozen=True, slots=True)
class KeptResults:
    """Results of steps, in one folder.

    A result holds for its inputs; with other inputs, the step is done again.

    Args:
        storage: Storage of a line, or of a comparison.
        folder: Folder below the storage.
    """

    storage: Storage
    folder: str

    def done(self, name: str, inputs: Any, work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Return the result of a step; do the step if no result is kept.

        Args:
            name: The step's name.
            inputs: All that the result depends on, as JSON.
            work: Function that does the step; returns JSON.
        """
        found = self.found(name, inputs)
        return self.keep(name, inputs, work()) if found is None else found

    def keep(self, name: str, inputs: Any, result: Any) -> Any:
        """Keep the result of a step for these inputs, as JSON; return it."""
        self.storage.write(self._path(name), KeptResult(inputs=_digest(inputs), result=result).to_bytes())
        return result

    def found(self, name: str, inputs: Any) -> Any | None:
        """Return the kept result of a step for these inputs; None if there is none."""
        try:
            kept = KeptResult.from_bytes(self.storage.read(self._path(name)))
        except (FileNotFoundError, ValueError):  # a damaged result is made again
            return None
        return kept.result if kept.inputs == _digest(inputs) else None

    def _path(self, name: str) -> str:
        return f"{self.folder}/{name}.json"


def _digest(inputs: Any) -> str:
    return hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()
