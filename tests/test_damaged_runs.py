"""Whole runs that begin from a checkpoint whose tensors are damaged: the ranks find it, as they load it."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from local_training import on_processes
from small_runs import DAYS, logs, make_config, unpublish, weights

from features.errors import DataError
from pipeline.cluster.failures import RunFailed
from pipeline.config.project import Config
from pipeline.evaluation.evaluate import evaluate
from pipeline.lineage import stored_checkpoint
from pipeline.lineage.line import Line
from pipeline.lineage.records import Manifest
from pipeline.log_passes.statistics import fit_statistics
from pipeline.storage.files import Storage
from pipeline.trainer.train_line import train

__all__ = ["logs"]  # a fixture
SHARD = "__0_0.distcp"


@pytest.fixture(scope="module", params=[1, 2])
def trained(
    request: pytest.FixtureRequest, logs: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Config, dict[str, Any]]:
    """A day trained without a disturbance, on one or two ranks, with checkpoints every 10 steps."""
    sections = {"checkpoint": {"every_steps": 10, "keep": 10}}
    sections["workers"] = {"num": request.param, "timeout_s": 60, "max_failures": 0}
    config = make_config(logs, tmp_path_factory.mktemp("root"), **sections)
    with on_processes():
        fit_statistics(config, DAYS[:1])
        return config, train(config, DAYS[:1], passes=1)


@pytest.fixture
def cut(trained: tuple[Config, dict[str, Any]], tmp_path: Path) -> Config:
    """The root as it was when the day had two checkpoints."""
    config = trained[0].model_copy(update={"root": str(tmp_path / "root")})
    shutil.copytree(trained[0].root, config.root)
    line = Line.of(config.root, config.line)
    for manifest in list(line.manifests()):
        if manifest.complete or manifest.step > 20:
            line.storage.remove(manifest.checkpoint)
    unpublish(line)
    return config


@pytest.fixture(autouse=True)
def large(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every file of tensors be too large for the command to read."""
    monkeypatch.setattr(stored_checkpoint, "_SMALL_BYTES", 0)


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Files of tensors that the command itself opens."""
    found: list[str] = []
    for method in ("open_read", "read", "read_range"):
        original = getattr(Storage, method)

        def note(storage: Storage, name: str, *arguments: Any, original: Any = original) -> Any:
            if name.endswith(".distcp"):
                found.append(name)
            return original(storage, name, *arguments)

        monkeypatch.setattr(Storage, method, note)
    return found


def _flip(line: Line, checkpoint: str) -> None:
    path = Path(line.storage.path(checkpoint)) / SHARD
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def _newest(line: Line) -> Manifest:
    found = line.newest()
    assert found is not None
    return found


def test_a_run_goes_back_by_itself(
    trained: tuple[Config, dict[str, Any]], cut: Config, tmp_path: Path, local_training: None
) -> None:
    """Catches a step that is made with damaged weights, a run that begins from the same again, and lost rows."""
    workers = cut.workers.model_copy(update={"max_failures": 1})
    line = Line.of(cut.root, cut.line)
    damaged = _newest(line)
    _flip(line, damaged.checkpoint)
    result = train(cut.model_copy(update={"workers": workers}), DAYS[:1], passes=1)
    assert result["step"] == trained[1]["step"]
    first, second = line.attempts(DAYS[:1])[-2:]
    assert (first.start, first.result, second.result) == (damaged.checkpoint, "restarted", "done")
    assert (damaged.step, second.start_step) == (20, 10)
    before, after = (
        weights(config, found["checkpoint"], tmp_path) for config, found in ((trained[0], trained[1]), (cut, result))
    )
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_the_same_command_goes_back_where_no_restart_is_allowed(
    trained: tuple[Config, dict[str, Any]], cut: Config, local_training: None
) -> None:
    """Catches damage that is forgotten with the workers that found it."""
    line = Line.of(cut.root, cut.line)
    _flip(line, _newest(line).checkpoint)
    with pytest.raises(RunFailed, match=rf"{SHARD} is not what was written, at bytes 0 to [\d,]+$"):
        train(cut, DAYS[:1], passes=1)
    assert train(cut, DAYS[:1], passes=1)["step"] == trained[1]["step"]


def test_the_published_checkpoint_is_not_passed_over(
    trained: tuple[Config, dict[str, Any]], tmp_path: Path, local_training: None
) -> None:
    """Catches a day that is trained without the rows of the day before, whose checkpoint is damaged."""
    workers = trained[0].workers.model_copy(update={"max_failures": 1})
    config = trained[0].model_copy(update={"root": str(tmp_path / "root"), "workers": workers})
    shutil.copytree(trained[0].root, config.root)
    line = Line.of(config.root, config.line)
    _flip(line, trained[1]["checkpoint"])
    with pytest.raises(DataError, match=r"which is damaged or gone: restore its files, or go back to an earlier day"):
        train(config, DAYS[1:], passes=1)
    assert not [manifest for manifest in line.manifests() if manifest.day == DAYS[1]]


def test_a_named_checkpoint_is_refused_in_one_line(
    trained: tuple[Config, dict[str, Any]], tmp_path: Path, opened: list[str], local_training: None
) -> None:
    """Catches a model that is measured with damaged weights, and workers that are started again for nothing."""
    config = trained[0].model_copy(update={"root": str(tmp_path / "root")})
    shutil.copytree(trained[0].root, config.root)
    name = trained[1]["checkpoint"]
    assert evaluate(config, DAYS[1:], name, [])["tasks"]  # the negative control
    _flip(Line.of(config.root, config.line), name)
    with pytest.raises(DataError) as refused:
        evaluate(config, DAYS[1:], name, [])
    assert f"checkpoint {name} was not read: {SHARD} is not what was written" in str(refused.value)
    assert str(refused.value).endswith(": restore the file, or name another checkpoint")
    assert "\n" not in str(refused.value)
    assert opened == []  # the ranks read the tensors, and nobody else
