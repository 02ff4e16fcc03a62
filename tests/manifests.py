"""Renderings of the overlays, the pods in them, and the checks that others wrote for manifests."""

import argparse
import copy
import functools
import importlib
import importlib.util
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[1]
K8S = ROOT / "k8s"
OVERLAYS = ["dev", "prod-cpu", "prod-gpu"]
KUSTOMIZATIONS = [f"overlays/{overlay}{part}" for overlay in OVERLAYS for part in ("", "/rayjob")]

# Kinds without a schema in kubernetes-validate or in the shared checker: tests hold their structure alone.
WITHOUT_SCHEMA = {"PodMonitor", "PrometheusRule", "LocalQueue"}
_SHARED = ROOT.parent / "shared" / "kubernetes"


def kubectl() -> str:
    """The pinned kubectl of the virtual environment, or the machine's."""
    beside = Path(sys.executable).parent / "kubectl"
    found = str(beside) if beside.exists() else shutil.which("kubectl")
    assert found, "kubectl is in requirements/dev.txt"
    return found


@functools.cache
def _rendered(folder: str) -> str:
    done = subprocess.run([kubectl(), "kustomize", folder], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{folder}: {done.stderr}"
    return done.stdout


def render(folder: str | Path) -> list[dict[str, Any]]:
    """Render a kustomization below k8s/, or of another folder."""
    return list(yaml.safe_load_all(_rendered(str(K8S / folder))))


def of_kind(documents: list[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    return [document for document in documents if document["kind"] == kind]


def rayjob_of(overlay: str) -> dict[str, Any]:
    """The RayJob of an overlay, to change at will."""
    (rayjob,) = of_kind(render(f"overlays/{overlay}/rayjob"), "RayJob")
    return copy.deepcopy(rayjob)


def training_group(rayjob: dict[str, Any]) -> dict[str, Any]:
    groups = rayjob["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    (group,) = [group for group in groups if group["groupName"] == "training"]
    return group


def pods(document: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The pod templates of a document, each with its place."""
    spec, name = document.get("spec", {}), document["metadata"]["name"]
    if document["kind"] == "CronJob":
        yield name, spec["jobTemplate"]["spec"]["template"]
    elif document["kind"] == "Deployment":
        yield name, spec["template"]
    elif document["kind"] == "RayJob":
        yield "submitter", spec["submitterPodTemplate"]
        yield "head", spec["rayClusterSpec"]["headGroupSpec"]["template"]
        for group in spec["rayClusterSpec"]["workerGroupSpecs"]:
            yield group["groupName"], group["template"]


def all_pods(overlay: str) -> dict[str, dict[str, Any]]:
    """Every pod template that an overlay installs or that its runs start."""
    documents = [*render(f"overlays/{overlay}"), rayjob_of(overlay)]
    return dict(place for document in documents for place in pods(document))


def command_lines(document: dict[str, Any]) -> Iterator[list[str]]:
    """The lines in a document that start a command of ours."""
    if document["kind"] == "RayJob":
        yield document["spec"]["entrypoint"].split(" ")
    for _, pod in pods(document):
        for container in pod["spec"]["containers"]:
            line = [*container.get("command", []), *container.get("args", [])]
            if line:
                yield line


def parse_line(line: list[str]) -> argparse.Namespace:
    """Parse the arguments of `python -m jobs.NAME ...` as the command itself does."""
    assert line[:2] == ["python", "-m"], line
    parser = argparse.ArgumentParser(prog=line[2])
    importlib.import_module(line[2]).add_arguments(parser)
    return parser.parse_args(line[3:])


def allowed(role: str) -> set[tuple[str, str]]:
    """The (verb, resource) pairs of a Role, the resource with its group."""
    (found,) = [one for one in of_kind(render("overlays/prod-cpu"), "Role") if one["metadata"]["name"] == role]
    named = [(rule, group) for rule in found["rules"] for group in rule["apiGroups"]]
    return {
        (verb, f"{group}/{resource}" if group else resource)
        for rule, group in named
        for verb in rule["verbs"]
        for resource in rule["resources"]
    }


def shared_checker() -> ModuleType:
    """The checker with KubeRay's schemas, which stand beside the project and are no part of it."""
    script = _SHARED / "check_manifests.py"
    if not script.exists():
        pytest.skip(f"the schemas of KubeRay, which are not part of the project, are not at {_SHARED}")
    spec = importlib.util.spec_from_file_location("check_manifests", script)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    arguments, sys.argv = sys.argv, ["check_manifests"]
    spec.loader.exec_module(module)
    sys.argv = arguments
    return module


def shared_problems(document: dict[str, Any]) -> list[str]:
    """Problems of a KubeRay document, as the API server and the operator would see them."""
    checker = shared_checker()
    return list(checker.check(document, checker.load_crds(str(_SHARED / "schemas"))))


def changed(document: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    """A copy of a document with another value at a dotted path; None removes it."""
    copied = json.loads(json.dumps(document))
    *folders, last = [int(key) if key.isdigit() else key for key in path.split("/")]
    place = copied
    for key in folders:
        place = place[key]
    if value is None:
        del place[last]
    else:
        place[last] = value
    return copied
