"""Single-task baselines of a comparison: each is really trained, whatever weight its task has among the others."""

from pathlib import Path

import pytest
import torch

from features.errors import ConfigError
from models.assembly import task_heads
from models.loss import LossWeightConfig, UnionSpaceLoss
from pipeline.config.load import load_config
from pipeline.studies.candidates import with_tasks

ROOT = Path(__file__).parents[1]


def _gradients(config_file: str, tasks: list[str], settings: list[str] | None = None) -> dict[str, float]:
    """Return the size of each task's gradient at its output, in the model of some tasks."""
    config = with_tasks(load_config(ROOT / "jobs/configs" / config_file, settings or []), tasks)
    heads = task_heads(config.log_schema.tasks)
    outputs = torch.zeros(8, sum(head.num_outputs for head in heads), requires_grad=True)
    ones = torch.ones(8, len(heads))
    weights = config.loss_weights.schedule([head.name for head in heads]).at(3)
    loss, _ = UnionSpaceLoss(heads)(outputs, ones, ones.bool(), ones, torch.full((len(heads),), 8.0), weights)
    loss.backward()
    assert outputs.grad is not None
    return {head.name: outputs.grad[:, place].abs().sum().item() for place, head in enumerate(heads)}


def test_a_task_of_weight_0_is_trained_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches ESMM's baseline of cvr, which is trained through a product of probabilities, and alone not at all."""
    monkeypatch.chdir(ROOT)
    assert _gradients("aliccp.yaml", ["cvr"])["cvr"] > 0
    assert min(_gradients("aliccp.yaml", ["ctr", "cvr"]).values()) > 0


def test_a_baseline_has_weight_1(monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a baseline whose steps are smaller than the model's, or vanish with the days."""
    monkeypatch.chdir(ROOT)
    declared = {"unit": "day", "tasks": {"ctr": {"initial": 0.001, "gamma": 0.5}}}
    settings = [f"loss_weights={declared}"]
    assert _gradients("demo.yaml", ["ctr"], settings) == _gradients("demo.yaml", ["ctr"])
    assert _gradients("demo.yaml", ["ctr", "vtr"], settings)["ctr"] < _gradients("demo.yaml", ["ctr", "vtr"])["ctr"]


def test_all_weights_0_are_refused() -> None:
    """Catches a day of training that moves no weight."""
    nothing = LossWeightConfig.model_validate({"tasks": {"a": {"initial": 0}, "b": {"initial": 0}}})
    with pytest.raises(ConfigError, match="every task has weight 0, so nothing would be trained: raise one"):
        nothing.schedule(["a", "b"])
    nothing.schedule(["a", "b", "c"])
    late = {"tasks": {"a": {"initial": 0, "floor": 0.1}}}
    assert LossWeightConfig.model_validate(late).schedule(["a"]).at(0).tolist() == pytest.approx([0.1])
