"""One job at a time on a line: who holds it, who is dead, and what a holder can do that was overtaken."""

import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import pytest
from faults import be_another_process
from small_daily import SmallWork, World, config_of, day_of, history, run

from features.errors import DataError
from features.profile import DayProfile
from pipeline.daily.accepted import Accepted
from pipeline.daily.day_job import DayJob
from pipeline.daily.run_days import run_days
from pipeline.ingest.units import DayLog
from pipeline.lineage import lease as lease_file
from pipeline.lineage.ledger import Ledger
from pipeline.lineage.line import Line
from pipeline.lineage.records import LeaseRecord
from pipeline.lineage.stored_checkpoint import Manifest


def test_of_two_jobs_one_wins(tmp_path: Path) -> None:
    """Catches two jobs that train one day on one line, and a second one that waits for ever instead of saying who."""
    config = config_of(tmp_path)
    line, world, start = Line.of(config.root, "main"), World(), Barrier(4)

    class Slow(SmallWork):
        def profile(self, log: DayLog) -> DayProfile:
            time.sleep(1.0)
            return super().profile(log)

    def begin(_: int) -> str:
        start.wait()
        try:
            return run_days(config, line, Slow(line, world), [day_of(0)], 7, Accepted())["result"]
        except DataError as error:
            return str(error)

    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(begin, range(4)))
    assert results.count("published") == 1
    refused = [result for result in results if result != "published"]
    for text in refused:
        assert "is held by jobs.daily 2026-03-01..2026-03-01 (process" in text
    assert len(history(line)) == 1


def test_a_holder_that_was_stopped_publishes_nothing(tmp_path: Path) -> None:
    """Catches a job that sleeps past its lease, wakes up after another has taken over, and publishes what it had."""
    config = config_of(tmp_path)
    line, world = Line.of(config.root, "main"), World()
    run(config, line, world, day_of(0))
    with lease_file.lease(line, "the stopped one", 60.0) as stopped:
        mine = DayJob(config, line, SmallWork(line, world), day_of(1), stopped, Accepted())
        mine.work.train(day_of(1), stopped)
        line.take("the second one")  # as whoever takes the lease does
        with pytest.raises(DataError, match=r"this run no longer holds .*: another has taken it over"):
            mine.publish()
        assert history(line)[-1][0] == day_of(0)
        assert Ledger(line).generations(day_of(1)) == []


def test_a_process_that_is_stopped_past_its_lease(tmp_path: Path) -> None:
    """Catches two processes that publish one day: the first is stopped in its training, taken over, and wakes up."""
    config = config_of(tmp_path, lease_s=1.0)
    line, world = Line.of(config.root, "main"), World()
    run(config, line, world, day_of(0))
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    arguments = [sys.executable, __file__, str(tmp_path)]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True, env=environment) as first:
        try:
            assert first.stdout is not None
            assert first.stdout.readline() == "training\n"
            first.send_signal(signal.SIGSTOP)
            assert run(config, line, world, day_of(1))["result"] == "published"  # after a lease of silence
            found = history(line)
            first.send_signal(signal.SIGCONT)
            said, _ = first.communicate(timeout=400)
        finally:
            first.kill()
    assert "no longer holds" in said
    assert history(line) == found
    assert len(Ledger(line).generations(day_of(1))) == 1


def _train_slowly(root: str) -> None:
    """The second day, by a process that can be stopped while it trains."""

    class Slow(SmallWork):
        def train(self, day: str, run: str) -> Manifest:
            sys.stdout.write("training\n")
            sys.stdout.flush()
            time.sleep(2)
            return super().train(day, run)

    config = config_of(Path(root), lease_s=1.0)
    line = Line.of(config.root, "main")
    try:
        run_days(config, line, Slow(line, World()), [day_of(1)], 7, Accepted())
    except DataError as error:
        sys.stdout.write(f"{error}\n")


def test_silence_is_what_makes_a_holder_dead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a lease that believes a clock: one set back keeps a dead holder, one set forward kills a living one."""
    line = Line.of(str(tmp_path), "main")
    be_another_process(monkeypatch.setattr, host="another machine")
    monkeypatch.setattr("time.time", lambda: 0.0)  # nothing may ask it
    holder = lease_file.lease(line, "a living one", 0.5)
    holder.__enter__()
    with pytest.raises(DataError, match=r"is held by a living one \(process \d+ on another machine\): wait"):
        lease_file.lease(line, "second", 0.5).__enter__()
    record = line.storage.read("LEASE")
    holder.__exit__(None, None, None)
    line.storage.write("LEASE", record)  # as one that died left it
    with lease_file.lease(line, "third", 0.5):
        assert json.loads(line.storage.read("LEASE"))["what"] == "third"


def test_dead_holders_are_waited_for_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a start that waits a lease for each line of a job that died with many: an hour for a comparison."""
    elsewhere = lease_file.this_process().model_copy(update={"host": "another machine"})
    lines = [Line.of(str(tmp_path), name) for name in "abc"]
    for line in lines:
        line.storage.write("LEASE", LeaseRecord(run="gone", what="one", process=elsewhere).to_bytes())
    clock = [0.0]
    monkeypatch.setattr(lease_file.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(lease_file.time, "sleep", lambda seconds: clock.append(clock.pop() + seconds))
    with lease_file.leases(lines, "another", 60.0) as runs:
        assert len(set(runs)) == 3
        assert [json.loads(line.storage.read("LEASE"))["run"] for line in lines] == runs
    assert 60 < clock[0] < 70
    living = LeaseRecord(run="lives", what="a living one", process=elsewhere, beat=1)
    lines[1].storage.write("LEASE", living.to_bytes())
    beat = living.model_copy(update={"beat": 2}).to_bytes()
    monkeypatch.setattr(lease_file.time, "sleep", lambda _: lines[1].storage.write("LEASE", beat))
    with pytest.raises(DataError, match=r"lines/b is held by a living one \(process \d+ on another machine\): wait"):
        lease_file.leases(lines, "a third", 60.0).__enter__()
    assert ["released" in json.loads(line.storage.read("LEASE")) for line in lines] == [True, False, True]


if __name__ == "__main__":
    _train_slowly(sys.argv[1])
