"""What steps of a long piece of work have found, kept, so that a job started again goes on."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pipeline.lineage.seal import seal, unseal
from pipeline.storage import Storage


@dataclass(frozen=True, slots=True)
class Steps:
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
        found = self._found(name, inputs)
        if found is None:
            found = {"inputs": _digest(inputs), "result": work()}
            self.storage.write(self._path(name), seal(found))
        return found["result"]

    def accepted(self, name: str, inputs: Any, reason: str | None) -> str | None:
        """Why somebody has accepted what a check found, for these inputs; a reason given now is kept.

        Args:
            name: The check's name.
            inputs: What was looked at, as JSON.
            reason: Given now; None: nothing was said.
        """
        if reason is not None:
            self.storage.write(self._path(f"accept-{name}"), seal({"inputs": _digest(inputs), "result": reason}))
            return reason
        found = self._found(f"accept-{name}", inputs)
        return found["result"] if found else None

    def _found(self, name: str, inputs: Any) -> dict[str, Any] | None:
        try:
            found = unseal(self.storage.read(self._path(name)))
        except (FileNotFoundError, ValueError):  # a damaged one is made again
            return None
        return found if found["inputs"] == _digest(inputs) else None

    def _path(self, name: str) -> str:
        return f"{self.folder}/{name}.json"


def _digest(inputs: Any) -> str:
    return hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()
