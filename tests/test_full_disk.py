"""A disk that is full: whatever was written, one line says so, with the place and what to do.

Run as a script, this file writes to a folder, of which all but some kilobytes are taken.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import pytest

SIZE = 200_000  # bytes of the disk
_MOUNT = f'mount -t tmpfs -o size={SIZE // 1000}k tmpfs "$1" && exec "$2" "$3" "$1"'


def _file(folder: Path) -> None:
    from pipeline.storage.files import Storage

    Storage(str(folder)).write("reports/a.json", bytes(2 * SIZE))


def _new_file(folder: Path) -> None:
    from pipeline.storage.files import Storage

    Storage(str(folder)).create("ledger/1.json", bytes(2 * SIZE))


def _swapped_file(folder: Path) -> None:
    from pipeline.storage.files import Storage

    storage = Storage(str(folder))
    storage.write("LATEST", b"1")
    found = storage.read_versioned("LATEST")
    assert found is not None
    try:
        storage.replace("LATEST", bytes(2 * SIZE), found[1])
    finally:
        assert storage.read("LATEST") == b"1"


def _day(folder: Path) -> None:
    from features.synthetic.logs import SyntheticConfig, write_day

    world = SyntheticConfig(
        seed=1, first_day=date(2026, 1, 1), rows_per_day=9000, num_users=99, num_videos=99, num_authors=9
    )
    write_day(world, date(2026, 1, 1), folder / "logs")


def _checkpoint(folder: Path) -> None:
    import torch
    import torch.distributed as dist

    from pipeline.checkpoint.write import write_checkpoint
    from pipeline.storage.files import Storage

    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    group = dist.new_group(backend="gloo")
    write_checkpoint({"weight": torch.rand(SIZE)}, Storage(str(folder)), "checkpoints/1", _Manifest(), group)  # type: ignore


class _Manifest:
    """A manifest that nobody gets to."""


WRITERS: dict[str, Callable[[Path], None]] = {
    "reports/a.json": _file,
    "ledger/1.json": _new_file,
    "LATEST": _swapped_file,
    "logs": _day,
    "checkpoints/1/__0_0.distcp": _checkpoint,
}


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[dict[str, Any], int]]:
    """Return the message of a command for each writer, on a small disk that its process alone sees."""
    folder = tmp_path_factory.mktemp("disk")
    shell = ["sh", "-c", _MOUNT, "sh", str(folder), sys.executable, __file__]
    unshare = shutil.which("unshare")
    if unshare is None or subprocess.run([unshare, "-Urm", "true"], check=False, capture_output=True).returncode:
        pytest.skip("a small disk needs `unshare -Urm`: user and mount namespaces, which this machine does not allow")
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    done = subprocess.run(
        [unshare, "-Urm", *shell], capture_output=True, text=True, check=False, timeout=400, env=environment
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1]) | {"folder": str(folder)}


@pytest.mark.parametrize("place", WRITERS)
def test_a_full_disk(said: dict[str, Any], place: str) -> None:
    """Catches `[enforce fail at inline_container.cc:672]`, and an error that does not say which disk is full."""
    result, code = said[place]
    assert code == 1  # once there is room, the same command goes on
    assert "No space left on device" in result["error"]
    assert f"{said['folder']}/{place}" in result["error"]
    assert ": make room there" in result["error"]
    assert "run the same command again" in result["error"]
    assert "inline_container" not in result["error"]
    assert "\n" not in result["error"]


def _main(folder: Path) -> None:
    from jobs.command import outcome

    found = {}
    for place, write in WRITERS.items():
        found[place] = outcome(lambda _, write=write: write(folder) or {}, None)  # type: ignore
        for path in folder.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    sys.stdout.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    _main(Path(sys.argv[1]))
