"""Choice of the checkpoint from which a run continues, whenever its stream is planned.

This file does not import torch, except to name the difference from a checkpoint of another configuration.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from features.errors import DataError
from pipeline.ingest.chosen_days import span
from pipeline.ingest.plan import StreamStart
from pipeline.lineage.line import Line
from pipeline.lineage.records import Manifest, RunScope


@dataclass(frozen=True, slots=True)
class Beginning:
    """Function that begins an attempt of a run; called whenever its stream is planned.

    Args:
        declared: The configuration, as manifests have it.
        line: The line.
        days: ISO dates in order.
        run: Run that the attempts belong to.
        passes: Passes over the days.
    """

    declared: dict[str, Any]
    line: Line
    days: tuple[str, ...]
    run: str
    passes: int

    def __call__(self) -> StreamStart:
        """Take the line for an attempt, and choose its start."""
        attempt, start = self.line.begin_attempt(self.days, self.run, self._choose, passes=self.passes, held=True)
        return StreamStart(attempt, self.line.resume_point(start) if start else None)

    def _choose(self) -> Manifest | None:
        return start_of(self.declared, self.line, self.days, self.passes)


def start_of(declared: dict[str, Any], line: Line, days: Sequence[str], passes: int) -> Manifest | None:
    """Return the checkpoint to start from, if it fits the requested days.

    Args:
        declared: The configuration, as manifests have it.
        line: The line.
        days: ISO dates in order.
        passes: Passes over all of them.

    Raises:
        DataError: The line's position does not fit the days, or the line was trained with another schema.
    """
    newest = line.newest()
    if newest is None:
        return None
    _check_fits(declared, newest)
    run, latest = newest.run, line.latest()
    if run == RunScope(days=tuple(days), passes=passes):
        return newest
    after = max(newest.day, latest.day) if latest else newest.day
    if after < days[0] and is_last(newest, run.days, run.passes):
        return newest
    raise DataError(
        f"line {line.name!r} has trained up to {newest.day} (step {newest.step}, "
        f"{'complete' if newest.complete else 'within the day'}), asked for are {span(days)}: ask for "
        f"later days, finish {span(run.days)}, forget what is not published "
        "with jobs.daily --discard REASON, or name another line"
    )


def _check_fits(declared: dict[str, Any], manifest: Manifest) -> None:
    if manifest.config == declared:
        return
    from pipeline.config.project import Config
    from pipeline.lineage.compatible import check_same_schema

    # A comparison names lines as no person may.
    check_same_schema(Config.model_validate(declared | {"line": "main"}), manifest)


def is_last(manifest: Manifest, days: Sequence[str], passes: int) -> bool:
    """Return True if a checkpoint is the end of a run's last day and pass."""
    return ends_day(manifest, passes) and manifest.day == days[-1]


def ends_day(manifest: Manifest, passes: int) -> bool:
    """Return True if a checkpoint is the end of a day's own rows in the last pass."""
    return manifest.complete and manifest.pass_index == passes - 1 and manifest.is_own_log
