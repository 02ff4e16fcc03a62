"""RayJob of a submission: the template of an overlay with a name, a command and the run's variables."""

import copy
import hashlib
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from kubernetes.utils.quantity import parse_quantity

from features.errors import ConfigError
from pipeline.config.yaml_text import read_yaml
from pipeline.submission.job import Job
from pipeline.submission.place import entrypoint, environment
from pipeline.submission.rayjob_rules import TRAINING
from pipeline.submission.rayjob_status import (
    CHAIN_LABEL,
    COMMAND_ANNOTATION,
    DAY_LABEL,
    DIGEST_ANNOTATION,
    JOB_LABEL,
)

GROUP, VERSION, PLURAL = "ray.io", "v1", "rayjobs"
CONFIG_VOLUME = "run-config"
CONFIG_FILE = "config.yaml"


def template_of(overlay: str | None, file: str | None) -> dict[str, Any]:
    """Return the RayJob of an overlay, or of a file that holds a rendered one.

    Args:
        overlay: Folder of an overlay with a folder `rayjob`, which kubectl renders.
        file: A YAML file, instead.

    Raises:
        ConfigError: Neither or both are given, kubectl is missing or refuses, or there is not exactly one RayJob.
    """
    if (overlay is None) == (file is None):
        raise ConfigError("give --overlay, a folder as k8s/overlays/prod-cpu, or --template, a file with a RayJob")
    if file is not None:
        try:
            return read_template(Path(file).read_text(), file)
        except OSError as error:
            raise ConfigError(f"--template {file} cannot be read: {error.strerror}") from error
    folder = Path(str(overlay)) / "rayjob"
    kubectl = shutil.which("kubectl") or shutil.which("kubectl", path=str(Path(sys.executable).parent))
    if kubectl is None:
        raise ConfigError("kubectl is not installed here, so no overlay is rendered: install it, or give --template")
    done = subprocess.run([kubectl, "kustomize", str(folder)], capture_output=True, text=True, check=False)
    if done.returncode:
        raise ConfigError(f"kubectl cannot render {folder}: {' '.join(done.stderr.split())}")
    return read_template(done.stdout, str(folder))


def read_template(text: str, source: str) -> dict[str, Any]:
    """Return the one RayJob among the documents of a YAML text.

    Args:
        text: Output of `kubectl kustomize`, or a file.
        source: Name of the text for the error.

    Raises:
        ConfigError: The text is no YAML, or has not exactly one RayJob.
    """
    try:
        documents = [document for document in yaml.safe_load_all(text) if isinstance(document, dict)]
    except yaml.YAMLError as error:
        raise ConfigError(f"{source} is no YAML: {' '.join(str(error).split())}") from error
    found = [document for document in documents if document.get("kind") == "RayJob"]
    if len(found) != 1:
        raise ConfigError(f"{source} has {len(found)} RayJobs, expected one: give a rendered overlay")
    return found[0]


def mounted_config(template: Mapping[str, Any]) -> Path | None:
    """Return the path at which the head of a template has the run's configuration; None: it has none."""
    for container in _head(template)["containers"]:
        for mount in container.get("volumeMounts", []):
            if mount["name"] == CONFIG_VOLUME:
                return Path(mount["mountPath"]) / CONFIG_FILE
    return None


def has_volume(template: Mapping[str, Any], path: str) -> bool:
    """Return True if a claim of a persistent volume is mounted over a path in the head of a template."""
    claims = {volume["name"] for volume in _head(template).get("volumes", []) if "persistentVolumeClaim" in volume}
    mounts = [mount for container in _head(template)["containers"] for mount in container.get("volumeMounts", [])]
    return any(mount["name"] in claims and Path(path).is_relative_to(mount["mountPath"]) for mount in mounts)


def worker_gb(template: Mapping[str, Any], workers: int) -> float | None:
    """Return the memory of a worker in the training pods of a template, in 10^9 bytes; None: it has no such group.

    Args:
        template: RayJob of an overlay.
        workers: Workers of the run, shared by the pods.
    """
    for group in template["spec"]["rayClusterSpec"].get("workerGroupSpecs", []):
        if group.get("groupName") == TRAINING:
            (container, *_) = group["template"]["spec"]["containers"]
            return float(parse_quantity(container["resources"]["limits"]["memory"])) * group["replicas"] / workers / 1e9
    return None


def render(
    template: Mapping[str, Any], job: Job, number: int, config_map: str | None, mounted: Path | None
) -> dict[str, Any]:
    """Return the RayJob of a submission.

    Args:
        template: RayJob of an overlay.
        job: The job.
        number: Number of the submission.
        config_map: ConfigMap of the job's own configuration; None: the template's.
        mounted: Path of the configuration in the head; None: the job's own path is right there.
    """
    rayjob = copy.deepcopy(dict(template))
    command, variables = entrypoint(job, str(mounted) if mounted else None)
    metadata, spec = rayjob["metadata"], rayjob["spec"]
    metadata["name"] = job.submission(number)
    day = {DAY_LABEL: job.days[0]} if job.is_daily_day else {}
    metadata["labels"] = metadata.get("labels", {}) | {JOB_LABEL: job.name, CHAIN_LABEL: job.chain} | day
    said = {DIGEST_ANNOTATION: job.digest, COMMAND_ANNOTATION: " ".join([f"jobs.{job.command}", *job.words])}
    metadata["annotations"] = metadata.get("annotations", {}) | said
    runtime_env = read_yaml(spec.get("runtimeEnvYAML") or "{}", "runtimeEnvYAML of the template")
    added = {**variables, **environment(job, number)}
    runtime_env["env_vars"] = (runtime_env.get("env_vars") or {}) | added
    spec["entrypoint"], spec["runtimeEnvYAML"] = command, yaml.safe_dump(runtime_env, allow_unicode=True)
    if config_map is not None:
        for volume in _head(rayjob).get("volumes", []):
            if volume["name"] == CONFIG_VOLUME:
                volume["configMap"]["name"] = config_map
    return rayjob


def config_map(text: str) -> dict[str, Any]:
    """Return the ConfigMap of a configuration, named after its text."""
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {
            "name": f"{CONFIG_VOLUME}-{hashlib.sha256(text.encode()).hexdigest()[:12]}",
            "labels": {"app.kubernetes.io/name": "counterpoise"},
        },
        "immutable": True,
        "data": {CONFIG_FILE: text},
    }


def _head(rayjob: Mapping[str, Any]) -> dict[str, Any]:
    return rayjob["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]
