"""Rules for the pods of a RayJob: resources, and rights of their processes."""

from collections.abc import Iterator, Mapping
from typing import Any

Document = Mapping[str, Any]

_EQUAL = ("memory", "ephemeral-storage")  # a request below its limit lets the node run out of it
_LEAST_HEAD_CPUS = 2


def dotted(document: Document, path: str) -> Any:
    """Return the value at a dotted path; None where a part of the path is missing."""
    value: Any = document
    for key in path.split("."):
        value = value.get(key) if isinstance(value, Mapping) else None
    return value


def pod_specs(rayjob: Document) -> Iterator[tuple[str, Document]]:
    """Yield the pods of a RayJob, each with a name for messages."""
    if submitter := dotted(rayjob, "spec.submitterPodTemplate.spec"):
        yield "submitter", submitter
    if head := dotted(rayjob, "spec.rayClusterSpec.headGroupSpec.template.spec"):
        yield "head", head
    for group in dotted(rayjob, "spec.rayClusterSpec.workerGroupSpecs") or []:
        if spec := dotted(group, "template.spec"):
            yield f"worker group {group.get('groupName')}", spec


def container_problems(rayjob: Document) -> Iterator[str]:
    """Yield what is wrong with the containers of a RayJob, one line each."""
    for name, pod in pod_specs(rayjob):
        if dotted(pod, "securityContext.runAsNonRoot") is not True:
            yield f"{name}: securityContext.runAsNonRoot is not true: expected true; the image's user is not root"
        for container in pod.get("containers") or []:
            yield from _resource_problems(name, container.get("resources") or {})
    if options := dotted(rayjob, "spec.rayClusterSpec.autoscalerOptions"):
        yield from _resource_problems("autoscaler", options.get("resources") or {})
    containers = dotted(rayjob, "spec.rayClusterSpec.headGroupSpec.template.spec.containers") or [{}]
    cpus = dotted(containers[0], "resources.requests.cpu")
    if cpus is not None and _cpus(cpus) < _LEAST_HEAD_CPUS:
        yield f"head: requests {cpus} CPUs: expected {_LEAST_HEAD_CPUS} or more; a silent head ends a run"


def _resource_problems(name: str, resources: Document) -> Iterator[str]:
    requests, limits = resources.get("requests") or {}, resources.get("limits") or {}
    if "cpu" not in requests:
        yield f"{name}: resources.requests.cpu is missing: expected CPUs; Ray takes its own number from it"
    for resource in _EQUAL:
        request, limit = requests.get(resource), limits.get(resource)
        if request is None or request != limit:
            yield f"{name}: {resource} has request {request} and limit {limit}: expected both, and equal"


def _cpus(text: Any) -> float:
    plain = str(text)
    try:
        return float(plain[:-1]) / 1000 if plain.endswith("m") else float(plain)
    except ValueError:
        return 0.0
