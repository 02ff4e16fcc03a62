"""Launcher under any sequence of failures: a date is published at most once, in order, and every tick ends."""

import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from kubernetes_server import Fault, KubernetesServer
from scheduled_lines import Scheduled
from small_daily import World, day_of, history, kill_at_writes

from pipeline.submission import kubernetes_api
from pipeline.submission.kubernetes_api import API_VARIABLE

_DAYS = 4
_ENDS = [("Complete", "STOPPED"), ("Failed", "RUNNING"), ("Failed", "FAILED"), ("ValidationFailed", None)]


class Schedule(RuleBasedStateMachine):
    """A schedule whose jobs, operator, API server and launcher fail in any order."""

    @initialize()
    def begin(self) -> None:
        self.patch = pytest.MonkeyPatch()
        self.folder = tempfile.TemporaryDirectory()
        self.server = KubernetesServer()
        self.patch.setenv(API_VARIABLE, self.server.url)
        self.patch.setattr(kubernetes_api, "_PAUSES_S", (0.0, 0.001, 0.001))
        world = World()
        kill_at_writes(world, self.patch)
        self.scheduled = Scheduled(Path(self.folder.name), self.server, world)
        self.logs = 0

    def teardown(self) -> None:
        if hasattr(self, "server"):
            self.server.close()
            self.patch.undo()
            self.folder.cleanup()

    @precondition(lambda self: self.logs < _DAYS)
    @rule()
    def a_log_arrives(self) -> None:
        self.scheduled.write_log(day_of(self.logs))
        self.logs += 1

    @rule(again=st.booleans(), faults=st.lists(st.sampled_from([429, 500, 0]), max_size=2), after=st.booleans())
    def tick(self, again: bool, faults: list[int], after: bool) -> None:
        self.server.faults = [Fault(status, after=after) for status in faults]
        self.scheduled.tick(day_of(_DAYS - 1), again=again)
        self.server.faults = []

    @precondition(lambda self: self.scheduled.living())
    @rule(kill_at=st.none() | st.integers(1, 40), records_end=st.booleans())
    def a_job_runs(self, kill_at: int | None, records_end: bool) -> None:
        self.scheduled.run_job(self.scheduled.living()[0], kill_at=kill_at, records_end=records_end)

    @precondition(lambda self: self.server.names())
    @rule(data=st.data(), kill_at=st.none() | st.integers(1, 40))
    def an_old_pod_runs_on(self, data: st.DataObject, kill_at: int | None) -> None:
        """Run the command of any RayJob, ended ones too, and leave its status as it is."""
        name = data.draw(st.sampled_from(self.server.names()))
        status = self.server.read(name).get("status", {})
        self.scheduled.run_job(name, kill_at=kill_at, records_end=data.draw(st.booleans()))
        if status:
            self.server.set_status(name, status["jobDeploymentStatus"], status.get("jobStatus"))

    @precondition(lambda self: self.scheduled.living())
    @rule(end=st.sampled_from(_ENDS))
    def a_job_ends_without_its_command(self, end: tuple[str, str | None]) -> None:
        self.server.set_status(self.scheduled.living()[0], *end)

    @precondition(lambda self: self.server.names())
    @rule(data=st.data())
    def a_rayjob_is_deleted_by_hand(self, data: st.DataObject) -> None:
        self.server.remove(data.draw(st.sampled_from(self.server.names())))

    @invariant()
    def each_day_once_and_in_order(self) -> None:
        if hasattr(self, "scheduled"):
            found = [(day, generation) for day, generation, _ in history(self.scheduled.line)]
            assert found == [(day_of(number), 1) for number in range(len(found))]

    @invariant()
    def one_at_a_time(self) -> None:
        if hasattr(self, "scheduled"):
            assert len(self.scheduled.living()) <= 1


def test_any_sequence_of_failures() -> None:
    """Catches a date that is published twice or out of order, two trainings at once, and a tick that does not end."""
    shape = settings(max_examples=12, stateful_step_count=25, deadline=None, suppress_health_check=list(HealthCheck))
    run_state_machine_as_test(Schedule, settings=shape)


def test_a_schedule_comes_to_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a schedule that stands still after a failure, although nothing is left in its way."""
    server = KubernetesServer()
    monkeypatch.setenv(API_VARIABLE, server.url)
    world = World()
    kill_at_writes(world, monkeypatch)
    scheduled = Scheduled(tmp_path, server, world)
    for number in range(_DAYS):
        scheduled.write_log(day_of(number))
    for kill_at in (3, 12, None, 20, None, 7, None, 30, None):
        scheduled.tick(day_of(_DAYS - 1))
        for name in scheduled.living():
            scheduled.run_job(name, kill_at=kill_at)
    assert scheduled.published() == [day_of(number) for number in range(_DAYS)]
    assert scheduled.tick(day_of(_DAYS - 1)).what == "nothing"
    server.close()
