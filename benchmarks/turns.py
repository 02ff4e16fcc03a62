"""Seconds of pieces of work that are measured in turns."""

import time
from collections.abc import Callable, Mapping


def seconds_in_turns(works: Mapping[str, Callable[[], object]], turns: int, repeats: int = 1) -> dict[str, list[float]]:
    """Return the seconds of each work in each turn; a slow minute of the machine slows them all.

    Args:
        works: Pieces of work by name.
        turns: Number of turns; one more is made before them, which warms up.
        repeats: Calls of each work in a turn; the seconds are those of one call.
    """
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for turn in range(turns + 1):
        for name, work in works.items():
            started = time.perf_counter()
            for _ in range(repeats):
                work()
            if turn:
                seconds[name].append((time.perf_counter() - started) / repeats)
    return seconds
