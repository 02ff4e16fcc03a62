"""Rules for a RayJob that Kubernetes or KubeRay would accept, and that would then hang, retry or lose a run.

KubeRay's operator starts a cluster for an unknown submission mode and never submits; a RayJob without deadlines waits
for ever; a container without a memory limit takes the node with it. Each rule is one line with what was found, what is
expected, and what to do.
"""

import difflib
import re
from collections.abc import Iterator, Mapping
from typing import Any

from pipeline.submission.kuberay_fields import CLUSTER, GROUP, HEAD, JOB
from pipeline.submission.pod_rules import container_problems, dotted
from pipeline.submission.runtime_env import runtime_env_problems

Document = Mapping[str, Any]

TRAINING = "training"  # name of the worker group that trains
RUN_CONFIG = "run-config"  # name of the head's volume with the configuration
_LONGEST_NAME = 47
_NAME = re.compile(r"[a-z0-9](?:[-a-z0-9]*[a-z0-9])?")
_WORD = re.compile(r"[A-Za-z0-9_./:=-]+")
_MODES = ("K8sJobMode", "SidecarMode", "HTTPMode")
_TOKEN_SINCE = (2, 52)


def problems(rayjob: Document) -> list[str]:
    """Return what is wrong with a RayJob, one line each; empty: it can be submitted.

    Args:
        rayjob: The whole document, as it would be applied.
    """
    if (rayjob.get("apiVersion"), rayjob.get("kind")) != ("ray.io/v1", "RayJob"):
        found = f"{rayjob.get('apiVersion')} {rayjob.get('kind')}"
        return [f"the document is {found}: expected ray.io/v1 RayJob; give the RayJob alone"]
    spec = rayjob.get("spec") or {}
    cluster = spec.get("rayClusterSpec") or {}
    return [
        *_name_problems((rayjob.get("metadata") or {}).get("name")),
        *_field_problems("spec", spec, JOB),
        *_job_problems(spec),
        *_entrypoint_problems(spec.get("entrypoint")),
        *runtime_env_problems(spec.get("runtimeEnvYAML")),
        *_cluster_problems(cluster),
        *_head_problems(cluster.get("headGroupSpec") or {}),
        *_group_problems(cluster.get("workerGroupSpecs") or []),
        *container_problems(rayjob),
    ]


def _name_problems(name: Any) -> Iterator[str]:
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        yield f"metadata.name is {name!r}: expected small letters, digits and - within; shorten or replace it"
    elif len(name) > _LONGEST_NAME:
        yield f"metadata.name has {len(name)} characters: expected at most {_LONGEST_NAME}, since KubeRay adds to it"


def _field_problems(path: str, found: Document, known: frozenset[str]) -> Iterator[str]:
    for field in sorted(set(found) - known):
        close = difflib.get_close_matches(field, known, n=1)
        advice = f"write {close[0]}" if close else "remove it"
        yield f"{path}.{field} is no field of KubeRay 1.7: {advice}"


def _job_problems(spec: Document) -> Iterator[str]:
    mode = spec.get("submissionMode")
    if mode not in _MODES:
        yield f"spec.submissionMode is {mode!r}: expected one of {', '.join(_MODES)}; any other never submits"
    for field in ("activeDeadlineSeconds", "preRunningDeadlineSeconds"):
        if not _is_count(spec.get(field), 1):
            yield f"spec.{field} is {spec.get(field)!r}: expected seconds above 0; without it a run can hang for ever"
    if spec.get("backoffLimit") != 0:
        yield f"spec.backoffLimit is {spec.get('backoffLimit')!r}: expected 0; the launcher decides about a retry"
    limit = (spec.get("submitterConfig") or {}).get("backoffLimit")
    if mode == "K8sJobMode" and limit != 0:
        yield f"spec.submitterConfig.backoffLimit is {limit!r}: expected 0; KubeRay's default submits three times"
    if mode == "K8sJobMode" and not spec.get("submitterPodTemplate"):
        yield "spec.submitterPodTemplate is missing: expected a pod of the small image; the default takes the head's"
    if spec.get("shutdownAfterJobFinishes") is not True:
        yield "spec.shutdownAfterJobFinishes is not true: expected true; the nodes would stay, and be paid for"
    if spec.get("clusterSelector"):
        yield "spec.clusterSelector is set: expected a cluster of its own in spec.rayClusterSpec; remove it"


def _is_count(value: Any, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _entrypoint_problems(entrypoint: Any) -> Iterator[str]:
    if not isinstance(entrypoint, str) or not entrypoint.split():
        yield f"spec.entrypoint is {entrypoint!r}: expected python -m jobs.NAME and its arguments"
        return
    words = entrypoint.split(" ")
    if words[:2] != ["python", "-m"]:
        yield f"spec.entrypoint begins with {' '.join(words[:2])!r}: expected python -m jobs.NAME"
    for word in words:
        if not _WORD.fullmatch(word):
            yield (
                f"spec.entrypoint has the word {word!r}: expected letters, digits and _ . / : = - only, since two "
                "shells read it; put the value in the configuration"
            )


def _cluster_problems(cluster: Document) -> Iterator[str]:
    if not cluster:
        yield "spec.rayClusterSpec is missing: expected the cluster of the run"
        return
    yield from _field_problems("spec.rayClusterSpec", cluster, CLUSTER)
    version = cluster.get("rayVersion")
    numbers = re.fullmatch(r"(\d+)\.(\d+)\.\d+", str(version))
    if numbers is None or tuple(map(int, numbers.groups())) < _TOKEN_SINCE:
        yield f"spec.rayClusterSpec.rayVersion is {version!r}: expected the image's, 2.52.0 or later"
    mode = (cluster.get("authOptions") or {}).get("mode")
    if mode != "token":
        yield (
            f"spec.rayClusterSpec.authOptions.mode is {mode!r}: expected token; without it everybody who reaches the "
            "head can run code"
        )


def _head_problems(head: Document) -> Iterator[str]:
    path = "spec.rayClusterSpec.headGroupSpec"
    yield from _field_problems(path, head, HEAD)
    cpus = (head.get("rayStartParams") or {}).get("num-cpus")
    if cpus != "0":
        yield f'{path}.rayStartParams.num-cpus is {cpus!r}: expected "0"; work on the head can stop the whole run'
    volumes = (dotted(head, "template.spec") or {}).get("volumes") or []
    if RUN_CONFIG not in [volume.get("name") for volume in volumes]:
        yield f"{path} has no volume {RUN_CONFIG}: expected one with the ConfigMap of the configuration"


def _group_problems(groups: list[Document]) -> Iterator[str]:
    names = [group.get("groupName") for group in groups]
    if TRAINING not in names:
        yield f"spec.rayClusterSpec.workerGroupSpecs has the groups {names}: expected one called {TRAINING}"
    for group in groups:
        path = f"worker group {group.get('groupName')}"
        yield from _field_problems(path, group, GROUP)
        counts = [group.get(field, -1) for field in ("minReplicas", "replicas", "maxReplicas")]
        if not all(_is_count(count, 0) for count in counts) or counts != sorted(counts) or counts[-1] == 0:
            yield (
                f"{path} has minReplicas, replicas, maxReplicas {counts}: expected all three, in this order; without a "
                "maximum Ray asks for nodes without end"
            )
        elif group.get("groupName") == TRAINING and len(set(counts)) > 1:
            yield f"{path} has {counts[0]} to {counts[-1]} pods: expected a fixed number; a change restarts the run"
