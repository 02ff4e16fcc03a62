"""The runbook's table of exit codes: every cause is produced here, or by the test that is named here."""

import argparse
import re
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from features.errors import Interrupted
from features.schema import Schema
from jobs import make_logs
from jobs.__main__ import refuse
from jobs.command import outcome
from pipeline.cluster.failures import RunFailed
from pipeline.cluster.ray_start import start_ray
from pipeline.config.load import load_config
from pipeline.config.workers import RayConfig
from pipeline.ingest.units import check_days
from pipeline.storage.files import Storage

TESTS = Path(__file__).parent
RUNBOOK = (TESTS.parent / "docs/runbook.md").read_text()


def _outcome(work: Callable[[], Any]) -> int:
    return outcome(lambda _: work() or {}, argparse.Namespace())[1]


def _raising(error: BaseException) -> Callable[[], Any]:
    def work() -> None:
        raise error

    return work


def _make_logs(folder: Path, logs: str) -> int:
    world = {"seed": 1, "first_day": "2026-11-01", "rows_per_day": 5, "num_users": 2, "num_videos": 2, "num_authors": 1}
    (folder / "world.yaml").write_text("".join(f"{key}: {value}\n" for key, value in world.items()))
    parser = argparse.ArgumentParser()
    make_logs.add_arguments(parser)
    arguments = ["--world", str(folder / "world.yaml"), "--days", "2026-11-01", "--logs", logs]
    return outcome(make_logs.run, parser.parse_args(arguments))[1]


def _nothing_to_do(folder: Path, patch: pytest.MonkeyPatch) -> int:
    return _make_logs(folder, str(folder / "logs")) + _make_logs(folder, str(folder / "logs"))


def _interrupted(folder: Path, patch: pytest.MonkeyPatch) -> int:
    (code,) = {_outcome(_raising(error)) for error in (KeyboardInterrupt(), SystemExit(1), Interrupted("stopped"))}
    return code


def _full_disk(folder: Path, patch: pytest.MonkeyPatch) -> int:
    patch.setattr("os.fsync", lambda _: _raising(OSError(28, "No space left on device"))())
    return _outcome(lambda: Storage(str(folder)).write("a", b"1"))


def _silent_cluster(folder: Path, patch: pytest.MonkeyPatch) -> int:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        return _outcome(lambda: start_ray(RayConfig(address=f"127.0.0.1:{closed.getsockname()[1]}")))


def _wrong_config(folder: Path, patch: pytest.MonkeyPatch) -> int:
    (folder / "my.yaml").write_text("seed: 1\nseed: 2\n")
    codes = {_outcome(lambda name=name: load_config(folder / name)) for name in ("my.yaml", "none.yaml")}
    (code,) = codes
    return code


def _no_place(folder: Path, patch: pytest.MonkeyPatch) -> int:
    (folder / "file").touch()
    storage = Storage(str(folder / "file/root"))
    codes = {_make_logs(folder, "s3://bucket/logs"), _outcome(lambda: storage.write("LATEST", b"1"))}
    for number, words in ((13, "Permission denied"), (30, "Read-only file system")):
        codes.add(_outcome(_raising(OSError(number, words, str(folder)))))
    (code,) = codes
    assert _outcome(_raising(PermissionError("S3 refuses the key"))) == 1  # credentials may be renewed
    return code


def _no_ray(folder: Path, patch: pytest.MonkeyPatch) -> int:
    patch.setenv("RAY_TMPDIR", "/tmp/" + "x" * 100)
    return _outcome(lambda: start_ray(RayConfig()))


def _no_log(folder: Path, patch: pytest.MonkeyPatch) -> int:
    schema = Schema.model_validate(
        {
            "tables": [{"name": "user", "num_rows": 10, "dim": 4}],
            "features": [{"kind": "id", "name": "user", "table": "user"}],
            "tasks": [{"name": "ctr", "label": "click"}],
        }
    )
    return _outcome(lambda: check_days(Storage(str(folder)), ["2026-11-01"], 10, schema, ["user", "click"]))


CAUSES: dict[str, Callable[[Path, pytest.MonkeyPatch], int] | str] = {
    "the work is done": lambda folder, _: _make_logs(folder, str(folder / "logs")),
    "there is nothing to do": _nothing_to_do,
    "a worker, Ray or a storage failed, or a bug": lambda *_: _outcome(_raising(RunFailed("rank 0: it died"))),
    "a disk is full": _full_disk,
    "the cluster does not answer": _silent_cluster,
    "Ctrl-C, or SIGTERM after a save": _interrupted,
    "the command has another name, or other arguments": lambda *_: refuse("dialy", []),
    "the configuration is missing, wrong or ambiguous": _wrong_config,
    "a place is none, or cannot be written": _no_place,
    "no Ray can start on this machine": _no_ray,
    "a log is missing, damaged, or does not fit the configuration": _no_log,
    "preflight or the gate refuses the day": "test_an_anomalous_day_is_refused_until_it_is_accepted",
    "another command holds the line, or the line is at another day": "test_of_two_jobs_one_wins",
    "the model diverges": "test_loss_that_is_not_finite_stops_the_run",
    "the command was killed": "test_a_command_that_is_killed",
}


def table() -> dict[str, str]:
    """Give the code of each cause in the runbook."""
    (section,) = re.findall(r"^## Exit codes$(.*?)^## ", RUNBOOK, re.MULTILINE | re.DOTALL)
    rows = re.findall(r"^\| (.+?) \| (\d|none) \|", section, re.MULTILINE)
    assert len(rows) == len(dict(rows))
    return dict(rows)


def test_the_table_is_whole() -> None:
    """Catches a cause that the runbook does not have, and one that no test produces."""
    assert list(table()) == list(CAUSES)
    assert set(table().values()) == {"0", "1", "2", "3", "none"}
    text = "".join(path.read_text() for path in TESTS.glob("test_*.py"))
    named = [name for name in CAUSES.values() if isinstance(name, str)]
    assert [name for name in named if not re.search(rf"^def {name}\b", text, re.MULTILINE)] == []


@pytest.mark.parametrize("cause", [cause for cause, work in CAUSES.items() if not isinstance(work, str)])
def test_a_cause(cause: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches 1 where trying again cannot help, and 2 or 3 where it can: a scheduler acts upon the number."""
    work = CAUSES[cause]
    assert not isinstance(work, str)
    assert str(work(tmp_path, monkeypatch)) == table()[cause]
