"""Entry point that Ray Train runs on its workers.

Ray Train's controller and the process that plans the stream unpickle all that they pass on. Imports that only the
workers need, torch and TorchRec first of all, travel as a reference, unpickled at their use: each process needs 4 s of
a core for them, and the controller's would delay the start of the workers.
"""

from collections.abc import Callable
from typing import Any

import ray


def run_worker(settings: dict[str, Any]) -> dict[str, Any]:
    """Run `(worker, job)`, referenced by `settings["work"]`, in this worker."""
    work: tuple[Callable[[dict[str, Any]], dict[str, Any]], Any] = ray.get(settings["work"])
    worker, job = work
    return worker({"job": job})
