"""The choice of the checkpoint that a line goes on from, among those that were completed since LATEST moved."""

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence

from pipeline.lineage.records import Attempt, Manifest

logger = logging.getLogger(__name__)


def choose_newest(
    found: Iterable[Manifest],
    current: Sequence[Attempt],
    published: Manifest | None,
    damage: Callable[[Manifest], str | None],
) -> Manifest | None:
    """Return the newest checkpoint that counts and is intact; log why others are passed over.

    Args:
        found: Complete checkpoints of these attempts, in any order.
        current: Attempts that began since LATEST moved, by number.
        published: Published checkpoint, which counts whatever began after it; None: nothing is published.
        damage: Says what is wrong with a checkpoint's files; None: nothing.
    """
    for manifest in _that_count(found, current):
        if not _is_damaged(manifest, damage):
            return manifest
    return published if published is not None and not _is_damaged(published, damage) else None


def _that_count(found: Iterable[Manifest], current: Sequence[Attempt]) -> Iterator[Manifest]:
    """Yield checkpoints that no later attempt has overtaken: most steps first, then the highest attempt."""
    for manifest in sorted(found, key=lambda one: (one.step, one.complete, one.attempt_number), reverse=True):
        later = [attempt for attempt in current if attempt.attempt > manifest.attempt_number]
        if any(manifest.step > attempt.start_step for attempt in later):
            logger.warning(
                "checkpoint %s is passed over: attempt %04d had begun from an earlier one when it was completed",
                manifest.checkpoint,
                later[0].attempt,
            )
        else:
            yield manifest


def _is_damaged(manifest: Manifest, damage: Callable[[Manifest], str | None]) -> bool:
    problem = damage(manifest)
    if problem is not None:
        logger.warning("checkpoint %s is passed over: %s", manifest.checkpoint, problem)
    return problem is not None
