"""The daily job in small (small_daily.py): days caught up, taken back, forked and removed, and a lost LATEST."""

import json
from pathlib import Path

import pytest
from small_daily import FIRST, World, config_of, day_of, history, killable, reference_weights, run, train_first_days

from features.errors import ConfigError, DataError
from pipeline.ingest.parts import before
from pipeline.lineage.ledger import Ledger
from pipeline.lineage.line import Line
from pipeline.lineage.manual_moves import branch, rollback

__all__ = ["killable"]  # fixtures


def test_days_that_are_missing_are_caught_up(killable: World, tmp_path: Path) -> None:
    """Catches a scheduler that was away for a week, and a week that is never trained; or a year that is by mistake."""
    config = config_of(tmp_path)
    line = train_first_days(config, killable, 1)
    result = run(config, line, killable, day_of(4))
    assert [day["day"] for day in result["days"]] == [day_of(number) for number in range(1, 5)]
    with pytest.raises(DataError, match=rf"is at {day_of(4)}, 8 days before {day_of(13)} are missing, at most 7"):
        run(config, line, killable, day_of(13))
    with pytest.raises(DataError, match=rf"has not trained {before(FIRST, 1)}: days are not put in between.*--branch"):
        run(config, line, killable, before(FIRST, 1))


def test_a_retrained_day_is_the_next_generation(killable: World, tmp_path: Path) -> None:
    """Catches a rollback that deletes, or a day that is taken back and published again as it was."""
    config = config_of(tmp_path)
    line = train_first_days(config, killable, 3)
    first = Ledger(line).find(day_of(2))
    assert rollback(config, line, day_of(1), "bad labels")["latest"] == day_of(1)
    killable.versions[day_of(2)] = 2
    run(config, line, killable, day_of(2))
    assert [(day, generation) for day, generation, _ in history(line)][-1] == (day_of(2), 2)
    assert Ledger(line).generations(day_of(2))[0] == first
    move = json.loads(line.storage.read("moves/4.json"))
    assert (move["reason"], move["from"]["day"], move["to"]["day"]) == ("bad labels", day_of(2), day_of(1))
    with pytest.raises(DataError, match=rf"has no done day {day_of(9)}, it has {day_of(2)}, {day_of(1)}"):
        rollback(config, line, day_of(9), "a reason")


def test_a_branch_goes_on_from_the_day_before(killable: World, tmp_path: Path) -> None:
    """Catches a fork that begins from another day's model, moves the line it was forked from, or loses its root."""
    config = config_of(tmp_path)
    line = train_first_days(config, killable, 3)
    latest = line.latest()
    killable.versions[day_of(2)] = 7
    forked = branch(line, "again", day_of(2), from_nothing=False)
    run(config, forked, killable, day_of(2))
    ours, theirs = history(forked), history(line)
    assert line.latest() == latest
    assert ours[:2] == theirs[:2]
    assert ours[2] == (day_of(2), 1, reference_weights(theirs[1][2], day_of(2), "100-7"))
    assert line.is_pinned(Ledger(line).generations(day_of(1))[0].checkpoint)
    run(config, branch(line, "again", day_of(3), from_nothing=False), killable, day_of(3))  # it goes on
    assert len(history(forked)) == 4
    anew = branch(line, "anew", day_of(1), from_nothing=True)
    run(config, anew, killable, day_of(1))
    assert history(anew) == [(day_of(1), 1, reference_weights("nothing", day_of(1), "100-1"))]
    with pytest.raises(ConfigError, match=rf"has trained nothing before {day_of(0)}: add --from-nothing"):
        branch(line, "early", day_of(0), from_nothing=False)


def test_a_branch_of_a_branch(killable: World, tmp_path: Path) -> None:
    """Catches a fork from a day that was skipped on a branch: its checkpoint is on the line before that."""
    config = config_of(tmp_path)
    line = train_first_days(config, killable, 2)
    forked = branch(line, "again", day_of(2), from_nothing=False)
    run(config, forked, killable, day_of(2), skip="no log")
    twice = branch(forked, "third", day_of(3), from_nothing=False)
    run(config, twice, killable, day_of(3))
    assert [day for day, _, _ in history(twice)] == [day_of(number) for number in range(4)]
    assert line.is_pinned(Ledger(line).generations(day_of(1))[0].checkpoint)
    with pytest.raises(ConfigError, match="expected letters, digits"):
        branch(line, "../x", day_of(2), from_nothing=False)
    (tmp_path / "lines/fitted").mkdir()
    (tmp_path / "lines/fitted/statistics.json").write_bytes(b"{}")  # jobs.fit_features came first
    run(config, branch(line, "fitted", day_of(1), from_nothing=False), killable, day_of(1))
    assert len(history(Line.of(config.root, "fitted"))) == 2


@pytest.mark.parametrize("damage", ["gone", "damaged"])
def test_latest_is_made_again_from_the_ledger(killable: World, tmp_path: Path, damage: str) -> None:
    """Catches a lost LATEST that is taken for a new line, and a line that only a backup could help."""
    config = config_of(tmp_path)
    line = train_first_days(config, killable, 3)
    expected = history(line)
    path = tmp_path / "lines/main/LATEST"
    path.unlink() if damage == "gone" else path.write_bytes(b"{}")
    with pytest.raises(DataError, match=rf"LATEST is {damage}.*: make it again .* --rollback DAY REASON"):
        run(config, line, killable, day_of(3))
    rollback(config, line, day_of(2), "a disk")
    assert history(line) == expected
    run(config, line, killable, day_of(3))
    assert history(line) == [*expected, (day_of(3), 1, reference_weights(expected[-1][2], day_of(3), "100-1"))]
    newest = Ledger(line).generations(day_of(3))[0]
    assert newest.serial > max(Ledger(line).generations(day_of(number))[0].serial for number in range(3))


def test_long_past_days_are_removed(killable: World, tmp_path: Path) -> None:
    """Catches a disk that fills over the years, a parent of a branch that is removed, or the entries with it."""
    config = config_of(tmp_path)
    config = config.model_copy(update={"checkpoint": config.checkpoint.model_copy(update={"keep_days": 2})})
    line = Line.of(config.root, "main")
    for number in range(3):
        run(config, line, killable, day_of(number))
        if number == 0:
            branch(line, "again", day_of(1), from_nothing=False)
    run(config, line, killable, day_of(3))
    left = [line.read_manifest(entry.checkpoint) is not None for entry in Ledger(line).chain()]
    assert left == [True, True, False, True]  # the newest first; the first day has a branch
