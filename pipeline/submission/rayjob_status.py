"""State of a RayJob, read from its status as the operator writes it (KubeRay 1.7)."""

from collections.abc import Mapping
from typing import Any

from pipeline.submission.job import parse_submission
from pipeline.submission.place import Submission

# A job that a person stops ends as Complete; only jobStatus SUCCEEDED is a success. DeadlineExceeded may leave
# jobStatus at RUNNING for ever. So jobDeploymentStatus alone says that a RayJob has ended.
ENDED = frozenset({"Complete", "Failed", "ValidationFailed"})
_REFUSED = "ValidationFailed"  # the operator never looks at it again

JOB_LABEL, CHAIN_LABEL = "counterpoise/job", "counterpoise/chain"
DAY_LABEL, DIGEST_ANNOTATION = "counterpoise/day", "counterpoise/digest"
COMMAND_ANNOTATION = "counterpoise/command"


def submission_of(rayjob: Mapping[str, Any]) -> Submission | None:
    """Return the state of the submission that a RayJob is; None if it is none of ours."""
    metadata, status = rayjob["metadata"], rayjob.get("status") or {}
    parsed = parse_submission(metadata["name"])
    if parsed is None:
        return None
    deployment = status.get("jobDeploymentStatus") or ""
    labels, annotations = metadata.get("labels") or {}, metadata.get("annotations") or {}
    return Submission(
        name=metadata["name"],
        number=parsed[1],
        phase=_phase(deployment),
        text=_text(metadata, status, deployment),
        digest=annotations.get(DIGEST_ANNOTATION),
        command=annotations.get(COMMAND_ANNOTATION, ""),
        day=labels.get(DAY_LABEL),
        is_refused=deployment == _REFUSED,
    )


def _phase(deployment: str) -> Any:
    if deployment in ENDED:
        return "ended"
    return "running" if deployment == "Running" else "waiting"


def _text(metadata: Mapping[str, Any], status: Mapping[str, Any], deployment: str) -> str:
    if not deployment:
        return f"the operator has not looked at it since {metadata.get('creationTimestamp', 'its creation')}"
    parts = [deployment, status.get("jobStatus"), status.get("reason")]
    text = ", ".join(part for part in parts if part)
    return f"{text}: {status['message']}" if status.get("message") else text
