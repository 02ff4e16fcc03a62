"""Rules for a RayJob: each mistake is named in one line, and a good one has none."""

import subprocess
import sys
from typing import Any

import pytest
from manifests import ROOT, changed, rayjob_of, shared_problems

from pipeline.submission.rayjob_rules import problems

CLUSTER = "spec/rayClusterSpec"
HEAD = f"{CLUSTER}/headGroupSpec"
HEAD_POD = f"{HEAD}/template/spec"
TRAINING, DATA = (f"{CLUSTER}/workerGroupSpecs/{index}" for index in (0, 1))
RESOURCES = "template/spec/containers/0/resources"
ENTRYPOINT = "python -m jobs.daily --config /etc/counterpoise/config.yaml --day 2026-01-01"


def with_env(name: str, value: Any = '"1"') -> str:
    return f"env_vars:\n  {name}: {value}\n"


# Each mistake: where, the wrong value (None: the field is missing), and words of the line that names it.
MISTAKES: dict[str, tuple[str, Any, str]] = {
    "another kind": ("kind", "RayCluster", "expected ray.io/v1 RayJob"),
    "another version": ("apiVersion", "ray.io/v1alpha1", "expected ray.io/v1 RayJob"),
    "a name too long": ("metadata/name", "daily-20261120-1a2b3c4d-r1-of-a-line-with-a-name-x", "at most 47"),
    "a name with a capital": ("metadata/name", "Daily", "small letters"),
    "a name with a dot": ("metadata/name", "daily.1", "small letters"),
    "no name": ("metadata/name", None, "metadata.name is None"),
    "a misspelt field": ("spec/activeDeadlineSecond", 5, "write activeDeadlineSeconds"),
    "a misspelt field of the cluster": (f"{CLUSTER}/enableInTreeAutoscalling", True, "write enableInTreeAutoscaling"),
    "a misspelt field of the head": (f"{HEAD}/rayStartParam", {}, "write rayStartParams"),
    "a misspelt field of a group": (f"{DATA}/maxReplica", 4, "write maxReplicas"),
    "a field that nobody knows": ("spec/colour", "red", "spec.colour is no field of KubeRay 1.7: remove it"),
    "an unknown submissionMode": ("spec/submissionMode", "K8SJobMode", "any other never submits"),
    "no submissionMode": ("spec/submissionMode", None, "any other never submits"),
    "nobody submits": ("spec/submissionMode", "InteractiveMode", "any other never submits"),
    "no deadline": ("spec/activeDeadlineSeconds", None, "activeDeadlineSeconds is None"),
    "a deadline of nothing": ("spec/activeDeadlineSeconds", 0, "activeDeadlineSeconds is 0"),
    "a deadline in words": ("spec/activeDeadlineSeconds", "1h", "activeDeadlineSeconds is '1h'"),
    "no deadline before running": ("spec/preRunningDeadlineSeconds", None, "preRunningDeadlineSeconds is None"),
    "KubeRay retries": ("spec/backoffLimit", 1, "spec.backoffLimit is 1: expected 0"),
    "KubeRay's own limit": ("spec/backoffLimit", None, "spec.backoffLimit is None: expected 0"),
    "the submitter retries": ("spec/submitterConfig", None, "submitterConfig.backoffLimit is None: expected 0"),
    "the head's image submits": ("spec/submitterPodTemplate", None, "the default takes the head's"),
    "the cluster stays": ("spec/shutdownAfterJobFinishes", False, "shutdownAfterJobFinishes is not true"),
    "another's cluster": ("spec/clusterSelector", {"a": "b"}, "expected a cluster of its own"),
    "no entrypoint": ("spec/entrypoint", None, "spec.entrypoint is None"),
    "an empty entrypoint": ("spec/entrypoint", " ", "spec.entrypoint is ' '"),
    "another program": ("spec/entrypoint", "bash run.sh", "expected python -m jobs.NAME"),
    "no cluster": (CLUSTER, None, "rayClusterSpec is missing"),
    "no version of Ray": (f"{CLUSTER}/rayVersion", None, "expected the image's, 2.52.0 or later"),
    "a Ray without tokens": (f"{CLUSTER}/rayVersion", "2.51.1", "expected the image's, 2.52.0 or later"),
    "no token": (f"{CLUSTER}/authOptions", None, "everybody who reaches the head can run code"),
    "tokens are off": (f"{CLUSTER}/authOptions/mode", "disabled", "authOptions.mode is 'disabled'"),
    "work on the head": (f"{HEAD}/rayStartParams", None, 'expected "0"'),
    "a small head": (f"{HEAD}/{RESOURCES}/requests/cpu", "1500m", "requests 1500m CPUs: expected 2 or more"),
    "no configuration": (f"{HEAD_POD}/volumes", [], "no volume run-config"),
    "no training group": (f"{TRAINING}/groupName", "train", "expected one called training"),
    "a group without maximum": (f"{DATA}/maxReplicas", None, "nodes without end"),
    "a group in disorder": (f"{DATA}/minReplicas", 9, "expected all three, in this order"),
    "a training group that scales": (f"{TRAINING}/minReplicas", 1, "expected a fixed number"),
    "no resource requests": (f"{DATA}/{RESOURCES}", None, "resources.requests.cpu is missing"),
    "no memory request": (f"{DATA}/{RESOURCES}/requests/memory", None, "memory has request None"),
    "no memory limit": (f"{DATA}/{RESOURCES}/limits/memory", None, "memory has request 32Gi and limit None"),
    "memory beyond the request": (f"{HEAD}/{RESOURCES}/limits/memory", "99Gi", "limit 99Gi: expected both, and equal"),
    "no room for spilling": (f"{TRAINING}/{RESOURCES}/limits/ephemeral-storage", None, "ephemeral-storage has request"),
    "an autoscaler without limits": (f"{CLUSTER}/autoscalerOptions/resources", None, "autoscaler: memory has request"),
    "root": (f"{HEAD_POD}/securityContext/runAsNonRoot", None, "head: securityContext.runAsNonRoot is not true"),
    "a submitter that is root": ("spec/submitterPodTemplate/spec/securityContext", None, "submitter: securityContext"),
    "an environment that is no mapping": ("spec/runtimeEnvYAML", "- a", "no mapping"),
    "an environment that is no YAML": ("spec/runtimeEnvYAML", "{", "no mapping"),
    "code beside the image": ("spec/runtimeEnvYAML", "working_dir: .", "the code is in the image"),
    "a number in the environment": ("spec/runtimeEnvYAML", with_env("A", 1), "A is no text"),
    "a variable that Ray refuses": ("spec/runtimeEnvYAML", with_env("RAY_ADDRESS"), "set by the command itself"),
    "a secret": ("spec/runtimeEnvYAML", with_env("AWS_SECRET_ACCESS_KEY"), "looks like a secret"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_every_mistake_is_named(mistake: str) -> None:
    """Catches a rule that lets its mistake pass: the run would hang, retry twice, or take a node with it."""
    path, value, words = MISTAKES[mistake]
    found = problems(changed(rayjob_of("prod-cpu"), path, value))
    assert [line for line in found if words in line], found
    assert all("\n" not in line for line in found)


@pytest.mark.parametrize("character", list("$;&|`\"'\\(){}[]<>*?#~!,%^@+\t\n\u00e9"))
def test_the_entrypoint_has_no_character_that_a_shell_reads(character: str) -> None:
    """Catches a word that one of the two shells between the RayJob and the command would change."""
    found = problems(changed(rayjob_of("dev"), "spec/entrypoint", f"{ENTRYPOINT} --set name=a{character}b"))
    assert ["two shells read it" in line for line in found] == [True]


@pytest.mark.parametrize("words", ["--day 2026-01-01", "--set root=s3://bucket/a_b.c", "--days 2026-01-01..2026-01-03"])
def test_plain_words_are_accepted(words: str) -> None:
    """Catches a rule that refuses what a command needs: dates, ranges, S3 places."""
    entrypoint = f"python -m jobs.daily --config /etc/counterpoise/config.yaml {words}"
    assert problems(changed(rayjob_of("dev"), "spec/entrypoint", entrypoint)) == []


def test_the_longest_name_is_accepted_and_a_secret_is_not_repeated() -> None:
    """Catches a limit that is one too low, and a secret that goes from a manifest into a log."""
    assert problems(changed(rayjob_of("dev"), "metadata/name", "a" * 47)) == []
    broken = changed(rayjob_of("dev"), "spec/runtimeEnvYAML", with_env("AWS_SECRET_ACCESS_KEY", "hush"))
    assert "hush" not in " ".join(problems(broken))


SEEN_BY_KUBERAY = [
    "a misspelt field",
    "a misspelt field of the cluster",
    "a misspelt field of the head",
    "a misspelt field of a group",
    "an unknown submissionMode",
    "a name too long",
    "a deadline of nothing",
]


@pytest.mark.parametrize("mistake", SEEN_BY_KUBERAY)
def test_the_rules_agree_with_kuberay(mistake: str) -> None:
    """Catches a rule of ours about a field that KubeRay sees otherwise; its other rules are ours alone."""
    path, value, _ = MISTAKES[mistake]
    assert shared_problems(changed(rayjob_of("prod-cpu"), path, value))


def test_the_rules_need_no_ray() -> None:
    """Catches an import that makes the launcher wait for torch and Ray."""
    code = (
        "import sys, pipeline.submission.rayjob_rules\n"
        "print([n for n in ('ray', 'torch', 'pyarrow') if n in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "[]"
