"""Models trained together: the bits that each would have alone, also where a worker dies in between."""

import gc
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import ray
import torch
from faults import after_save, after_step, at_trainer, first_time, kill_me, replace_worker
from small_runs import DAYS, logs, make_config, weights

from features.errors import ConfigError, DataError, Interrupted
from features.statistics import StatisticsAccumulator
from models.ranker import StepOutput
from pipeline.config.project import Config
from pipeline.lineage.frozen_statistics import STATISTICS
from pipeline.lineage.line import Line
from pipeline.log_passes.statistics import fit_statistics
from pipeline.storage.sealed_json import seal
from pipeline.studies.candidates import with_tasks
from pipeline.trainer.train import Trainer, train_worker
from pipeline.trainer.train_days import HeldLine, finished_checkpoints, train_days
from pipeline.trainer.train_line import train, train_together

__all__ = ["logs"]  # a fixture
ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # Ray's workers cannot import this file


def _models(logs: Path, root: Path) -> list[Config]:
    """One of both tasks, and one of the second alone, whose labels are in another column of the rows' labels."""
    workers = {"num": 2, "timeout_s": 60, "max_failures": 1}
    both = make_config(logs, root, workers=workers, checkpoint={"every_steps": 5})
    return [both.model_copy(update={"line": "a"}), with_tasks(both, ["vcr"]).model_copy(update={"line": "b"})]


def _worker_that_dies(job: Any, lane: Any, folder: Path) -> dict[str, Any]:
    """`train_worker`, whose rank 1 is killed once, in the second model; notes how many trainers there are."""

    def count() -> None:
        alive = sum(isinstance(one, Trainer) for one in gc.get_objects())
        with (folder / "alive").open("a") as file:
            file.write(f"{alive} ")

    def die(trainer: Trainer, output: StepOutput | None) -> None:
        is_there = trainer.job.line.name == "b" and trainer.step == 8
        if is_there and ray.train.get_context().get_world_rank() == 1 and first_time(folder / "happened"):
            kill_me()

    at_trainer(setattr, count)
    after_step(setattr, die)
    return train_worker(job, lane)


def _worker_that_asks(job: Any, lane: Any) -> dict[str, Any]:
    """`train_worker`, which is asked to end with the last step of its first model."""

    def ask(trainer: Trainer, *, complete: bool) -> None:
        if complete and trainer.progress.day == DAYS[-1] and trainer.job.line.name == "a":
            ray.get(trainer.job.board.request_stop.remote())

    after_save(setattr, ask)
    return train_worker(job, lane)


def test_a_stop_between_models_is_heard(
    logs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, local_training: None
) -> None:
    """Catches many models of less than a second each, none of which hears that it is asked to end."""
    models = [with_tasks(model, ["vcr"]) for model in _models(logs, tmp_path)]
    models = [model.model_copy(update={"workers": model.workers.model_copy(update={"num": 1})}) for model in models]
    for config in models:
        fit_statistics(config, DAYS)
    replace_worker(monkeypatch.setattr, _worker_that_asks)
    with pytest.raises(Interrupted, match="stopped by SIGTERM at step"):
        train_together(models[0], models, DAYS, passes=1)
    first, second = (Line.of(config.root, config.line) for config in models)
    newest = first.newest()
    assert newest is not None
    assert newest.day == DAYS[-1]
    assert newest.complete
    assert not list(second.manifests())


def test_together_is_as_alone(
    logs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, local_training: None
) -> None:
    """Catches another model's labels, its dice or its optimizer, and a restart that begins the finished model anew."""
    together, (_, alone) = _models(logs, tmp_path / "together"), _models(logs, tmp_path / "alone")
    for config in [*together, alone]:
        fit_statistics(config, DAYS)
    with monkeypatch.context() as patch:
        replace_worker(patch.setattr, _worker_that_dies, folder=tmp_path)
        results = train_together(together[0], together, DAYS, passes=1)
    assert (tmp_path / "happened").exists()
    assert set((tmp_path / "alive").read_text().split()) == {"1"}  # the one that is made: there is room for one model
    expected = weights(alone, train(alone, DAYS, passes=1)["checkpoint"], tmp_path)
    found = weights(together[1], results[1]["checkpoint"], tmp_path)
    assert set(found) == set(expected)
    assert [name for name in found if not torch.equal(found[name], expected[name])] == []
    for config, result in zip(together, results, strict=True):
        line = Line.of(config.root, config.line)
        latest, manifest = line.latest(), line.read_manifest(result["checkpoint"])
        assert latest is not None
        assert latest.checkpoint == result["checkpoint"]
        assert [record.result for record in line.attempts(DAYS)] == ["restarted", "done"]
        assert manifest is not None
        assert list(manifest.rows_in_space) == config.log_schema.task_names
    assert [one["result"] for one in train_together(together[0], together, DAYS, passes=1)] == ["nothing to do"] * 2


def test_a_refusal_says_of_which_model(tmp_path: Path) -> None:
    """Catches one of fifty models that cannot go on, and a message that could be of any of them."""
    configs = _models(tmp_path, tmp_path)
    lines = [HeldLine(config, Line.of(config.root, config.line), "run") for config in configs]
    reported = {"refused": "a loss is not finite", "reached": [{"step": 9}, {"step": 3}]}
    with pytest.raises(DataError, match=r"^line 'b': a loss is not finite$"):
        finished_checkpoints(lines, DAYS, 1, reported)
    with pytest.raises(DataError, match=r"^line 'a': a loss is not finite$"):
        finished_checkpoints(lines, DAYS, 1, reported | {"reached": [{"step": 9}, {}]})
    with pytest.raises(DataError, match=r"^a loss is not finite$"):
        finished_checkpoints(lines[:1], DAYS, 1, reported | {"reached": [{"step": 9}]})


def test_other_statistics_are_refused(tmp_path: Path) -> None:
    """Catches rows that are standardised with the numbers of another model's line."""
    lines = []
    for config, least in zip(_models(tmp_path, tmp_path), (1, 2), strict=True):
        schema = config.log_schema
        accumulator = StatisticsAccumulator(schema)
        columns = {name: pa.array([least, 3]) for name in schema.columns()}
        accumulator.update(columns | {"history_video_id": pa.array([[1], [2]])})
        line = Line.of(config.root, config.line)
        line.storage.write(STATISTICS, seal(accumulator.finish(DAYS).model_dump(mode="json")))
        lines.append(HeldLine(config, line, "run"))
    with pytest.raises(ConfigError, match="line 'b' cannot be trained with line 'a': its statistics"):
        train_days(lines[0].config, lines, DAYS, passes=1)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"seed": 12}, "line 'b' cannot be trained with the others: its seed is another"),
        ({"ingest": {"batch_size": 32}}, "its ingest is another"),
    ],
)
def test_other_rows_are_refused(change: dict[str, Any], expected: str, tmp_path: Path) -> None:
    """Catches a model that is compared with others, and has seen other rows, or in another order."""
    first, second = _models(tmp_path, tmp_path)
    other = make_config(tmp_path, tmp_path, **change)
    changed = second.model_copy(update={name: getattr(other, name) for name in change})
    lines = [HeldLine(config, Line.of(config.root, config.line), "run") for config in (first, changed)]
    with pytest.raises(ConfigError, match=expected):
        train_days(first, lines, DAYS, passes=1)


def test_another_task_of_the_same_name_is_refused(tmp_path: Path) -> None:
    """Catches a model that is trained on another's labels because their tasks have one name."""
    first, second = _models(tmp_path, tmp_path)
    (task,) = second.log_schema.tasks
    renamed = second.log_schema.model_copy(update={"tasks": [task.model_copy(update={"label": "share"})]})
    lines = [HeldLine(second.model_copy(update={"log_schema": renamed}), Line.of(first.root, "b"), "run")]
    with pytest.raises(ConfigError, match="its task vcr is another"):
        train_days(first, lines, DAYS, passes=1)
