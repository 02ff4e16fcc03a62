"""What Ray Train is handed to run on its workers.

Its controller and the process that plans the stream unpickle what they pass on. What only the workers need, torch and
TorchRec first of all, travels as a reference, and is unpickled where it is used: importing them takes each process 4 s
of a core, and the controller's come before the workers are started.
"""

from collections.abc import Callable
from typing import Any

import ray


def run_worker(settings: dict[str, Any]) -> dict[str, Any]:
    """Run `(worker, job)`, which `settings["work"]` refers to, in the worker that this is called in."""
    work: tuple[Callable[[dict[str, Any]], dict[str, Any]], Any] = ray.get(settings["work"])
    worker, job = work
    return worker({"job": job})
