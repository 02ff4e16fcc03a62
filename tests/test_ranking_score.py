"""The ranking score: Eq. 1 by hand, its special values, the lexicographic order, and the checks of its declaration."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from pydantic import TypeAdapter, ValidationError

from features.errors import ConfigError
from models.ranking_score import RankingConfig, lexicographic, log_duration_factor, log_product, ranking_score
from pipeline.config.load import load_config

ROOT = Path(__file__).parents[1]
_TOP = {"by": "user_id"}
_PRODUCT = {"kind": "product", "exponents": {"ctr": 1.0, "vcr": 0.5}, "top": _TOP}


def _config(data: dict[str, Any]) -> Any:
    return TypeAdapter(RankingConfig).validate_python(data)


def _tensors(**values: list[float]) -> dict[str, torch.Tensor]:
    return {name: torch.tensor(numbers, dtype=torch.float32) for name, numbers in values.items()}


def test_eq_1_by_hand() -> None:
    """Catches exponents that multiply instead of being powers, a factor that is added, and logs of another base."""
    config = _config(_PRODUCT | {"duration": {"column": "ms", "function": "log", "scale": 1000, "offset": -1000}})
    score = ranking_score(config, _tensors(ctr=[0.5, 0.25, 1.0], vcr=[0.25, 1.0, 0.0625]), torch.tensor([0, 1000, 6e3]))
    by_hand = [0.5 * 0.5 * math.log(2), 0.25 * 1 * math.log(3), 1 * 0.25 * math.log(8)]
    assert score.dtype == torch.float64
    assert score.exp().tolist() == pytest.approx(by_hand, rel=1e-12)


def test_the_sigmoid_of_the_duration_by_hand() -> None:
    """Catches a sigmoid whose offset is a factor, or whose scale multiplies."""
    factor = log_duration_factor(torch.tensor([10.0, 30.0]), "sigmoid", scale=20, offset=10)
    assert factor.exp().tolist() == pytest.approx([0.5, 1 / (1 + math.exp(-1))], rel=1e-12)


def test_an_exponent_of_0_leaves_a_task_out() -> None:
    """Catches 0 times the logarithm of 0, which is NaN and not 0."""
    predictions = _tensors(ctr=[0.5, 0.5, 0.5], vcr=[0.0, math.nan, math.inf])
    assert log_product(predictions, {"ctr": 2.0, "vcr": 0.0}).exp().tolist() == pytest.approx([0.25] * 3)
    assert _config(_PRODUCT | {"exponents": {"ctr": 1, "vcr": 0}}).tasks == ["ctr"]


def test_special_values_of_predictions() -> None:
    """Catches a 0 that is ranked by a floor, a negative mean that becomes NaN, and a NaN that gets a rank."""
    score = log_product(_tensors(ctr=[0.0, -0.5, math.nan, math.inf, 1e-30, 1e-38]), {"ctr": 1.0})
    assert score[:2].tolist() == [-math.inf, -math.inf]
    assert score[2:4].isnan().all()
    assert score[4] > score[5] > -math.inf  # a product of floats would be 0
    assert log_product(_tensors(ctr=[1e-38], vcr=[1e-38]), {"ctr": 9.0, "vcr": 9.0}).isfinite().all()


@pytest.mark.parametrize(("function", "at_0"), [("log", -math.inf), ("sigmoid", math.log(0.5))])
def test_special_values_of_durations(function: Any, at_0: float) -> None:
    """Catches an unknown or impossible duration that is ranked by another rule than a duration of 0."""
    durations = torch.tensor([0.0, -5.0, math.nan, math.inf, -math.inf], dtype=torch.float64)
    factor = log_duration_factor(durations, function, scale=10)
    assert factor.tolist() == pytest.approx([at_0] * 5)
    # No known duration spoils the product: minus infinity stays, and is no NaN.
    assert log_product(_tensors(ctr=[0.0] * 5), {"ctr": 1.0}, factor).tolist() == [-math.inf] * 5


@pytest.mark.parametrize("kind", ["log", "sigmoid"])
def test_the_order_of_10_000_rows_is_numpy_s(kind: str) -> None:
    """Catches a score whose order is not that of the product of powers, for example after a rounding to float32."""
    random = np.random.default_rng(7)
    p = {name: random.beta(1, 20, 10_000).astype(np.float32) for name in ("ctr", "vcr", "shr")}
    w = {"ctr": 0.7, "vcr": 1.9, "shr": 0.25}
    duration = random.exponential(3e4, 10_000)
    declared = {"column": "ms", "function": kind, "scale": 5e3, "offset": 2e3}
    config = _config({"kind": "product", "exponents": w, "duration": declared, "top": _TOP})
    score = ranking_score(config, {name: torch.from_numpy(v) for name, v in p.items()}, torch.from_numpy(duration))
    u = (duration - 2e3) / 5e3
    factor = np.log(1 + np.maximum(u, 0)) if kind == "log" else 1 / (1 + np.exp(-u))
    product = np.prod([p[name].astype(np.float64) ** w[name] for name in w], axis=0) * factor
    assert (product == 0).sum() == (score == -math.inf).sum()
    np.testing.assert_array_equal(np.argsort(-score.numpy(), kind="stable"), np.argsort(-product, kind="stable"))


def test_the_lexicographic_order_of_10_000_rows_is_numpy_s() -> None:
    """Catches a last prediction that carries into the next bucket, or is lost beside a bucket's number."""
    random = np.random.default_rng(8)
    ctr, like = random.random(10_000).astype(np.float32), random.random(10_000).astype(np.float32) ** 8
    follow = np.concatenate([random.random(5000) ** 40, 1 - random.random(5000) * 1e-6]).astype(np.float32)
    ctr[:100] = np.float32(0.7)  # on a bound, which float32 rounds down
    bounds = [0.1, 0.2, 0.5, 0.7]
    score = lexicographic([torch.from_numpy(values) for values in (ctr, like, follow)], [bounds, [0.01]]).numpy()
    buckets = [np.searchsorted(np.float32(b), v, side="right") for b, v in ((bounds, ctr), ([0.01], like))]
    assert (buckets[0][:100] == 4).all()
    expected = np.lexsort((np.arange(10_000), -follow.astype(np.float64), -buckets[1], -buckets[0]))
    np.testing.assert_array_equal(np.argsort(-score, kind="stable"), expected)
    np.testing.assert_array_equal(np.floor(score), buckets[0] * 2 + buckets[1])


def test_special_values_of_the_lexicographic_order() -> None:
    """Catches -0 that ranks below 0, negative means out of order, and a NaN in any task that gets a rank."""
    last = torch.tensor([-3.0, -0.5, -0.0, 0.0, 1e-40, 7.0])
    score = lexicographic([torch.zeros(6), last], [[0.5]])
    assert (score.diff()[[0, 1, 3, 4]] > 0).all()
    assert score[2] == score[3]
    assert lexicographic([torch.tensor([math.nan, 1.0]), torch.tensor([0.0, math.inf])], [[0.5]]).isnan().all()


def test_buckets_of_a_width() -> None:
    """Catches a prediction of 1 in a bucket above the highest, and a bound that lies in the lower bucket."""
    tasks = [{"task": "ctr", "width": 0.1}, {"task": "shr"}]
    config = _config({"kind": "lexicographic", "tasks": tasks, "top": _TOP})
    score = ranking_score(config, _tensors(ctr=[0.0, 0.1, 0.3, 0.7, 0.95, 1.0], shr=[0.5] * 6))
    assert score.floor().tolist() == [0, 1, 3, 7, 9, 9]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (_PRODUCT | {"exponents": {"ctr": -1.0}}, "greater than or equal to 0"),
        (_PRODUCT | {"exponents": {"ctr": 0.0}}, "every exponent is 0"),
        (_PRODUCT | {"exponents": {"ctr": math.inf}}, "finite"),
        (_PRODUCT | {"duration": {"column": "ms", "function": "log", "scale": 0}}, "greater than 0"),
        (_PRODUCT | {"top": {"by": "user_id", "k": 0}}, "greater than or equal to 1"),
        ({"kind": "lexicographic", "tasks": [{"task": "ctr"}, {"task": "shr"}], "top": _TOP}, "all tasks but the last"),
        ({"kind": "lexicographic", "tasks": [{"task": "ctr", "width": 0.1}], "top": _TOP}, "all tasks but the last"),
        (
            {
                "kind": "lexicographic",
                "tasks": [{"task": "a", "width": 1e-4}, {"task": "b", "width": 1e-3}, {"task": "c"}],
            }
            | {"top": _TOP},
            "declare at most 1,048,576",
        ),
    ],
)
def test_declarations_without_a_meaning(data: dict[str, Any], message: str) -> None:
    """Catches a negative exponent, an empty score, or buckets that a float64 cannot number."""
    with pytest.raises(ValidationError, match=message):
        _config(data)


@pytest.mark.parametrize(
    ("ranking", "message"),
    [
        (_PRODUCT | {"exponents": {"cttr": 1}}, "ranking.exponents.cttr: there is no task 'cttr': did you mean 'ctr'?"),
        (_PRODUCT | {"top": {"by": "user"}}, "ranking.top.by: there is no column 'user': did you mean 'user_id'?"),
        (
            _PRODUCT | {"duration": {"column": "duration", "function": "log", "scale": 1}},
            "ranking.duration.column: there is no column 'duration': did you mean 'duration_ms'?",
        ),
        (_PRODUCT | {"exponent": {}}, "unknown key ranking.exponent: did you mean 'exponents'?"),
        (
            {"kind": "lexicographic", "tasks": [{"task": "vcr", "width": 0.5}, {"task": "ctr"}], "top": _TOP},
            "ranking.tasks.0.width: task 'vcr' is regression",
        ),
        (_PRODUCT | {"exponents": {"kinds": 1}}, "task 'kinds' is multiclass"),
        (_PRODUCT | {"exponents": {"aux": 1}}, "task 'aux' is auxiliary"),
    ],
)
def test_wrong_names_fail_at_load(ranking: dict[str, Any], message: str, tmp_path: Path) -> None:
    """Catches a name that fails only when predictions are scored, or fails without its path."""
    config = yaml.safe_load((ROOT / "jobs/configs/demo.yaml").read_text())
    config["schema"]["tasks"] += [
        {"name": "kinds", "kind": "multiclass", "num_classes": 3, "label": "kind"},
        {"name": "aux", "label": "share", "role": "auxiliary"},
    ]
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config | {"ranking": _PRODUCT}))
    assert load_config(tmp_path / "config.yaml").ranking is not None  # the negative control
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config | {"ranking": ranking}))
    with pytest.raises(ConfigError) as caught:
        load_config(tmp_path / "config.yaml")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
