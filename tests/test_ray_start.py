"""Surroundings in which no Ray can start: refused in our own words, since trying again cannot help."""

import functools
import json
import os
import re
import socket
import sys
from pathlib import Path
from typing import Any

import pytest
from local_training import Command, fork_server

from pipeline.config.workers import RayConfig


def _begin(settings: dict[str, Any]) -> int:
    """A command that needs a Ray of these settings, and does nothing with it."""
    from ray._common.utils import get_system_memory
    from ray._private import services

    from jobs.command import command
    from pipeline.cluster.ray_start import start_ray

    sys.argv = ["x"]
    running = settings.pop("running", [])
    services.find_gcs_addresses = functools.cache(lambda: set(running))  # this machine may have a Ray of somebody else
    if settings.get("object_store_mb") == "almost all":
        settings["object_store_mb"] = get_system_memory() // 2**20 - 50
    return command(lambda parser: None, lambda arguments: start_ray(RayConfig(**settings)) or {})


def start(folder: Path, **settings: Any) -> tuple[dict[str, Any], str]:
    """Run the command; return its JSON line, and what a person sees."""
    done = Command(_begin, [settings], folder / "out", folder / "err")
    done.wait(60)
    (line,) = (folder / "out").read_text().splitlines()
    return json.loads(line), (folder / "err").read_text()


@pytest.mark.parametrize(
    ("variable", "settings", "expected"),
    [
        ("TMPDIR", {}, r"TMPDIR is .*x, too long for the sockets of Ray: set it to a folder of at most \d\d bytes"),
        ("RAY_TMPDIR", {}, "RAY_TMPDIR is .*x, too long for the sockets of Ray"),
        ("HOME", {}, r"Ray cannot write .*/file/.*: give HOME .* a folder that can be written"),
        (None, {"address": "auto"}, r"ray.address is auto, and no Ray runs on this machine: .* ray.address: local"),
        (
            None,
            {"address": "auto", "running": ["127.0.0.1:1"]},
            "ray.address is auto, and no Ray runs on this machine: ",
        ),
        (None, {"object_store_mb": "almost all"}, r"ray.object_store_mb is \d+, .* has \d+ MiB of memory: lower it"),
        (None, {"object_store_mb": 10**15}, r"ray.object_store_mb is 1000000000000000, .*: lower it"),
        (None, {"address": "nowhere"}, r"ray.address is 'nowhere': expected local, auto or HOST:PORT"),
    ],
)
def test_surroundings_that_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str | None, settings: dict[str, Any], expected: str
) -> None:
    """Catches exit code 1, and an advice of Ray's that names an option which we do not have."""
    fork_server()  # before the folder for temporary files is another one
    (tmp_path / "file").touch()
    places = {
        "HOME": tmp_path / "file" / "home",
        "TMPDIR": tmp_path / ("x" * 100),
        "RAY_TMPDIR": tmp_path / ("x" * 100),
    }
    if variable is not None:
        if variable != "HOME":
            places[variable].mkdir()
        monkeypatch.setenv(variable, str(places[variable]))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    if "address" in settings:  # where Ray notes which one runs
        monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    result, shown = start(tmp_path, **settings)
    assert result["exit_code"] == 2, result
    assert result["error"] == shown.splitlines()[-1].partition(" E ")[2]

    assert re.match(expected, result["error"]), result["error"]
    assert "flag" not in result["error"]
    assert "Traceback" not in shown


def test_a_cluster_that_does_not_answer(tmp_path: Path) -> None:
    """Catches two minutes of waiting for a head that is away; it may come back, so this one may be tried again."""
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{closed.getsockname()[1]}"
        result, _ = start(tmp_path, address=address)
    assert (result["exit_code"], os.path.exists(result["log"])) == (1, True)
    assert f"no Ray answers at {address}" in result["error"]
    os.remove(result["log"])
