"""The launcher's command: its ticks, exit codes and refusals, for a line and for days that depend on no other."""

import argparse
import json
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml
from kubernetes_server import NAMESPACE, KubernetesServer, api, cluster
from scheduled_lines import template

from jobs import launch
from jobs.command import outcome
from jobs.submitted import job_of
from pipeline.lineage.lease import this_process
from pipeline.submission.attempts import Tried
from pipeline.submission.each_day import decide_each
from pipeline.submission.job_record import Recorder, record_url

__all__ = ["api", "cluster"]  # fixtures
DAYS = [f"2026-11-0{number}" for number in range(1, 6)]


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    """A configuration and a template whose root and logs are on a claim."""
    content = yaml.safe_load((Path(__file__).parents[1] / "jobs/configs/demo.yaml").read_text())
    content |= {"root": str(tmp_path / "root"), "logs": {"path": str(tmp_path / "logs")}}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(content))
    (tmp_path / "rayjob.yaml").write_text(yaml.safe_dump(template(tmp_path)))
    return tmp_path / "config.yaml", tmp_path / "rayjob.yaml"


def call(files: tuple[Path, Path], *words: str) -> tuple[dict[str, Any], int]:
    """Run the command in this process; return its figures and its exit code."""
    parser = argparse.ArgumentParser()
    launch.add_arguments(parser)
    common = ["--config", str(files[0]), "--template", str(files[1]), "--namespace", NAMESPACE]
    return outcome(launch.run, parser.parse_args([*common, *words]))


def end(files: tuple[Path, Path], cluster: KubernetesServer, name: str, code: int) -> None:
    root = yaml.safe_load(files[0].read_text())["root"]
    recorder = Recorder(record_url(root, name), this_process())
    recorder.begin("backfill")
    recorder.end(code, {"error": "no reason"})
    cluster.set_status(name, "Complete" if code == 0 else "Failed", "SUCCEEDED" if code == 0 else "FAILED")


def test_a_tick_of_a_line(files: tuple[Path, Path], cluster: KubernetesServer, tmp_path: Path) -> None:
    """Catches a configuration of a person's machine that the created job does not have, and a wrong exit code."""
    yesterday = (date.today() - timedelta(days=1)).isoformat()
    line = ["--first-day", yesterday, "--lag-days", "1"]
    said, code = call(files, *line)
    assert (said["result"], said["day"], code) == ("waiting", yesterday, 0)
    (tmp_path / f"logs/dt={yesterday}").mkdir(parents=True)
    (tmp_path / f"logs/dt={yesterday}/a.parquet").touch()
    assert call(files, *line)[0]["result"] == "create"
    (config_map,) = cluster.names("configmaps")
    assert cluster.read(config_map, "configmaps")["data"]["config.yaml"] == files[0].read_text()
    (name,) = cluster.names()
    end(files, cluster, name, 3)
    said, code = call(files, *line)
    assert (said["result"], code) == ("stopped", 3)
    assert "--again REASON" in said["error"]
    for number in (2, 3):
        assert call(files, *line, "--again", "a try")[0]["result"] == "create"
        end(files, cluster, name.replace("-r1", f"-r{number}"), 1)
    said, code = call(files, *line, "--submissions", "2")
    assert code == 1
    assert "3 submissions have failed" in said["error"] or "2 submissions have failed" in said["error"]


def test_days_that_depend_on_no_other(files: tuple[Path, Path], cluster: KubernetesServer) -> None:
    """Catches more jobs at once than are wanted, one that is forgotten, and a failed day that stops the others."""
    asked = ["--command", "backfill", "--days", f"{DAYS[0]}..{DAYS[3]}", "--at-most", "2", "--", "--lag", "1..3"]
    assert call(files, *asked)[0]["days"] == {"create": 2, "waiting": 2}
    names = [job_of("backfill", ["--config", str(files[0]), "--days", day, "--lag", "1..3"])[0].name for day in DAYS]
    assert cluster.names() == sorted(f"{name}-r1" for name in names[:2])
    assert call(files, *asked)[0]["days"] == {"running": 2, "waiting": 2}
    end(files, cluster, f"{names[0]}-r1", 2)
    end(files, cluster, f"{names[1]}-r1", 0)
    said, code = call(files, *asked)
    assert (said["days"], code) == ({"stopped": 1, "nothing": 1, "create": 2}, 3)
    for name in names[2:4]:
        end(files, cluster, f"{name}-r1", 0)
    assert call(files, *asked[:6], "--again", "mended", *asked[6:])[0]["days"] == {"create": 1, "nothing": 3}
    end(files, cluster, f"{names[0]}-r2", 0)
    said, code = call(files, *asked)
    assert (said["result"], code) == ("nothing", 0)
    entrypoint = cluster.read(f"{names[0]}-r2")["spec"]["entrypoint"]
    assert f"--days {DAYS[0]} --lag 1..3" in entrypoint
    json.dumps(said)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "a line needs --first-day"),
        (["--first-day", DAYS[0], "--days", DAYS[0]], "takes no --days"),
        (["--command", "backfill"], "needs --days"),
        (["--first-day", DAYS[0], "--submissions", "0"], "--submissions is 0"),
        (["--first-day", DAYS[0], "--lag-days", "-1"], "--lag-days is -1"),
        (["--first-day", "yesterday"], "yesterday"),
        (["--first-day", DAYS[0], "--time-zone", "here"], "no IANA time zone"),
        (["--command", "backfill", "--days", DAYS[0], "--", "--lgg", "1"], "unrecognized arguments"),
    ],
)
def test_arguments_that_are_refused(
    files: tuple[Path, Path], cluster: KubernetesServer, words: list[str], said: str
) -> None:
    """Catches a tick that begins with arguments that mean nothing."""
    figures, code = call(files, *words)
    assert (code, said in figures["error"]) == (2, True), figures
    assert [verb for verb, _ in cluster.calls if verb == "create"] == []


def test_the_order_and_the_number_of_independent_days() -> None:
    """Catches a limit that counts the jobs of this tick only, or those that have ended."""
    tried = {
        DAYS[0]: [Tried(1, "retry", "")],
        DAYS[1]: [Tried(1, "living", "")],
        DAYS[2]: [Tried(1, "done", "")],
        DAYS[3]: [],
        DAYS[4]: [Tried(number, "retry", "") for number in (1, 2, 3)],
    }
    found = decide_each(tried, 2, 3)
    assert [one.what for one in found] == ["create", "running", "nothing", "waiting", "failed"]
    assert found[0].number == 2
