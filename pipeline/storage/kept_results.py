"""What steps of a long piece of work have found, kept, so that a job started again goes on."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pipeline.storage.files import Storage
from pipeline.storage.sealed_json import seal, unseal


@dataclass(frozen=True, slots=True)
class KeptResults:
    """Results of steps, in one folder.

    A result holds for the inputs that it was made from; with others, the step is done again.

    Args:
        storage: Of a line, or of a comparison.
        folder: Below it.
    """

    storage: Storage
    folder: str

    def done(self, name: str, inputs: Any, work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """The result of a step, which is done if it has not been.

        Args:
            name: The step's name.
            inputs: All that the result depends on, as JSON.
            work: Does the step; returns JSON.
        """
        found = self.found(name, inputs)
        return self.keep(name, inputs, work()) if found is None else found

    def keep(self, name: str, inputs: Any, result: Any) -> Any:
        """Keep what a step has found for these inputs, as JSON; returns it."""
        self.storage.write(self._path(name), seal({"inputs": _digest(inputs), "result": result}))
        return result

    def found(self, name: str, inputs: Any) -> Any | None:
        """What a step has found for these inputs; None if it has not been done."""
        try:
            kept = unseal(self.storage.read(self._path(name)))
        except (FileNotFoundError, ValueError):  # a damaged one is made again
            return None
        return kept["result"] if kept["inputs"] == _digest(inputs) else None

    def accepted(self, name: str, inputs: Any, reason: str | None) -> str | None:
        """Why somebody has accepted what a check found, for these inputs; a reason given now is kept.

        Args:
            name: The check's name.
            inputs: What was looked at, as JSON.
            reason: Given now; None: nothing was said.
        """
        step = f"accept-{name}"
        return self.found(step, inputs) if reason is None else self.keep(step, inputs, reason)

    def _path(self, name: str) -> str:
        return f"{self.folder}/{name}.json"


def _digest(inputs: Any) -> str:
    return hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()
