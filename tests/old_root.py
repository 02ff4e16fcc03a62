"""The root that the code of 2026-11-29 wrote, before records were typed; see test_old_root.py."""

import tarfile
from pathlib import Path

from pipeline.config.load import load_config
from pipeline.config.project import Config

_ARCHIVE = Path(__file__).parent / "data/old_root.tar.xz"


def extract_old_root(folder: Path) -> Config:
    """Extract the root, its logs and what was expected of it; return its configuration.

    A person has added the reason for which an input may be read by a label, which today's code asks for.
    """
    with tarfile.open(_ARCHIVE) as archive:
        archive.extractall(folder, filter="data")
    file = folder / "config.yaml"
    asked = "name: duration_ms, log1p: true"
    file.write_text(file.read_text().replace(asked, f"{asked}, allow_outcome: known before"))
    return load_config(file, [f"root={folder}/root", f"logs.path={folder}/logs"])
