"""Submission to Kubernetes: what is created, attached to, followed, refused, and asked of the API server."""

import argparse
import json
import os
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from kubernetes_server import NAMESPACE, Fault, KubernetesServer, api, cluster
from manifests import allowed
from scheduled_lines import TEMPLATE

from features.errors import ConfigError, DataError
from jobs import submit
from jobs.submitted import job_of
from pipeline.lineage.lease import this_process
from pipeline.submission import kubernetes_api
from pipeline.submission.job_record import Recorder, record_url
from pipeline.submission.rayjob import worker_gb

__all__ = ["api", "cluster"]  # fixtures
PROJECT = Path(__file__).parents[1]
DAY = "2026-11-01"


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kubernetes_api, "_PAUSES_S", (0.01, 0.02, 0.04))


@pytest.fixture
def config(tmp_path: Path, s3_root: str) -> Path:
    """The configuration of the demo, with its root and its logs on S3."""
    content = yaml.safe_load((PROJECT / "jobs/configs/demo.yaml").read_text())
    content |= {"root": f"{s3_root}/{tmp_path.name}", "logs": {"path": f"{s3_root}/logs"}}
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(content))
    return file


def call(config: Path, *options: str, day: str = DAY, more: tuple[str, ...] = ()) -> dict[str, Any]:
    """Run the command in this process."""
    parser = argparse.ArgumentParser()
    submit.add_arguments(parser)
    where = ["--where", "kubernetes", "--template", str(TEMPLATE), "--namespace", NAMESPACE]
    words = ["--", "daily", "--config", str(config), "--day", day, *more]
    return submit.run(parser.parse_args([*where, *options, *words]))


def test_what_is_created(config: Path, cluster: KubernetesServer) -> None:
    """Catches a configuration that does not reach the cluster, or a secret that does in plain sight."""
    dry = call(config, "--dry-run")["manifest"]["items"]
    assert cluster.calls == []
    said = call(config, more=("--accept-gate", "a reason"))
    assert said["result"] == "submitted"
    assert cluster.names() == [said["submission"]]
    (config_map,) = cluster.names("configmaps")
    created = cluster.read(said["submission"])
    head = created["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]
    assert [volume["configMap"]["name"] for volume in head["volumes"] if volume["name"] == "run-config"] == [config_map]
    assert cluster.read(config_map, "configmaps")["data"]["config.yaml"] == config.read_text()
    assert [item["metadata"]["name"] for item in dry] == [config_map, said["submission"]]
    everything = json.dumps([created, cluster.read(config_map, "configmaps"), said])
    assert os.environ["AWS_SECRET_ACCESS_KEY"] not in everything


def test_a_changed_file_is_another_config_map(config: Path, cluster: KubernetesServer) -> None:
    """Catches a run with the text of an earlier file that meant the same only together with --set."""
    first = call(config, more=("--set", "seed=77"))["submission"]
    cluster.set_status(first, "Complete", "SUCCEEDED")
    content = yaml.safe_load(config.read_text()) | {"seed": 77}
    config.write_text(yaml.safe_dump(content))
    call(config)
    texts = [cluster.read(name, "configmaps")["data"]["config.yaml"] for name in cluster.names("configmaps")]
    assert len(texts) == 2
    assert config.read_text() in texts


def test_a_job_is_followed_to_its_end(
    config: Path, cluster: KubernetesServer, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Catches an exit code of the RayJob, which has none, a lost log, and a follower that a busy API ends."""
    monkeypatch.setenv("RAY_AUTH_TOKEN", "planted")
    job = job_of("daily", ["--config", str(config), "--day", DAY])[0]
    name = job.submission(1)
    ended = {"job": "daily", "exit_code": 3, "error": "refused by the gate"}

    def operator() -> None:
        while name not in cluster.names():
            time.sleep(0.05)
        cluster.set_status(name, "Initializing")
        cluster.faults = [Fault(0, "watch"), Fault(503, "get"), Fault(0, "get", after=True)]
        recorder = Recorder(record_url(job.config.root, name), this_process())
        recorder.begin("daily")
        cluster.services[f"{name}-head-svc:8265/proxy/api/jobs/{name}-abcde/logs"] = json.dumps({"logs": "line 1\n"})
        cluster.set_status(name, "Running", "RUNNING", jobId=f"{name}-abcde")
        time.sleep(1)
        cluster.services[f"{name}-head-svc:8265/proxy/api/jobs/{name}-abcde/logs"] = json.dumps(
            {"logs": "line 1\nline 2\n"}
        )
        recorder.end(3, ended)
        cluster.set_status(name, "Failed", "FAILED")

    thread = threading.Thread(target=operator)
    thread.start()
    said = call(config, "--wait")
    thread.join()
    assert (said["exit_code"], said["line"]) == (3, ended)
    shown = capfd.readouterr().err
    assert shown.count("line 1") == shown.count("line 2") == 1
    assert "planted" not in shown + json.dumps(said)
    assert any(headers.get("X-Ray-Authorization") == "Bearer planted" for headers in cluster.requests)


def test_a_living_job_is_attached_to(config: Path, cluster: KubernetesServer) -> None:
    """Catches a second RayJob for a day that is being trained, and one with another configuration taken for it."""
    first = call(config)
    assert call(config)["result"] == "attached"
    assert cluster.names() == [first["submission"]]
    with pytest.raises(DataError, match="runs with other arguments"):
        call(config, more=("--set", "seed=5"))
    with pytest.raises(DataError, match="runs with other arguments"):
        call(config, more=("--skip-day", "a reason"))
    cluster.set_status(first["submission"], "Complete", "SUCCEEDED")
    assert call(config)["submission"].endswith("-r2")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"root": "/data/root"}, r"root is '/data/root', and no persistent volume is mounted there"),
        ({"logs": {"path": "logs"}}, r"logs.path is 'logs', and no persistent volume"),
        ({"daily": {"on_refusal": {"webhook": "https://example.com/planted"}}}, "webhook is a secret"),
    ],
)
def test_what_cannot_run_there(config: Path, cluster: KubernetesServer, change: dict[str, Any], said: str) -> None:
    """Catches a root that is lost with its pod, and a secret in a ConfigMap."""
    config.write_text(yaml.safe_dump(yaml.safe_load(config.read_text()) | change))
    with pytest.raises(ConfigError, match=said) as refused:
        call(config)
    assert "planted" not in str(refused.value)
    assert [verb for verb, _ in cluster.calls if verb == "create"] == []


def test_a_template_that_would_hang(config: Path, cluster: KubernetesServer, tmp_path: Path) -> None:
    """Catches a RayJob that the API server takes and that never ends."""
    changed = yaml.safe_load(TEMPLATE.read_text())
    del changed["spec"]["activeDeadlineSeconds"]
    (tmp_path / "template.yaml").write_text(yaml.safe_dump(changed))
    with pytest.raises(ConfigError, match="activeDeadlineSeconds"):
        call(config, "--template", str(tmp_path / "template.yaml"))
    assert cluster.names() == []


def test_a_model_that_does_not_fit(config: Path, cluster: KubernetesServer, tmp_path: Path) -> None:
    """Catches a cluster that is paid for to learn that the tables do not fit it."""
    with pytest.raises(DataError, match="does not fit"):
        call(config, "--ram-gb", "0.001")
    small = yaml.safe_load(TEMPLATE.read_text())
    for group in small["spec"]["rayClusterSpec"]["workerGroupSpecs"]:
        limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
        limits |= {"memory": "64Gi"} if group["groupName"] == "data" else {"memory": "1Mi"}
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(small))
    with pytest.raises(DataError, match="does not fit"):
        call(config, "--template", str(tmp_path / "small.yaml"))
    assert cluster.calls == []
    assert worker_gb(yaml.safe_load(TEMPLATE.read_text()), 8) == 4 * 64 * 2**30 / 8 / 1e9


def test_the_overlays_render_for_a_submission(config: Path, cluster: KubernetesServer) -> None:
    """Catches an overlay whose RayJob the command refuses."""
    parser = argparse.ArgumentParser()
    submit.add_arguments(parser)
    for overlay in ("dev", "prod-cpu", "prod-gpu"):
        words = ["--dry-run", "--", "daily", "--config", str(config), "--day", DAY]
        where = ["--where", "kubernetes", "--overlay", str(PROJECT / "k8s/overlays" / overlay), "--namespace", "x"]
        made = submit.run(parser.parse_args([*where, *words]))["manifest"]["items"]
        assert [item["kind"] for item in made] == ["ConfigMap", "RayJob"]


def test_the_rights_of_a_submitter(config: Path, cluster: KubernetesServer) -> None:
    """Catches a Role that lacks what the command asks for, or that allows more."""
    name = call(config)["submission"]
    cluster.set_status(name, "Running", "RUNNING", jobId="x")
    threading.Timer(2, lambda: cluster.set_status(name, "Complete", "STOPPED")).start()
    call(config, "--wait")
    assert set(cluster.calls) == allowed("counterpoise-submitter")
