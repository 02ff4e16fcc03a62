"""Rules for the environment of a run: variables that Ray would refuse, and secrets that everybody could read."""

import re
from collections.abc import Iterator
from typing import Any

import yaml

# Given to Ray by the command itself (pipeline/cluster/ray_start.py); Ray refuses a variable that comes from both.
_OWN = ("RAY_ADDRESS", "RAY_DATA_LOG_LEVEL", "RAY_COLOR_PREFIX")
_SECRET = re.compile(r"SECRET|TOKEN|PASSWORD|ACCESS_KEY|CREDENTIAL", re.IGNORECASE)


def runtime_env_problems(text: Any) -> Iterator[str]:
    """Yield what is wrong with `runtimeEnvYAML`, one line each; values are not repeated.

    Args:
        text: The field's value; None: absent.
    """
    if text is None:
        return
    try:
        found = yaml.safe_load(text)
    except (yaml.YAMLError, AttributeError):
        found = text
    if not isinstance(found, dict):
        yield "spec.runtimeEnvYAML is no mapping: expected env_vars with its variables"
        return
    if others := sorted(set(found) - {"env_vars"}):
        yield f"spec.runtimeEnvYAML has {', '.join(others)}: expected env_vars alone; the code is in the image"
    variables = found.get("env_vars") or {}
    for name, value in variables.items() if isinstance(variables, dict) else [("env_vars", None)]:
        if not isinstance(value, str):
            yield f"spec.runtimeEnvYAML: {name} is no text: expected a quoted value"
        elif re.search(r"[$`\\]", value):
            yield f"spec.runtimeEnvYAML: {name} has $, ` or \\: expected none, since a shell reads it; set it in a pod"
        if name in _OWN:
            yield f"spec.runtimeEnvYAML: {name} is set by the command itself: remove it"
        if _SECRET.search(str(name)):
            yield f"spec.runtimeEnvYAML: {name} looks like a secret: expected it in a Secret of the pods (envFrom)"
