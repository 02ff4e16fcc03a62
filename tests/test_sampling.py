"""Logs that were thinned out before they were written: what is predicted and measured is for the whole log."""

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from features.encoding import Encoder
from features.errors import DataError
from features.schema import Schema
from features.tasks import TaskConfig
from models.assembly import task_heads
from models.loss import UnionSpaceLoss
from models.tasks import predictions_of
from pipeline.evaluation.metrics import TaskMetrics

RATE, CTR = 0.1, 0.05


def _schema(sampling: dict[str, Any] | None) -> Schema:
    return Schema.model_validate(
        {
            "tables": [{"name": "video", "num_rows": 10, "dim": 4}],
            "features": [{"kind": "id", "name": "video", "table": "video"}],
            "tasks": [{"name": "ctr", "label": "click", "sampling": sampling}],
        }
    )


def _log() -> dict[str, pa.Array]:
    """Clicks of a log of 200,000 rows, and which of its rows were kept."""
    dice = np.random.default_rng(3)
    click = dice.random(200_000) < CTR
    probability = np.where(click, 1.0, RATE)
    kept = dice.random(len(click)) < probability
    columns = {"click": click[kept].astype(np.int8), "kept": probability[kept], "video": np.ones(kept.sum(), np.int64)}
    return {name: pa.array(values) for name, values in columns.items()}


def _fitted(schema: Schema, log: dict[str, pa.Array]) -> torch.Tensor:
    """The logit of a model of one number, which the loss is least for."""
    encoded = Encoder(schema, None).encode(log)
    labels = torch.from_numpy(encoded.labels)
    weights = torch.ones_like(labels) if encoded.weights is None else torch.from_numpy(encoded.weights)
    loss, logit = UnionSpaceLoss(task_heads(schema.tasks)), torch.zeros(1, requires_grad=True)
    optimizer = torch.optim.LBFGS([logit], max_iter=50)

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        outputs = logit.expand(len(labels), 1)
        total, _ = loss(outputs, labels, ~labels.isnan(), weights, weights.sum(0), torch.ones(1))
        total.backward()
        return total

    optimizer.step(closure)  # pyright: ignore[reportArgumentType]
    return logit.detach()


@pytest.mark.parametrize(
    ("sampling", "corrected"),
    [
        ({"rate": RATE}, True),
        ({"rate": RATE, "correction": "log_odds"}, True),
        ({"column": "kept"}, True),
        (None, False),  # the negative control
    ],
)
def test_the_prediction_is_for_the_whole_log(sampling: dict[str, Any] | None, *, corrected: bool) -> None:
    """Catches a correction that is left out, made twice, or made the wrong way round."""
    schema, log = _schema(sampling), _log()
    logit = _fitted(schema, log)
    (predicted,) = predictions_of(task_heads(schema.tasks), logit.expand(1, 1)).values()
    assert (abs(float(predicted) - CTR) < 0.002) is corrected
    encoded = Encoder(schema, None, measuring=True).encode(log)
    labels = torch.from_numpy(encoded.labels[:, 0])
    weights = torch.ones_like(labels) if encoded.weights is None else torch.from_numpy(encoded.weights[:, 0])
    metrics = TaskMetrics(schema.tasks[0])
    scores = torch.full_like(labels, float(logit))
    metrics.update(scores.sigmoid(), scores, labels, ~labels.isnan(), weights)
    result = metrics.result()
    assert result["calibration"] == pytest.approx(1, abs=0.01)
    assert (result["mean_label"] == pytest.approx(CTR, abs=0.002)) is corrected


@pytest.mark.parametrize("kept", [0.0, 1.5, None])
def test_a_probability_that_is_none(kept: float | None) -> None:
    """Catches an infinite weight, and a row whose weight is not known."""
    log = {"click": pa.array([1, 0]), "kept": pa.array([0.5, kept], pa.float64()), "video": pa.array([1, 2])}
    with pytest.raises(DataError, match=r"task 'ctr': sampling.column 'kept' is .* at row 1, expected a probability"):
        Encoder(_schema({"column": "kept"}), None).encode(log)


@pytest.mark.parametrize(
    ("sampling", "message"),
    [
        ({}, "either rate or column"),
        ({"rate": 0.1, "column": "kept"}, "either rate or column"),
        ({"column": "kept", "correction": "log_odds"}, "log_odds needs rate"),
    ],
)
def test_a_declaration_that_says_nothing(sampling: dict[str, Any], message: str) -> None:
    """Catches a correction that is declared and not made."""
    with pytest.raises(ValueError, match=message):
        TaskConfig(name="ctr", label="click", sampling=sampling)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="thins out label 0 of binary tasks"):
        TaskConfig.model_validate({"name": "v", "kind": "regression", "label": "play", "sampling": {"rate": 0.1}})
