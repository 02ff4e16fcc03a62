"""Schedule of a line: each tick of the launcher against a Kubernetes API, for every way in which a job can end."""

import threading
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from kubernetes_server import KubernetesServer, api, cluster
from manifests import allowed
from scheduled_lines import Scheduled, webhook
from small_daily import FIRST, World, day_of, killable, train_first_days

from features.errors import ConfigError
from pipeline.lineage.lease import lease, this_process
from pipeline.lineage.manual_moves import rollback
from pipeline.submission.job_record import JobRecord, Recorder, record_url
from pipeline.submission.schedule import due_day
from pipeline.submission.submit import records_of

__all__ = ["api", "cluster", "killable", "webhook"]  # fixtures
SECOND = day_of(1)


@pytest.fixture
def scheduled(tmp_path: Path, cluster: KubernetesServer, killable: World) -> Scheduled:
    line = Scheduled(tmp_path, cluster, killable)
    for number in range(3):
        line.write_log(day_of(number))
    return line


@pytest.fixture
def lively(tmp_path: Path, cluster: KubernetesServer) -> Scheduled:
    """A line whose jobs are of this process, so that their lease counts as held."""
    line = Scheduled(tmp_path, cluster)
    line.write_log(FIRST)
    return line


def name_of(scheduled: Scheduled, day: str, number: int) -> str:
    return scheduled.job_of(day).submission(number)


def test_days_one_after_the_other(scheduled: Scheduled) -> None:
    """Catches a schedule that creates a day before the one before it is published, or twice."""
    for number in range(2):
        day = day_of(number)
        first = name_of(scheduled, day, 1)
        assert scheduled.tick(SECOND).what == "create"
        assert scheduled.living() == [first]
        assert scheduled.tick(SECOND).what == "running"
        assert scheduled.run_job(first) == 0
    assert scheduled.tick(SECOND).what == "nothing"
    assert scheduled.published() == [FIRST, SECOND]
    assert len(scheduled.server.names()) == 2


def test_a_log_that_is_not_there_yet(scheduled: Scheduled) -> None:
    """Catches a job that is created for a day without a log, or a tick that waits for one."""
    for number in range(3):
        scheduled.tick(day_of(4))
        scheduled.run_job(name_of(scheduled, day_of(number), 1))
    decision = scheduled.tick(day_of(4))
    assert (decision.what, decision.day, decision.text) == ("waiting", day_of(3), f"{day_of(3)} has no log yet")
    assert len(scheduled.server.names()) == 3
    marked = {"preflight": scheduled.config.daily.preflight.model_copy(update={"success_marker": True})}
    daily = scheduled.config.daily.model_copy(update=marked)
    scheduled.config = scheduled.config.model_copy(update={"daily": daily})
    scheduled.write_log(day_of(3))
    assert "_SUCCESS" in scheduled.tick(day_of(4)).text
    (scheduled.root / f"logs/dt={day_of(3)}/_SUCCESS").touch()
    assert scheduled.tick(day_of(4)).what == "create"


def test_a_killed_job_is_submitted_again(scheduled: Scheduled) -> None:
    """Catches a day that stays undone after its pod was lost, and one that is begun from nothing."""
    scheduled.tick(FIRST)
    assert scheduled.run_job(name_of(scheduled, FIRST, 1), kill_at=12) is None
    decision = scheduled.tick(FIRST)
    assert (decision.what, decision.number) == ("create", 2)
    assert scheduled.run_job(name_of(scheduled, FIRST, 2)) == 0
    assert scheduled.tick(FIRST).what == "nothing"


def test_the_limit_of_submissions(scheduled: Scheduled, webhook: list[dict[str, str]]) -> None:
    """Catches a schedule that starts a cluster every half hour for ever, and one that fails without a word."""
    for number in (1, 2):
        assert scheduled.tick(FIRST, submissions=2).number == number
        scheduled.run_job(name_of(scheduled, FIRST, number), kill_at=1)
    for _ in range(2):
        assert scheduled.tick(FIRST, submissions=2).what == "failed"
    assert len(scheduled.server.names()) == 2
    assert len(scheduled.server.names("events")) == 1
    assert [said["step"] for said in webhook] == ["launch"]
    assert "2 submissions have failed" in webhook[0]["text"]
    assert scheduled.tick(FIRST, submissions=2, again=True).number == 3


def test_a_refused_day_waits_for_a_person(scheduled: Scheduled, webhook: list[dict[str, str]]) -> None:
    """Catches a retry after exit code 3, and later days that are trained over a refused one."""
    train_first_days(scheduled.config, scheduled.world, 4)
    bad, last = day_of(4), day_of(5)
    scheduled.world.anomalous = {bad}
    for day in (bad, last):
        scheduled.write_log(day)
    scheduled.tick(last)
    assert scheduled.run_job(name_of(scheduled, bad, 1)) == 3
    for _ in range(3):
        decision = scheduled.tick(last)
        assert (decision.what, decision.day, decision.number) == ("stopped", bad, 1)
    assert "refused by preflight" in decision.text
    (event,) = scheduled.server.names("events")
    assert "refused by preflight" in scheduled.server.read(event, "events")["message"]
    assert [said["step"] for said in webhook] == ["preflight", "launch"]
    scheduled.tick(last, again=True)
    assert scheduled.run_job(name_of(scheduled, bad, 2), anomaly="a holiday") == 0
    assert scheduled.tick(last).day == last


def test_an_object_that_the_operator_refuses(scheduled: Scheduled) -> None:
    """Catches ValidationFailed, which never changes, taken for a job that will run or may be tried again."""
    scheduled.tick(FIRST)
    scheduled.server.set_status(name_of(scheduled, FIRST, 1), "ValidationFailed", message="bad spec")
    decision = scheduled.tick(FIRST)
    assert decision.what == "stopped"
    assert "bad spec" in decision.text


def test_stopped_by_hand(scheduled: Scheduled) -> None:
    """Catches Complete taken for success: a job that was stopped ends so, too."""
    scheduled.tick(FIRST)
    scheduled.server.set_status(name_of(scheduled, FIRST, 1), "Complete", "STOPPED")
    assert (scheduled.tick(FIRST).number, scheduled.published()) == (2, [])


def test_deadline_exceeded_with_a_living_job(lively: Scheduled) -> None:
    """Catches a second training beside the first one's pods, which live on after DeadlineExceeded."""
    lively.tick(FIRST)
    first = name_of(lively, FIRST, 1)
    lively.server.set_status(first, "Failed", "RUNNING", reason="DeadlineExceeded")
    with lease(lively.line, "jobs.daily in the old pod", 0.3):
        decision = lively.tick(FIRST)
        assert decision.what == "waiting"
        assert "jobs.daily in the old pod" in decision.text
        assert lively.server.names() == [first]
    assert (lively.tick(FIRST).what, len(lively.server.names())) == ("create", 2)


def test_a_line_that_is_held_is_no_failure(lively: Scheduled) -> None:
    """Catches exit code 3 of a job that found the line held, taken for a refusal of the day."""
    lively.tick(FIRST)
    with lease(lively.line, "a person's training", 0.3):
        assert lively.run_job(name_of(lively, FIRST, 1)) == 3
    decision = lively.tick(FIRST, submissions=1)
    assert (decision.what, decision.number) == ("create", 2)


def test_a_rayjob_that_was_deleted(scheduled: Scheduled) -> None:
    """Catches a name that is used again after its command ran, and a day that is forgotten."""
    scheduled.tick(FIRST)
    first = name_of(scheduled, FIRST, 1)
    scheduled.server.remove(first)  # before it began: as if it had never been
    assert scheduled.tick(FIRST).number == 1
    scheduled.run_job(first, kill_at=3)
    scheduled.server.remove(first)
    assert scheduled.tick(FIRST).number == 2


def test_an_end_that_is_not_recorded(scheduled: Scheduled) -> None:
    """Catches a published day that is trained again since the record of its job's end was lost."""
    scheduled.tick(SECOND)
    scheduled.run_job(name_of(scheduled, FIRST, 1), records_end=False)
    assert scheduled.tick(SECOND).day == SECOND


def test_a_person_moves_latest_back(scheduled: Scheduled) -> None:
    """Catches a schedule that trains a day again at once after a person took its model back."""
    for number in range(2):
        scheduled.tick(SECOND)
        scheduled.run_job(name_of(scheduled, day_of(number), 1))
    rollback(scheduled.config, scheduled.line, FIRST, "a bad model")
    decision = scheduled.tick(SECOND)
    assert (decision.what, decision.day) == ("stopped", SECOND)
    assert "moved LATEST back" in decision.text
    scheduled.tick(SECOND, again=True)
    assert scheduled.run_job(name_of(scheduled, SECOND, 2)) == 0
    assert scheduled.tick(SECOND).what == "nothing"


def test_several_days_are_taken_back(scheduled: Scheduled) -> None:
    """Catches a line that stops at every day after a rollback, although a person has let it go on."""
    for number in range(3):
        scheduled.tick(day_of(2))
        scheduled.run_job(name_of(scheduled, day_of(number), 1))
    rollback(scheduled.config, scheduled.line, FIRST, "a bad model")
    assert scheduled.tick(day_of(2)).what == "stopped"
    scheduled.tick(day_of(2), again=True)
    scheduled.run_job(name_of(scheduled, SECOND, 2))
    decision = scheduled.tick(day_of(2))
    assert (decision.what, decision.day, decision.number) == ("create", day_of(2), 2)


def test_a_day_that_is_published_during_the_tick(scheduled: Scheduled, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a job that ends while a tick looks: its record says done, and LATEST was read before."""
    scheduled.tick(SECOND)
    name, ended = name_of(scheduled, FIRST, 1), []

    def records(root: str, job_name: str) -> dict[int, JobRecord]:
        if not ended:
            ended.append(scheduled.run_job(name))
        return records_of(root, job_name)

    monkeypatch.setattr("pipeline.submission.launcher.records_of", records)
    scheduled.server.set_status(name, "Complete", "SUCCEEDED")
    decision = scheduled.tick(SECOND)
    assert (decision.what, decision.day) == ("create", SECOND)


def test_an_acceptance_is_not_forgotten(scheduled: Scheduled) -> None:
    """Catches a day that a person wanted skipped or accepted, and that the schedule trains with other arguments."""
    job = scheduled.job_of(FIRST)
    by_hand = type(job)("daily", (*job.words, "--skip-day", "no reason"), job.config, "main", (FIRST,))
    assert scheduled.launcher()._place.start(by_hand, 1)
    scheduled.server.set_status(by_hand.submission(1), "Failed", "FAILED")
    decision = scheduled.tick(FIRST)
    assert (decision.what, len(scheduled.server.names())) == ("stopped", 1)
    assert "by hand with --skip-day" in decision.text


@pytest.mark.parametrize("said", [{"other_code": True, "error": "x"}, {"held_by": "another run"}])
def test_refusals_that_say_nothing_of_the_day(scheduled: Scheduled, said: dict[str, Any]) -> None:
    """Catches a line that a laptop with another checkout, or an overtaken run, stops."""
    scheduled.tick(FIRST)
    name = name_of(scheduled, FIRST, 1)
    recorder = Recorder(record_url(str(scheduled.root), name), this_process())
    recorder.begin("daily")
    recorder.end(2, said)
    scheduled.server.set_status(name, "Failed", "FAILED")
    assert scheduled.tick(FIRST).number == 2


def test_an_api_that_takes_no_events(scheduled: Scheduled, webhook: list[dict[str, str]]) -> None:
    """Catches an alarm that is lost since another way of giving it failed."""
    scheduled.tick(FIRST)
    scheduled.server.set_status(name_of(scheduled, FIRST, 1), "ValidationFailed")
    scheduled.server.refuse = lambda content: "no events" if content["kind"] == "Event" else None
    assert scheduled.tick(FIRST).what == "stopped"
    assert len(webhook) == 1


def test_a_lease_that_no_tick_can_wait_for(scheduled: Scheduled) -> None:
    """Catches a line that stands still after a crash: every tick ends before the dead lease does."""
    daily = scheduled.config.daily.model_copy(update={"lease_s": 3600.0})
    scheduled.config = scheduled.config.model_copy(update={"daily": daily})
    with pytest.raises(ConfigError, match=r"daily\.lease_s is 3600"):
        scheduled.tick(FIRST)


def test_an_operator_that_is_down(scheduled: Scheduled) -> None:
    """Catches a second RayJob for a day since nobody looks at the first."""
    scheduled.tick(FIRST)
    for _ in range(5):
        decision = scheduled.tick(FIRST)
        assert decision.what == "running"
        assert "the operator has not looked at it since" in decision.text
    scheduled.run_job(name_of(scheduled, FIRST, 1))
    assert scheduled.tick(FIRST).what == "nothing"


def test_racing_launchers(scheduled: Scheduled) -> None:
    """Catches two launchers that create a RayJob each: of the same day, or of the next after the same end."""
    for number in (1, 2):
        start = threading.Barrier(6)
        decisions = []

        def tick(start: threading.Barrier = start, decisions: list[str] = decisions) -> None:
            start.wait()
            decisions.append(scheduled.tick(FIRST).what)

        threads = [threading.Thread(target=tick) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert decisions.count("create") == 1
        assert set(decisions) <= {"create", "running"}
        assert scheduled.living() == [name_of(scheduled, FIRST, number)]
        scheduled.run_job(name_of(scheduled, FIRST, number), kill_at=1)


def test_the_line_s_other_jobs(scheduled: Scheduled) -> None:
    """Catches a daily job beside a training of the same line that a person has submitted."""
    job = scheduled.job_of(FIRST)
    by_hand = type(job)("train", ("--config", "x", "--days", FIRST), job.config, "main")
    place = scheduled.launcher()._place
    assert place.start(by_hand, 1)
    assert scheduled.tick(FIRST).what == "running"
    assert scheduled.server.names() == [by_hand.submission(1)]


def test_old_rayjobs_are_deleted(scheduled: Scheduled, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a namespace that fills with ended RayJobs, and a deletion of one that the schedule still needs."""
    monkeypatch.setattr("pipeline.submission.launcher._KEPT", 1)
    for number in range(3):
        scheduled.tick(day_of(2))
        scheduled.run_job(name_of(scheduled, day_of(number), 1))
    scheduled.tick(day_of(2))
    assert scheduled.server.names() == [name_of(scheduled, day_of(2), 1)]


def test_the_rights_of_the_launcher(scheduled: Scheduled, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a Role that lacks what a tick asks for, or that allows more."""
    monkeypatch.setattr("pipeline.submission.launcher._KEPT", 1)
    for number in range(2):
        scheduled.tick(day_of(2))
        scheduled.run_job(name_of(scheduled, day_of(number), 1))
    scheduled.tick(day_of(2))
    scheduled.server.set_status(name_of(scheduled, day_of(2), 1), "ValidationFailed")
    scheduled.tick(day_of(2))
    assert set(scheduled.server.calls) == allowed("counterpoise-launcher")


def test_the_day_that_is_due() -> None:
    """Catches a day that is taken from the clock of the pod and not from the log's time zone."""
    evening = datetime(2026, 3, 9, 17, 30, tzinfo=UTC)  # 01:30 on the 10th in Shanghai
    assert due_day(evening, "Etc/UTC", 1) == "2026-03-08"
    assert due_day(evening, "Asia/Shanghai", 1) == "2026-03-09"
    with pytest.raises(ConfigError, match=r"'Mars/Base' is no IANA time zone"):
        due_day(evening, "Mars/Base", 1)
