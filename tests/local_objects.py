"""Objects and tasks of the test's own process, in the place of Ray's: a task runs when it is called."""

import pickle
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import ray
from ray import cloudpickle


@dataclass(frozen=True, eq=False)
class Kept:
    """Object that a reference leads to; the reference carries it."""

    value: Any


@dataclass(frozen=True)
class Task:
    """Function whose calls get copies of their arguments, and whose results are copied, as those of Ray's workers."""

    function: Callable[..., Any]
    num_returns: int = 1

    def options(self, *, num_returns: int = 1, **_: Any) -> "Task":
        return replace(self, num_returns=num_returns)

    def remote(self, *arguments: Any) -> Any:
        given = [argument.value if isinstance(argument, Kept) else argument for argument in arguments]
        found = self.function(*_copied(given))
        return Kept(_copied(found)) if self.num_returns == 1 else [Kept(_copied(part)) for part in found]


def _copied(value: Any) -> Any:
    return pickle.loads(cloudpickle.dumps(value))


def keep_objects(patch: Callable[..., None]) -> None:
    """Puts objects and tasks of this process in the place of Ray's; references of other kinds are left to Ray.

    Args:
        patch: `monkeypatch.setattr`.
    """
    get = ray.get

    def get_kept(kept: Any, *arguments: Any, **named: Any) -> Any:
        return kept.value if isinstance(kept, Kept) else get(kept, *arguments, **named)

    patch(ray, "put", Kept)
    patch(ray, "get", get_kept)
    patch(ray, "wait", lambda kept, **_: (kept, []))
    patch(ray, "remote", Task)
    patch(ray, "cancel", lambda _: None)
    patch(ray, "kill", lambda _: None)
