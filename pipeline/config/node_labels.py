"""Labels of Ray nodes that a task or a worker asks for, checked before a cluster is asked."""

import re
from typing import Annotated

from pydantic import AfterValidator

_NAME = r"[A-Za-z0-9](?:[A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?"
_KEY = re.compile(rf"(?:[a-z0-9](?:[a-z0-9.-]{{0,251}}[a-z0-9])?/)?{_NAME}")
_VALUE = re.compile(rf"!?(?:{_NAME}|in\({_NAME}(?:, ?{_NAME})*\))")


def _check(selector: dict[str, str]) -> dict[str, str]:
    for key, value in selector.items():
        if not _KEY.fullmatch(key):
            raise ValueError(
                f"label {key!r}: expected letters, digits and - _ . within, as in group or example.com/group"
            )
        if not _VALUE.fullmatch(value):
            raise ValueError(f"label {key}: {value!r}: expected VALUE, !VALUE, in(A, B) or !in(A, B)")
    return selector


LabelSelector = Annotated[dict[str, str], AfterValidator(_check)]
