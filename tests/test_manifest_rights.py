"""The rights of every pod of the manifests, its network, its metrics and alerts; and that no secret is in git."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import ray
import yaml
from manifests import K8S, OVERLAYS, all_pods, of_kind, rayjob_of, render

from pipeline.submission import line_metrics
from pipeline.tracking.prometheus import METRICS

PART = {"app.kubernetes.io/part-of": "counterpoise"}
MONITORED = [overlay for overlay in OVERLAYS if overlay != "dev"]


def containers(overlay: str) -> dict[str, dict[str, Any]]:
    found = {place: pod["spec"]["containers"][0] for place, pod in all_pods(overlay).items()}
    options = rayjob_of(overlay)["spec"]["rayClusterSpec"].get("autoscalerOptions")
    return found | ({"autoscaler": options} if options else {})


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_pod_is_restricted(overlay: str) -> None:
    """Catches a pod that the namespace's level (restricted) refuses, or that can change its own files."""
    for place, pod in all_pods(overlay).items():
        context = pod["spec"]["securityContext"]
        assert (context["runAsNonRoot"], context["runAsUser"]) == (True, 10001), place
        assert context["seccompProfile"] == {"type": "RuntimeDefault"}, place
        assert len(pod["spec"]["containers"]) == 1
        assert not {"hostNetwork", "hostPID", "hostIPC", "initContainers"} & set(pod["spec"]), place
        assert not [volume for volume in pod["spec"]["volumes"] if "hostPath" in volume], place
    for place, container in containers(overlay).items():
        context = container["securityContext"]
        assert (context["allowPrivilegeEscalation"], context["readOnlyRootFilesystem"]) == (False, True), place
        assert context["capabilities"] == {"drop": ["ALL"]}, place
        assert "/tmp" in [mount["mountPath"] for mount in container["volumeMounts"]], place


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_container_has_bounds(overlay: str) -> None:
    """Catches a pod that fills its node's memory or disk, and volumes larger than the disk that was asked for."""
    for place, container in containers(overlay).items():
        requests, limits = (container["resources"][kind] for kind in ("requests", "limits"))
        assert "cpu" in requests
        for name in ("memory", "ephemeral-storage"):
            assert requests[name] == limits[name], place
    for place, pod in all_pods(overlay).items():
        sizes = [volume["emptyDir"]["sizeLimit"] for volume in pod["spec"]["volumes"] if "emptyDir" in volume]
        disk = pod["spec"]["containers"][0]["resources"]["limits"]["ephemeral-storage"]
        assert sum(map(_gigabytes, sizes)) < _gigabytes(disk), place


def _gigabytes(text: str) -> float:
    number, unit = re.fullmatch(r"(\d+)(Mi|Gi)", text).groups()  # pyright: ignore[reportOptionalMemberAccess]
    return int(number) / (1024 if unit == "Mi" else 1)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_only_the_launcher_and_the_autoscaler_hold_a_token(overlay: str) -> None:
    """Catches a training process that could speak to the API server."""
    for place, pod in all_pods(overlay).items():
        assert pod["spec"]["automountServiceAccountToken"] == (place == "counterpoise-launcher"), place
        tokens = {v["name"] for v in pod["spec"]["volumes"] if "projected" in v}
        mounted = {mount["name"] for mount in pod["spec"]["containers"][0]["volumeMounts"]}
        assert not tokens & mounted, place
        assert (place == "head") == bool(tokens), place
    if options := rayjob_of(overlay)["spec"]["rayClusterSpec"].get("autoscalerOptions"):
        mounts = {mount["name"]: mount["mountPath"] for mount in options["volumeMounts"]}
        assert mounts["autoscaler-token"] == "/var/run/secrets/kubernetes.io/serviceaccount"
    for account in of_kind(render(f"overlays/{overlay}"), "ServiceAccount"):
        assert account["automountServiceAccountToken"] is False


def test_the_rights_are_these() -> None:
    """Catches a verb that was added without a reason; no account has rights on Secrets or on pods."""
    found = {role["metadata"]["name"]: role["rules"] for role in of_kind(render("overlays/prod-gpu"), "Role")}
    rights = {
        name: {(r, v) for rule in rules for r in rule["resources"] for v in rule["verbs"]}
        for name, rules in found.items()
    }
    assert rights == {
        "counterpoise-launcher": {("rayjobs", verb) for verb in ("list", "create", "delete")} | {("events", "create")},
        "counterpoise-submitter": {("rayjobs", verb) for verb in ("get", "list", "watch", "create")}
        | {("configmaps", "create"), ("services/proxy", "get")},
    }
    assert not of_kind(render("overlays/prod-gpu"), "ClusterRole")


def test_no_secret_and_no_machine_is_in_git() -> None:
    """Catches a credential, a registry's host or an address in a manifest."""
    for overlay in OVERLAYS:
        assert of_kind(render(f"overlays/{overlay}"), "Secret") == []
        for place, container in containers(overlay).items():
            assert "/" not in container.get("image", ""), place
            assert not [entry for entry in container.get("env", []) if re.search("KEY|SECRET|TOKEN", entry["name"])]
    secret = re.compile(r"AKIA[0-9A-Z]{12}|(?i:secret_access_key|password)\s*[:=]|\b\d{1,3}(?:\.\d{1,3}){3}/\d")
    files = [path for path in K8S.rglob("*") if path.is_file()]
    assert len(files) > 25
    assert [path.name for path in files if secret.search(path.read_text())] == []


def _selects(selector: dict[str, Any], labels: dict[str, str]) -> bool:
    expressions = selector.get("matchExpressions", [])
    return all(labels.get(key) == value for key, value in selector.get("matchLabels", {}).items()) and all(
        labels.get(entry["key"]) in entry["values"] for entry in expressions
    )


def _reachable(policies: list[dict[str, Any]], source: dict[str, str], target: dict[str, str], port: int) -> bool:
    """Return True if the policies let one pod of the namespace open a port of another."""
    ways = []
    for kind, own, other, peers in (("egress", source, target, "to"), ("ingress", target, source, "from")):
        chosen = [policy["spec"] for policy in policies if _selects(policy["spec"]["podSelector"], own)]
        rules = [rule for spec in chosen for rule in spec.get(kind, [])]
        ways.append(
            any(
                any("podSelector" in peer and _selects(peer["podSelector"], other) for peer in rule.get(peers, []))
                and ("ports" not in rule or port in [entry["port"] for entry in rule["ports"]])
                for rule in rules
            )
        )
    return all(ways)


def test_the_network_opens_what_is_used_and_no_more() -> None:
    """Catches a submitter that cannot reach the head, a worker that cannot reach another, and a door to others."""
    policies = of_kind(render("overlays/prod-gpu"), "NetworkPolicy")
    labels = {place: pod["metadata"]["labels"] for place, pod in all_pods("prod-gpu").items()}
    assert all(PART.items() <= own.items() for own in labels.values())
    for place in ("head", "training", "data"):  # KubeRay's own labels
        labels[place] = labels[place] | {"ray.io/node-type": "head" if place == "head" else "worker"}
    assert all(
        _reachable(policies, labels[a], labels[b], 12345) for a, b in (("training", "head"), ("data", "training"))
    )
    assert _reachable(policies, labels["submitter"], labels["head"], 8265)
    assert not _reachable(policies, labels["counterpoise-launcher"], labels["head"], 8265)
    assert not _reachable(policies, labels["submitter"], labels["head"], 6379)
    assert not _reachable(policies, labels["submitter"], labels["training"], 8265)
    assert not _reachable(policies, labels["counterpoise-exporter"], labels["head"], 8265)
    assert not _reachable(policies, {"app": "another"}, labels["head"], 8265)
    for name, ports in (("counterpoise-dashboard", [8265]), ("counterpoise-prometheus", [8080, 44217, 44227, 9400])):
        (rule,) = next(p for p in policies if p["metadata"]["name"] == name)["spec"]["ingress"]
        assert [entry["port"] for entry in rule["ports"]] == ports  # the peers outside of the namespace too
    closed = [policy for policy in policies if policy["spec"]["podSelector"] == {"matchLabels": PART}]
    assert {"Ingress", "Egress"} in [set(policy["spec"]["policyTypes"]) for policy in closed]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_hooks_end_before_the_pods_do(overlay: str) -> None:
    """Catches a hook that is killed while it waits for a checkpoint, and one that stops what it should not."""
    for place, pod in all_pods(overlay).items():
        hook = pod["spec"]["containers"][0].get("lifecycle", {}).get("preStop", {}).get("exec", {}).get("command")
        assert (hook is not None) == (place in ("head", "training", "data")), place
        if hook is not None:
            assert int(hook[-1]) + 15 < pod["spec"]["terminationGracePeriodSeconds"], place
            assert (K8S / Path(hook[1]).name).is_file()
    head = all_pods(overlay)["head"]["spec"]["containers"][0]["lifecycle"]["preStop"]["exec"]["command"]
    assert rayjob_of(overlay)["spec"]["entrypoint"].split(" ")[2].startswith(head[2])


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_head_and_the_training_group_stay_off_spot_nodes(overlay: str) -> None:
    """Catches a head on a node that can go away at any moment: the whole run would go with it."""
    spot = {"karpenter.sh/capacity-type", "cloud.google.com/gke-spot", "kubernetes.azure.com/scalesetpriority"}
    for place in ("head", "training"):
        terms = all_pods(overlay)[place]["spec"]["affinity"]["nodeAffinity"]
        (term,) = terms["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"]
        assert spot <= {entry["key"] for entry in term["matchExpressions"] if entry["operator"] == "NotIn"}
    data = all_pods(overlay)["data"]["spec"]
    assert ("tolerations" in data) == (overlay in MONITORED)
    assert "requiredDuringSchedulingIgnoredDuringExecution" not in data.get("affinity", {}).get("nodeAffinity", {})


@pytest.mark.parametrize("overlay", MONITORED)
def test_every_monitor_finds_its_port(overlay: str) -> None:
    """Catches a PodMonitor that selects no pod, or names a port that its pods do not have; its kind has no schema."""
    pods = all_pods(overlay)
    for monitor in of_kind(render(f"overlays/{overlay}"), "PodMonitor"):
        wanted = {k: v for k, v in monitor["spec"]["selector"]["matchLabels"].items() if k != "ray.io/node-type"}
        chosen = [pod for pod in pods.values() if wanted.items() <= pod["metadata"]["labels"].items()]
        assert chosen
        ports = {port["name"] for pod in chosen for port in pod["spec"]["containers"][0].get("ports", [])}
        assert {endpoint["port"] for endpoint in monitor["spec"]["podMetricsEndpoints"]} <= ports


def _metrics(text: str) -> set[str]:
    return set(re.findall(r"\b(?:counterpoise|kuberay|kube|ray)_[a-z_]+\b", text)) - {"kube_job"}


def _exported() -> set[str]:
    """Names of the metrics that `jobs.exporter` makes."""
    return set(re.findall(r'"(counterpoise_[a-z_]+)"', Path(line_metrics.__file__).read_text()))


def test_alerts_and_dashboard_name_metrics_that_exist() -> None:
    """Catches an alert on a metric that nobody exports: it would be silent for ever."""
    folder = K8S / "components" / "monitoring"
    dashboard = json.loads((folder / "dashboard.json").read_text())
    panels = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    rules = yaml.safe_load((folder / "alerts.yaml").read_text())["spec"]["groups"][0]["rules"]
    named = _metrics(" ".join([*panels, *(rule["expr"] for rule in rules)]))
    ours = {f"ray_{metric.name}" for metric in METRICS.values()}
    assert {name for name in named if "counterpoise" in name and name.startswith("ray_")} == ours
    named -= ours
    assert {name for name in named if name.startswith("counterpoise_")} <= _exported()
    others = {  # of the exporter, of KubeRay 1.7 and of kube-state-metrics
        "counterpoise_ledger_lag_days",
        "counterpoise_overdue_days",
        "kube_cronjob_spec_suspend",
        "kuberay_job_deployment_status",
        "kuberay_job_execution_duration_seconds",
        "kube_job_status_failed",
        "kube_job_created",
        "kube_cronjob_status_last_schedule_time",
    }
    assert others <= named
    source = Path(ray.__file__).parent
    reporter = (source / "dashboard" / "modules" / "reporter" / "reporter_agent.py").read_text()
    known = {f"ray_{name}" for name in re.findall(r'"(node_[a-z_]+)"', reporter)} | {"ray_object_store_memory"}
    assert named - others <= known
    assert len(named - others) >= 6
    launcher = of_kind(render("overlays/prod-cpu"), "CronJob")[0]["metadata"]["name"]
    assert f"{launcher}-.+" in " ".join(rule["expr"] for rule in rules)
    assert all({"severity"} <= rule["labels"].keys() and rule["annotations"]["summary"] for rule in rules)


def test_the_launcher_runs_alone_and_ends() -> None:
    """Catches a schedule with two launchers at once, one that never ends, and a tick that is retried blindly."""
    (cron,) = of_kind(render("overlays/prod-cpu"), "CronJob")
    spec, job = cron["spec"], cron["spec"]["jobTemplate"]["spec"]
    assert (spec["concurrencyPolicy"], job["backoffLimit"]) == ("Forbid", 0)
    assert spec["timeZone"]
    assert 0 < spec["startingDeadlineSeconds"] <= job["activeDeadlineSeconds"]
    assert job["template"]["spec"]["restartPolicy"] == "Never"
