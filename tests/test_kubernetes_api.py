"""Client of the Kubernetes API: names that exist, pages, watches that break off, an API server that is busy or away."""

import json
import threading
import time
import uuid
from pathlib import Path
from typing import Any

import pytest
import yaml
from kubernetes_server import NAMESPACE, Fault, KubernetesServer, any_api, api, cluster
from scheduled_lines import template

from features.errors import ConfigError
from pipeline.submission import kubernetes_api
from pipeline.submission.kubernetes_api import API_VARIABLE, KubernetesApi
from pipeline.submission.rayjob import config_map

__all__ = ["any_api", "api", "cluster"]  # fixtures


def rayjob(name: str, **labels: str) -> dict[str, Any]:
    return {"apiVersion": "ray.io/v1", "kind": "RayJob", "metadata": {"name": name, "labels": labels}, "spec": {}}


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kubernetes_api, "_PAUSES_S", (0.01, 0.02, 0.04))


def test_the_life_of_a_rayjob(any_api: KubernetesApi, tmp_path: Path) -> None:
    """Catches a path, a verb or an object that an API server does not take; also for a real one."""
    made = template(tmp_path)
    name = f"test-{uuid.uuid4().hex[:8]}-r1"
    made["metadata"] = {"name": name, "namespace": NAMESPACE, "labels": {"counterpoise/job": name}}
    made["spec"]["suspend"] = True  # an operator, if there is one, starts nothing
    assert any_api.rayjob(name) is None
    assert any_api.create_rayjob(json.loads(json.dumps(made)))
    assert not any_api.create_rayjob(json.loads(json.dumps(made)))
    assert [one["metadata"]["name"] for one in any_api.rayjobs(f"counterpoise/job={name}")] == [name]
    text = config_map(f"of: {name}")
    assert any_api.create_config_map(text)
    assert not any_api.create_config_map(text)
    found = any_api.rayjob(name)
    assert found is not None
    any_api.changed(name, found["metadata"]["resourceVersion"], 1)
    any_api.delete_rayjob(name)
    any_api.delete_rayjob(name)
    assert any_api.rayjob(name) is None


def test_a_name_is_created_once(cluster: KubernetesServer, api: KubernetesApi) -> None:
    """Catches a submitter that writes over the living job of another."""
    assert api.create_rayjob(rayjob("a-r1", who="first"))
    assert not api.create_rayjob(rayjob("a-r1", who="second"))
    assert cluster.read("a-r1")["metadata"]["labels"] == {"who": "first"}


def test_pages_and_labels(cluster: KubernetesServer, api: KubernetesApi, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a list that ends with its first page, or that has jobs of other lines."""
    monkeypatch.setattr(kubernetes_api, "_PAGE", 2)
    for number in range(5):
        api.create_rayjob(rayjob(f"a-r{number}", line="main"))
    api.create_rayjob(rayjob("b-r1", line="other"))
    assert [one["metadata"]["name"] for one in api.rayjobs("line=main")] == [f"a-r{number}" for number in range(5)]
    assert cluster.calls.count(("list", "ray.io/rayjobs")) == 3


@pytest.mark.parametrize("status", [429, 500, 503, 0])
def test_a_busy_api_is_asked_again(cluster: KubernetesServer, api: KubernetesApi, status: int) -> None:
    """Catches a launcher that fails on what passes by itself; a lost answer to a creation must not make two jobs."""
    cluster.faults = [Fault(status), Fault(status, after=True)]
    created = api.create_rayjob(rayjob("a-r1"))
    assert cluster.names() == ["a-r1"]
    assert not created  # the second request's work was done, and its answer lost
    cluster.faults = [Fault(status)] * 3
    assert len(api.rayjobs("")) == 1
    cluster.faults = [Fault(status)] * 20
    with pytest.raises((ConnectionError, Exception), match=r"does not answer|fault"):
        api.rayjobs("")


def test_the_api_says_how_long_to_wait(cluster: KubernetesServer, api: KubernetesApi) -> None:
    """Catches a client that asks again before the API server wants it."""
    cluster.faults = [Fault(429, headers={"Retry-After": "1"})]
    began = time.monotonic()
    api.rayjobs("")
    assert time.monotonic() - began >= 1


def test_a_token_that_expired(cluster: KubernetesServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a long wait that ends when the token does."""
    monkeypatch.delenv(API_VARIABLE)
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "config"))
    cluster.token = "old"
    write_kubeconfig(tmp_path / "config", cluster.url, "old")
    api = KubernetesApi()
    assert api.namespace == NAMESPACE
    assert api.rayjobs("") == []
    cluster.token = "new"
    write_kubeconfig(tmp_path / "config", cluster.url, "new")
    assert api.rayjobs("") == []
    cluster.token = "newer"
    with pytest.raises(ConfigError, match=r"401.*Unauthorized") as refused:
        api.rayjobs("")
    assert "new" not in str(refused.value)  # no token in an error


def write_kubeconfig(path: Path, url: str, token: str) -> None:
    named = {"name": "x", "context": {"cluster": "x", "user": "x", "namespace": NAMESPACE}}
    content = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "x",
        "contexts": [named],
        "clusters": [{"name": "x", "cluster": {"server": url}}],
        "users": [{"name": "x", "user": {"token": token}}],
    }
    path.write_text(yaml.safe_dump(content))


def test_no_cluster_is_configured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a traceback of the client library on a machine without a kubeconfig."""
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "absent"))
    with pytest.raises(ConfigError, match="set KUBECONFIG"):
        KubernetesApi()


def test_an_object_that_is_refused(cluster: KubernetesServer, api: KubernetesApi) -> None:
    """Catches a refusal of the API server that is tried again, or whose reason is lost."""
    cluster.refuse = lambda content: 'unknown field "spec.entrypont"'
    with pytest.raises(ConfigError, match=r"RayJob a-r1: unknown field .spec.entrypont"):
        api.create_rayjob(rayjob("a-r1"))
    assert cluster.calls == [("create", "ray.io/rayjobs")]


def test_a_watch_sees_a_change(cluster: KubernetesServer, api: KubernetesApi) -> None:
    """Catches a follower that sleeps through a change, or misses one before its watch began."""
    api.create_rayjob(rayjob("a-r1"))
    version = cluster.read("a-r1")["metadata"]["resourceVersion"]
    threading.Timer(0.3, lambda: cluster.set_status("a-r1", "Running")).start()
    began = time.monotonic()
    api.changed("a-r1", version, 20)
    assert time.monotonic() - began < 10
    api.changed("a-r1", version, 20)  # it has changed since that version
    assert time.monotonic() - began < 10


@pytest.mark.parametrize("status", [0, 410, 500])
def test_a_watch_that_breaks_off(cluster: KubernetesServer, api: KubernetesApi, status: int) -> None:
    """Catches a follower that fails with its watch, or that asks without a pause."""
    api.create_rayjob(rayjob("a-r1"))
    cluster.faults = [Fault(status, "watch")]
    began = time.monotonic()
    api.changed("a-r1", "1", 1)
    assert 0.5 < time.monotonic() - began < 5
