"""Operations on a line by hand: branch, rollback to an earlier day, discard of begun work."""

import logging
import re
from datetime import UTC, datetime
from typing import Any

from features.errors import ConfigError, DataError
from pipeline.config.project import LINE_NAME, Config
from pipeline.lineage.frozen_statistics import STATISTICS
from pipeline.lineage.lease import lease
from pipeline.lineage.ledger import Ledger
from pipeline.lineage.line import Line
from pipeline.lineage.line_state import LATEST
from pipeline.lineage.records import EntryReference, Latest, MoveByHand

logger = logging.getLogger(__name__)


def branch(line: Line, name: str, day: str, *, from_nothing: bool) -> Line:
    """Return the line of a name; make one that continues from the day before, or begins anew, if there is none.

    Args:
        line: Line of its origin.
        name: Name of the branch.
        day: First day that the branch will train.
        from_nothing: True to begin without the training before that day.

    Raises:
        ConfigError: Nothing is trained before that day, or the name is not a valid one.
    """
    if not re.fullmatch(LINE_NAME, name):
        raise ConfigError(f"--branch {name!r}: expected letters, digits, dots, dashes and underscores")
    forked = Line(line.storage.sibling(name))
    if forked.name == line.name or forked.storage.exists(LATEST) or forked.storage.names("attempts"):
        return forked
    if from_nothing:
        if line.storage.exists(STATISTICS):
            forked.storage.write(STATISTICS, line.storage.read(STATISTICS))
        return forked
    entry = next((entry for entry in Ledger(line).chain() if entry.day < day), None)
    if entry is None:
        raise ConfigError(f"line {line.name!r} has trained nothing before {day}: add --from-nothing")
    origin = Line(line.storage.sibling(entry.line))
    logger.info("line %s is forked from %s of line %s", name, entry.day, origin.name)
    forked.fork(entry.reference, entry.checkpoint)
    return forked


def rollback(config: Config, line: Line, day: str, reason: str) -> dict[str, Any]:
    """Move LATEST back to a day; later days stay readable, and are trained again as their next generation.

    Args:
        config: The project's configuration.
        line: The line.
        day: ISO date of a done day.
        reason: Is recorded.

    Raises:
        DataError: The day is not done on this line, its checkpoint is damaged, or another job holds the line.
    """
    lost = not _has_latest(line)
    if lost:
        _rebuild(line, day)
    with lease(line, f"jobs.daily --rollback {day}", config.daily.lease_s) as run:
        state, entry = line.state(), Ledger(line).find(day)
        if entry is None or entry.line != line.name:
            done = [entry.day for entry in Ledger(line).chain() if entry.line == line.name]
            raise DataError(f"line {line.name!r} has no done day {day}, it has {', '.join(done[:10]) or 'none'}")
        manifest = line.read_manifest(entry.checkpoint)
        problem = "its manifest is gone" if manifest is None else line.damage(manifest)
        if problem:
            raise DataError(f"{entry.checkpoint} of {day} cannot be gone back to: {problem}: choose another day")
        if entry.day == state.day and not lost:
            return {"result": "nothing to do", "line": line.name, "latest": day, "checkpoint": entry.checkpoint}
        _record_move(line, state, reason, run, entry.reference)
        line.publish(entry.published, state.serial, run)
    return {"result": "rolled back", "line": line.name, "latest": day, "checkpoint": entry.checkpoint}


def _has_latest(line: Line) -> bool:
    try:
        line.state()
    except DataError:
        return False
    return True


def _rebuild(line: Line, day: str) -> None:
    """Make LATEST again, at the last training of a day with an intact checkpoint."""
    ledger = Ledger(line)
    for entry in reversed(ledger.generations(day)):
        manifest = line.read_manifest(entry.checkpoint)
        if manifest is not None and line.damage(manifest) is None:
            serials = [one.serial for name in line.storage.names("ledger") for one in ledger.generations(name)]
            moves = [int(name.removesuffix(".json")) for name in line.storage.names("moves")]
            logger.warning("LATEST of line %s is made again, at %s, generation %d", line.name, day, entry.generation)
            line.rebuild(entry.published, max([*serials, *moves]) + 2)
            return
    raise DataError(f"the ledger of line {line.name!r} has no training of {day} whose checkpoint is intact")


def discard(config: Config, line: Line, reason: str) -> dict[str, Any]:
    """Discard the training that is not published.

    Args:
        config: The project's configuration.
        line: The line.
        reason: Is recorded.

    Raises:
        DataError: Another job holds the line.
    """
    with lease(line, "jobs.daily --discard", config.daily.lease_s) as run:
        _record_move(line, line.state(), reason, run)
        line.restart(run)
    latest = line.latest()
    return {"result": "discarded", "line": line.name, "latest": latest.day if latest else None}


def _record_move(line: Line, state: Latest, reason: str, run: str, to: EntryReference | None = None) -> None:
    """Record the reason of a move of LATEST by hand, before the move; without a target entry, of a discard."""
    move = MoveByHand(
        was=state.published, at=datetime.now(UTC).isoformat(), to=to, discarded=to is None, reason=reason, run=run
    )
    line.storage.write(f"moves/{state.serial + 1}.json", move.to_bytes())
