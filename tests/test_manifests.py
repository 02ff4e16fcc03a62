"""The manifests of every overlay: they render, hold to the schemas, and name what exists."""

import re
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from manifests import (
    K8S,
    KUSTOMIZATIONS,
    OVERLAYS,
    ROOT,
    WITHOUT_SCHEMA,
    all_pods,
    changed,
    command_lines,
    of_kind,
    parse_line,
    pods,
    rayjob_of,
    render,
    shared_problems,
    training_group,
)

from pipeline.config.load import load_config
from pipeline.config.project import Config
from pipeline.submission.rayjob_rules import problems

VERSION = "1.35"  # of Kubernetes


def check_core(document: dict[str, Any]) -> None:
    """Check a document of a core kind, or the pods of a RayJob, strictly: unknown fields are errors."""
    if document["kind"] == "RayJob":
        for name, pod in pods(document):
            whole = {"apiVersion": "v1", "kind": "Pod", **pod}
            whole["metadata"] = {**pod.get("metadata", {}), "name": name}
            kubernetes_validate.validate(whole, VERSION, strict=True)
    elif document["kind"] in WITHOUT_SCHEMA:
        assert document["metadata"]["name"]
        assert document["spec"]
    else:
        kubernetes_validate.validate(document, VERSION, strict=True)


@pytest.mark.parametrize("folder", KUSTOMIZATIONS)
def test_every_kustomization_renders_by_the_schemas_of_kubernetes(folder: str) -> None:
    """Catches a misspelt field of a core kind, also in the pods of a RayJob; monitoring's kinds have no schema here."""
    documents = render(folder)
    assert documents
    for document in documents:
        check_core(document)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_a_misspelt_field_of_a_pod_is_seen(overlay: str) -> None:
    """The negative control of the test above."""
    broken = changed(rayjob_of(overlay), "spec/rayClusterSpec/headGroupSpec/template/spec/terminationGraceSeconds", 9)
    with pytest.raises(kubernetes_validate.ValidationError, match="terminationGraceSeconds"):
        check_core(broken)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_rayjob_holds_to_the_schema_of_kuberay(overlay: str) -> None:
    """Catches a RayJob that the API server or the operator would refuse; the schemas stand beside the project."""
    assert shared_problems(rayjob_of(overlay)) == []
    assert shared_problems(changed(rayjob_of(overlay), "spec/shutdownAfterJobFinish", True))  # the negative control


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_rayjob_can_be_submitted(overlay: str) -> None:
    """Catches an overlay that jobs.submit would refuse."""
    assert problems(rayjob_of(overlay)) == []


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_launchers_template_is_the_rendered_rayjob(overlay: str) -> None:
    """Catches an overlay that was changed without `make manifests`: the launcher would go on with the old one."""
    committed = yaml.safe_load((K8S / "overlays" / overlay / "rayjob.yaml").read_text())
    assert committed == rayjob_of(overlay), "run `make manifests`"
    (template,) = _config_maps(overlay, "rayjob-template")
    assert yaml.safe_load(template["data"]["rayjob.yaml"]) == committed


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_apply_installs_the_configuration_of_the_runs_but_no_run(overlay: str) -> None:
    """Catches a run that starts by `kubectl apply -k`, and a template whose ConfigMap is never created."""
    assert of_kind(render(f"overlays/{overlay}"), "RayJob") == []
    (installed,) = _config_maps(overlay, "run-config")
    head = dict(pods(rayjob_of(overlay)))["head"]["spec"]
    (volume,) = [volume for volume in head["volumes"] if volume["name"] == "run-config"]
    assert volume["configMap"]["name"] == installed["metadata"]["name"]
    assert re.fullmatch(r"run-config-[a-z0-9]{10}", installed["metadata"]["name"])  # another content is another name
    (mount,) = [mount for mount in head["containers"][0]["volumeMounts"] if mount["name"] == "run-config"]
    assert mount["mountPath"] == "/etc/counterpoise"


def _config_maps(overlay: str, name: str) -> list[dict[str, Any]]:
    found = of_kind(render(f"overlays/{overlay}"), "ConfigMap")
    return [document for document in found if document["metadata"]["name"].startswith(name)]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_name_that_is_referred_to_exists(overlay: str) -> None:
    """Catches a ConfigMap, an account or a Role under another name: its pods would wait, or have no rights."""
    documents = render(f"overlays/{overlay}")
    names = {
        kind: {d["metadata"]["name"] for d in of_kind(documents, kind)} for kind in ("ConfigMap", "ServiceAccount")
    }
    cluster_made = {"kube-root-ca.crt"}
    for place, pod in all_pods(overlay).items():
        spec = pod["spec"]
        assert spec["serviceAccountName"] in names["ServiceAccount"], place
        used = {volume["configMap"]["name"] for volume in spec["volumes"] if "configMap" in volume}
        assert used <= names["ConfigMap"] | cluster_made, place
        for container in spec["containers"]:
            assert {entry["secretRef"]["optional"] for entry in container.get("envFrom", [])} <= {True}, place
            assert {m["name"] for m in container["volumeMounts"]} <= {volume["name"] for volume in spec["volumes"]}
    for binding in of_kind(documents, "RoleBinding"):
        assert binding["roleRef"]["name"] in {role["metadata"]["name"] for role in of_kind(documents, "Role")}
        assert {subject["name"] for subject in binding["subjects"]} <= names["ServiceAccount"]


@pytest.mark.parametrize("folder", KUSTOMIZATIONS)
def test_every_command_line_parses(folder: str) -> None:
    """Catches an argument in a manifest that its command does not have."""
    lines = [line for document in render(folder) for line in command_lines(document)]
    assert lines
    for line in lines:
        parse_line(line)


def test_a_wrong_argument_is_seen() -> None:
    """The negative control of the test above."""
    line = rayjob_of("dev")["spec"]["entrypoint"].split(" ")
    with pytest.raises(SystemExit):
        parse_line([*line, "--max-catchup"])


def _config(overlay: str, folder: Path) -> Config:
    (installed,) = _config_maps(overlay, "run-config")
    (folder / "config.yaml").write_text(installed["data"]["config.yaml"])
    return load_config(folder / "config.yaml")


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_configuration_fits_the_pods(overlay: str, tmp_path: Path) -> None:
    """Catches a configuration that does not load, and more workers than the training group has CPUs or GPUs for."""
    config, rayjob = _config(overlay, tmp_path), rayjob_of(overlay)
    group = training_group(rayjob)
    requests = group["template"]["spec"]["containers"][0]["resources"]["requests"]
    slots = float(requests["cpu"]) // config.workers.cpus
    if config.workers.device == "cuda":
        slots = min(slots, int(requests["nvidia.com/gpu"]))
    assert group["replicas"] * slots == config.workers.num
    assert config.ray.address == "auto"
    assert config.root.startswith("s3://")
    labels = {g["groupName"]: g["labels"] for g in rayjob["spec"]["rayClusterSpec"]["workerGroupSpecs"]}
    assert config.ingest.label_selector == labels["data"]
    assert config.workers.label_selector == labels["training"]


def test_the_versions_are_those_of_the_requirements() -> None:
    """Catches a Ray that the operator takes for another version than the image's, and tags of two releases."""
    ray = re.findall(r"^ray==(.+)$", (ROOT / "requirements" / "base.txt").read_text(), re.MULTILINE)
    release = re.findall(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    for overlay in OVERLAYS:
        assert [rayjob_of(overlay)["spec"]["rayClusterSpec"]["rayVersion"]] == ray
        images = {c["image"] for pod in all_pods(overlay).values() for c in pod["spec"]["containers"]}
        cuda = {f"counterpoise:{release[0]}-cuda"} if overlay == "prod-gpu" else set()
        assert images == {f"counterpoise:{release[0]}-{kind}" for kind in ("cpu", "submitter")} | cuda


def test_gpus_are_for_the_training_group_alone() -> None:
    """Catches a head or a data worker that takes a GPU, and a CPU build on a GPU."""
    for name, pod in all_pods("prod-gpu").items():
        container = pod["spec"]["containers"][0]
        has_gpu = "nvidia.com/gpu" in container["resources"]["limits"]
        assert has_gpu == (name == "training") == container["image"].endswith("-cuda"), name
        assert not has_gpu or any(t["key"] == "nvidia.com/gpu" for t in pod["spec"]["tolerations"])


def test_the_queue_admits_whole_runs(tmp_path: Path) -> None:
    """Catches a component for Kueue that leaves a RayJob which Kueue refuses: one that scales, or is not suspended."""
    resource = "../" * len(tmp_path.resolve().parts[1:]) + str(K8S).lstrip("/")
    (tmp_path / "kustomization.yaml").write_text(
        f"resources: [{resource}/overlays/prod-cpu/rayjob]\ncomponents: [{resource}/components/kueue]\n"
    )
    documents = render(tmp_path)
    (rayjob,), (queue,) = of_kind(documents, "RayJob"), of_kind(documents, "LocalQueue")
    assert rayjob["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == queue["metadata"]["name"]
    assert (rayjob["spec"]["suspend"], rayjob["spec"]["rayClusterSpec"]["enableInTreeAutoscaling"]) == (True, False)
    for group in rayjob["spec"]["rayClusterSpec"]["workerGroupSpecs"]:
        assert group["minReplicas"] == group["replicas"] == group["maxReplicas"]
    assert problems(rayjob) == []
