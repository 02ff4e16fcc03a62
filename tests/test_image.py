"""The image's files: the linter's verdict, all that a command needs, and the hooks that run before a pod ends."""

import fnmatch
import re
import subprocess
import sys
import textwrap
import time
import uuid
from pathlib import Path

import pytest
from manifests import K8S, ROOT

DOCKERFILE = (K8S / "Dockerfile").read_text()
HADOLINT = Path(sys.executable).parent / "hadolint"


def lint(text: str) -> str:
    done = subprocess.run([HADOLINT, "-"], input=text, capture_output=True, text=True, check=False)
    return done.stdout


def test_the_dockerfile_is_clean() -> None:
    """Catches what hadolint knows: an unpinned base, a cached index, a step that hides its failure."""
    assert lint(DOCKERFILE) == ""
    assert "DL3006" in lint("FROM python\n")  # the negative control


def test_the_image_runs_as_a_number_that_is_not_root() -> None:
    """Catches a user by name, which Kubernetes cannot tell from root, and a target that stays root."""
    stages = re.split(r"^FROM ", DOCKERFILE, flags=re.MULTILINE)[1:]
    users = {stage.split(" AS ")[1].split()[0]: re.findall(r"^USER (.+)$", stage, re.MULTILINE) for stage in stages}
    assert users["runtime"] == users["submitter"] == ["10001:10001"]
    assert re.search(r"^ARG BASE=[a-z]+:\d+\.\d+\.\d+-", DOCKERFILE, re.MULTILINE), "pinned by a version's tag"


def ignored(path: str) -> bool:
    """Return True if .dockerignore keeps a path out of the image; its last matching line decides."""
    verdict = False
    for line in (ROOT / ".dockerignore").read_text().splitlines():
        pattern = line.removeprefix("!")
        parts = [path, *map(str, Path(path).parents)]
        name = pattern.removeprefix("**/")
        if (
            line
            and not line.startswith("#")
            and any(fnmatch.fnmatch(part, pattern) or (name != pattern and Path(part).name == name) for part in parts)
        ):
            verdict = not line.startswith("!")
    return verdict


def test_the_image_holds_the_code_and_nothing_else() -> None:
    """Catches a room that the image lacks, a command without its configurations, and a checkout's leftovers."""
    rooms = ("features", "models", "pipeline", "jobs")
    needed = [str(path.relative_to(ROOT)) for room in rooms for path in (ROOT / room).rglob("*.py")]
    needed += [str(path.relative_to(ROOT)) for path in (ROOT / "jobs" / "configs").rglob("*.yaml")]
    needed += ["requirements/base.txt", "requirements/cpu.txt", "requirements/cuda.txt"]
    needed += [f"k8s/{name}" for name in set(re.findall(r"/app/k8s/([\w.-]+)", _base_rayjob()))]
    assert len(needed) > 200
    assert [path for path in needed if ignored(path)] == []
    others = (
        ".git/HEAD",
        ".venv/bin/python",
        "runs/demo/LATEST",
        "tests/conftest.py",
        "k8s/overlays/dev/accounts.yaml",
    )
    assert [path for path in (*others, "jobs/__pycache__/daily.pyc") if not ignored(path)] == []


def _base_rayjob() -> str:
    return (K8S / "base" / "rayjob" / "rayjob.yaml").read_text()


# --- The hooks ---


@pytest.fixture
def commands(tmp_path: Path) -> str:
    """The prefix of modules that no other process of this machine runs: one saves when it is asked, one is slow."""
    prefix = f"jobs_{uuid.uuid4().hex}_"
    program = """
        import pathlib, signal, sys, time

        def save(number, frame):
            time.sleep(SECONDS)
            pathlib.Path("saved").touch()
            sys.exit(1)

        signal.signal(signal.SIGTERM, save)
        pathlib.Path("ready").touch()
        time.sleep(60)
    """
    for name, seconds in (("quick", 1.0), ("slow", 30.0)):
        text = textwrap.dedent(program).replace("SECONDS", str(seconds))
        (tmp_path / f"{prefix}{name}.py").write_text(text)
    return prefix


def _started(folder: Path, line: list[str]) -> subprocess.Popen[bytes]:
    process = subprocess.Popen(line, cwd=folder)
    deadline = time.monotonic() + 30
    while not (folder / "ready").exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return process


def _hook(prefix: str, seconds: int) -> float:
    began = time.monotonic()
    subprocess.run(["sh", str(K8S / "pre-stop-driver.sh"), prefix, str(seconds)], check=True, timeout=60)
    return time.monotonic() - began


@pytest.mark.parametrize("through_a_shell", [False, True])
def test_the_head_waits_until_the_command_has_saved(tmp_path: Path, commands: str, through_a_shell: bool) -> None:
    """Catches a hook that ends Ray's processes before the checkpoint is complete, or that finds no command."""
    line = [sys.executable, "-m", f"{commands}quick", "--config", "a.yaml"]
    if through_a_shell:  # as the supervisor of a Ray job starts it
        line = ["sh", "-c", " ".join(line) + "; exit $?"]
    process = _started(tmp_path, line)
    assert _hook(commands, 20) < 15
    assert (tmp_path / "saved").exists()
    assert process.wait(10) == 1


def test_the_head_waits_no_longer_than_it_may(tmp_path: Path, commands: str) -> None:
    """Catches a hook that lasts until the pod is killed, with Ray's processes in the midst of their work."""
    process = _started(tmp_path, [sys.executable, "-m", f"{commands}slow"])
    assert 1.5 < _hook(commands, 2) < 10
    assert process.poll() is None
    process.kill()
    process.wait(10)


def test_the_head_ends_no_other_process(tmp_path: Path, commands: str) -> None:
    """Catches a pattern that is met by Ray's own processes, or by a command line that only names the module."""
    process = _started(tmp_path, [sys.executable, f"{commands}slow.py", "-m", f"{commands}slow"])
    assert _hook(commands, 5) < 3
    assert process.poll() is None
    assert not (tmp_path / "saved").exists()
    process.kill()
    process.wait(10)
