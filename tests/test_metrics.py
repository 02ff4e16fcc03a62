"""Metrics in a task's own space: against scikit-learn, over parts, and over two real ranks."""

import json
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.multiprocessing.spawn import spawn

from features.tasks import TaskConfig
from pipeline.evaluation.metrics import TaskMetrics
from pipeline.evaluation.rank_merge import results_over_ranks

_NAN = float("nan")
_TASKS = [
    TaskConfig(name="ctr", label="click"),
    TaskConfig(name="vcr", label="share", kind="regression"),
    TaskConfig(name="rating", label="stars", kind="multiclass", num_classes=3),
]
_CTR, _VCR, _RATING = _TASKS
_EACH_TASK = pytest.mark.parametrize("task", _TASKS, ids=lambda task: task.name)


def _rows(task: TaskConfig, num_rows: int, seed: int = 0) -> dict[str, Tensor]:
    """Arguments of an update: about half of the rows are in the space, garbage stands in the others."""
    random = torch.Generator().manual_seed(seed)
    scores = torch.randn(num_rows, *([3] if task.kind == "multiclass" else []), generator=random)
    noise = torch.randn(num_rows, generator=random)
    match task.kind:
        case "binary":
            labels = (scores + noise > 0).float()
        case "regression":
            labels = scores.sigmoid() + noise
        case "multiclass":
            labels = scores.argmax(1).where(noise > 0, 1).float()
    predictions = scores.softmax(1) if task.kind == "multiclass" else scores.sigmoid()
    in_space = torch.rand(num_rows, generator=random) < 0.5
    weight = torch.randint(1, 5, (num_rows,), generator=random) / 2
    rows = {"predictions": predictions, "scores": scores, "labels": labels, "weight": weight}
    garbage = [_NAN, math.inf, -1e30, 7.0]
    for index, value in enumerate(rows.values()):
        value[~in_space] = garbage[index]
    return rows | {"in_space": in_space}


def _measured(task: TaskConfig, *parts: dict[str, Tensor]) -> TaskMetrics:
    metrics = TaskMetrics(task)
    for part in parts:
        metrics.update(**part)
    return metrics


def _picked(rows: dict[str, Tensor], index: Any) -> dict[str, Tensor]:
    return {name: value[index] for name, value in rows.items()}


def _known(value: float | None) -> float:
    assert value is not None
    return value


def _assert_close(result: dict[str, Any], expected: dict[str, Any], rel: float) -> None:
    """Approximately equal, and None where the other is None."""
    assert result.keys() == expected.keys()
    for name, value in expected.items():
        assert result[name] == (None if value is None else pytest.approx(value, rel=rel, abs=1e-12)), name


def _in_space(task: TaskConfig, rows: dict[str, Tensor]) -> dict[str, np.ndarray]:
    return {name: value.double().numpy() for name, value in _picked(rows, rows["in_space"]).items()}


def _binary(logits: list[float], labels: list[float]) -> dict[str, Tensor]:
    scores = torch.tensor(logits)
    rows = {"predictions": scores.sigmoid(), "scores": scores, "labels": torch.tensor(labels)}
    return rows | {"in_space": torch.ones(len(labels), dtype=torch.bool), "weight": torch.ones(len(labels))}


def test_binary_by_hand() -> None:
    """Catches: a mean without its weight, a ratio upside down, and rows that stand for weight.

    Chances 3/4, 1/4, 1/2 with labels 1, 0, 0 and weights 1, 1, 2.
    """
    rows = _binary([math.log(3), -math.log(3), 0.0], [1.0, 0.0, 0.0])
    rows["weight"] = torch.tensor([1.0, 1.0, 2.0])
    result = _measured(_CTR, rows).result()
    log_loss = (2 * math.log(4 / 3) + 2 * math.log(2)) / 4
    expected = {
        "rows": 3,
        "weight": 4.0,
        "positives": 1,
        "auc": 1.0,
        "log_loss": log_loss,
        "normalised_entropy": log_loss / -(0.25 * math.log(0.25) + 0.75 * math.log(0.75)),
        "mse": (1 / 16 + 1 / 16 + 2 / 4) / 4,
        "mae": (1 / 4 + 1 / 4 + 2 / 2) / 4,
        "calibration": 2.0,
        "mean_prediction": 0.5,
        "mean_label": 0.25,
        "label_variance": 0.1875,
    }
    assert result == pytest.approx(expected, rel=1e-6)


def test_equals_scikit_learn_in_the_space() -> None:
    """Catches: a metric of another name, over all rows, or without weights."""
    from sklearn import metrics as sk  # here, so that spawned ranks need not

    binary, values, classes = (_rows(task, 5000) for task in _TASKS)
    inside, weight = _in_space(_CTR, binary), _in_space(_CTR, binary)["weight"]
    result = _measured(_CTR, binary).result()
    assert result["rows"] == len(weight)
    assert result["auc"] == pytest.approx(sk.roc_auc_score(inside["labels"], inside["scores"], sample_weight=weight))
    assert result["log_loss"] == pytest.approx(
        sk.log_loss(inside["labels"], inside["predictions"], sample_weight=weight)
    )
    inside, weight = _in_space(_VCR, values), _in_space(_VCR, values)["weight"]
    result = _measured(_VCR, values).result()
    pair = (inside["labels"], inside["predictions"])
    assert result["mse"] == pytest.approx(sk.mean_squared_error(*pair, sample_weight=weight))
    assert result["mae"] == pytest.approx(sk.mean_absolute_error(*pair, sample_weight=weight))
    assert result["r2"] == pytest.approx(sk.r2_score(*pair, sample_weight=weight))
    inside, weight = _in_space(_RATING, classes), _in_space(_RATING, classes)["weight"]
    result, chances = _measured(_RATING, classes).result(), inside["predictions"]
    chances = chances / chances.sum(1, keepdims=True)
    assert result["log_loss"] == pytest.approx(sk.log_loss(inside["labels"], chances, sample_weight=weight), rel=1e-6)
    assert result["accuracy"] == pytest.approx(
        sk.accuracy_score(inside["labels"], chances.argmax(1), sample_weight=weight)
    )


@_EACH_TASK
@settings(max_examples=20, deadline=None)
@given(num_rows=st.integers(0, 60), seed=st.integers(0, 999))
def test_rows_outside_the_space_change_no_bit(task: TaskConfig, num_rows: int, seed: int) -> None:
    """Catches: a mask by multiplication (NaN * 0 is NaN), padding that is counted, a label read outside the space."""
    rows = _rows(task, num_rows, seed)
    with_garbage, alone = _measured(task, rows), _measured(task, _picked(rows, rows["in_space"]))
    assert torch.equal(with_garbage.state(), alone.state())
    assert with_garbage.result() == alone.result()


def test_all_rows_measure_something_else() -> None:
    """Catches: a test of spaces on data where they do not matter (the negative control of the one above)."""
    rows = _rows(_CTR, 2000)
    outside = ~rows["in_space"]
    for name, value in _binary([2.0] * 2000, [0.0] * 2000).items():
        rows[name] = torch.where(outside, value, rows[name]) if name != "in_space" else rows[name]
    own = _measured(_CTR, rows).result()
    everywhere = _measured(_CTR, rows | {"in_space": torch.ones(2000, dtype=torch.bool)}).result()
    for name in ("auc", "log_loss", "calibration", "mse"):
        assert abs(_known(own[name]) - _known(everywhere[name])) > 0.1


@_EACH_TASK
@settings(max_examples=20, deadline=None)
@given(num_rows=st.integers(1, 60), seed=st.integers(0, 999), num_parts=st.integers(1, 4))
def test_order_and_parts_do_not_matter(task: TaskConfig, num_rows: int, seed: int, num_parts: int) -> None:
    """Catches: a mean of batch means, and a merge that forgets or repeats a part."""
    rows = _rows(task, num_rows, seed)
    order = torch.from_numpy(np.random.default_rng(seed).permutation(num_rows))
    merged = TaskMetrics(task)
    for index in order.tensor_split(num_parts):
        part = _measured(task, *(_picked(rows, batch) for batch in index.split(7)))
        merged.merge(TaskMetrics.from_state(task, part.state()))
    expected = _measured(task, rows).result()
    _assert_close(merged.result(), expected, rel=1e-9)
    assert merged.result()["rows"] == expected["rows"]


def test_log_loss_of_a_confident_mistake_is_not_clipped() -> None:
    """Catches: a log loss from float32 probabilities, which is infinite at a logit of 30, or clipped at 16."""
    assert _measured(_CTR, _binary([30.0], [0.0])).result()["log_loss"] == pytest.approx(30)
    assert _measured(_CTR, _binary([-200.0, 200.0], [1.0, 0.0])).result()["log_loss"] == 200


def test_normalised_entropy_of_the_base_rate_is_one() -> None:
    """Catches: an entropy in bits, and a denominator of the predictions instead of the labels."""
    rows = _binary([math.log(1 / 3)] * 8, [1.0, 0.0, 0.0, 0.0] * 2)
    result = _measured(_CTR, rows).result()
    assert result["normalised_entropy"] == pytest.approx(1, rel=1e-6)
    assert result["calibration"] == pytest.approx(1, rel=1e-6)
    assert result["auc"] == 0.5


@_EACH_TASK
def test_no_row_in_the_space_is_undefined(task: TaskConfig) -> None:
    """Catches: a division by zero, 0 or .5 for a task that was not measured; also where all weights are zero."""
    rows = _rows(task, 8)
    for nothing in (rows | {"in_space": torch.zeros(8, dtype=torch.bool)}, rows | {"weight": torch.zeros(8)}):
        result = _measured(task, nothing).result()
        assert result["rows"] == int(nothing["in_space"].sum())
        assert {value for name, value in result.items() if name not in ("rows", "weight", "positives")} == {None}


@pytest.mark.parametrize("label", [0.0, 1.0])
def test_one_class_is_undefined(label: float) -> None:
    """Catches: an AUC of .5 and an entropy of 0 to divide by, where a slice has one class only."""
    result = _measured(_CTR, _binary([0.5, -0.5, 2.0], [label] * 3)).result()
    assert result["auc"] is None
    assert result["normalised_entropy"] is None
    assert (result["calibration"] is None) == (label == 0)
    assert _known(result["log_loss"]) > 0


def test_constant_labels_have_no_r2() -> None:
    """Catches: a variance of 1e-17 left by rounding, and an r2 of -1e15 from it."""
    rows = _rows(_VCR, 1000) | {"labels": torch.full((1000,), 0.1)}
    result = _measured(_VCR, *(_picked(rows, slice(at, at + 10)) for at in range(0, 1000, 10))).result()
    assert result["label_variance"] == 0
    assert result["r2"] is None
    assert result["mean_label"] == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scores": torch.tensor([1.0, _NAN])}, "task 'ctr': 1 of the scores of 2 rows .* are NaN or infinite"),
        ({"predictions": torch.tensor([0.5, math.inf])}, "the predictions of 2 rows"),
        ({"labels": torch.tensor([_NAN, _NAN])}, "2 of the labels of 2 rows .* belongs outside the space"),
        ({"weight": torch.tensor([1.0, _NAN])}, "the weights of 2 rows"),
        ({"weight": torch.tensor([1.0, -1.0])}, "a weight is -1"),
        ({"scores": torch.tensor([0.5, 0.5])}, "0.1225 apart: give logits"),
    ],
)
def test_what_cannot_be_measured_is_refused(change: dict[str, Tensor], message: str) -> None:
    """Catches: NaN in a report, and a baseline that gives probabilities where logits are due; and half an update."""
    metrics = TaskMetrics(_CTR)
    rows = _binary([0.0, 0.0], [0.0, 1.0]) | change
    with pytest.raises(ValueError, match=message):
        metrics.update(**rows)
    assert metrics.result()["rows"] == 0


def _parts_of_ranks(task: TaskConfig, rank: int) -> list[dict[str, Tensor]]:
    """Rank 0 has more rows than rank 1; of the last task rank 1 has none."""
    if rank == 0:
        return [_rows(task, 3000, seed) for seed in (1, 2, 3)]
    return [] if task is _RATING else [_rows(task, 500, 4)]


def _measure_on_a_rank(rank: int, folder: str) -> None:
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    group = dist.group.WORLD
    assert group is not None
    own = [_measured(task, *_parts_of_ranks(task, rank)) for task in _TASKS]
    before = [metrics.state() for metrics in own]
    merged = results_over_ranks(own, group, TaskMetrics.result)
    assert all(torch.equal(metrics.state(), state) for metrics, state in zip(own, before, strict=True))
    Path(folder, f"{rank}.json").write_text(json.dumps(merged))
    dist.destroy_process_group()


def test_two_ranks_equal_one_process(tmp_path: Path) -> None:
    """Catches: a mean of ranks' AUCs, a rank without rows that hangs the others, ranks that disagree in a bit."""
    spawn(_measure_on_a_rank, args=(str(tmp_path),), nprocs=2)
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1))
    assert first == second
    for task, result in zip(_TASKS, first, strict=True):
        parts = [part for rank in (0, 1) for part in _parts_of_ranks(task, rank)]
        _assert_close(result, _measured(task, *parts).result(), rel=1e-12)
    alone = _measured(_CTR, *_parts_of_ranks(_CTR, 0)).result()
    assert first[0]["auc"] != pytest.approx(alone["auc"], abs=1e-6)
