"""JSON with a checksum of its content: a cursor with a flipped digit would load as another cursor."""

import hashlib
import json
from typing import Any

_SEAL = "sha256"


def seal(content: dict[str, Any]) -> bytes:
    """Write JSON with the checksum of its own content, under the key `sha256`."""
    return json.dumps(content | {_SEAL: _digest(content)}, indent=1).encode()


def unseal(data: bytes) -> dict[str, Any]:
    """Read JSON that `seal` wrote, without the checksum.

    Raises:
        ValueError: The data are not JSON, have no checksum, or another one.
    """
    content = json.loads(data)
    if not isinstance(content, dict) or _SEAL not in content:
        raise ValueError("no JSON object with a checksum")
    expected = content.pop(_SEAL)
    if _digest(content) != expected:
        raise ValueError(f"its checksum is not the {str(expected)[:12]} that it was written with")
    return content


def _digest(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
