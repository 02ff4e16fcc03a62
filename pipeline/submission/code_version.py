"""Version of the code, of Python and of Ray, to refuse a cluster that runs others than the submitter's."""

import hashlib
import platform
from importlib.metadata import version
from pathlib import Path

_PROJECT = Path(__file__).parents[2]
_ROOMS = ("features", "jobs", "models", "pipeline")
_HEX = 12


def code_version() -> str:
    """Return the version of what runs here, e.g. `code 0123456789ab, Python 3.11, Ray 2.60.0`.

    The code's part is the checksum of all Python files of the rooms.
    """
    digest = hashlib.sha256()
    for path in sorted(path for room in _ROOMS for path in (_PROJECT / room).rglob("*.py")):
        digest.update(f"{path.relative_to(_PROJECT)}\0".encode() + path.read_bytes() + b"\0")
    python = ".".join(platform.python_version_tuple()[:2])
    return f"code {digest.hexdigest()[:_HEX]}, Python {python}, Ray {version('ray')}"
