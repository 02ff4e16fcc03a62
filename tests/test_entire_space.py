"""Composed probabilities against products that are written out, and that a composed task is a task like any other."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError
from torch import Tensor

from features.errors import ConfigError
from features.schema import Schema
from models.assembly import build_ranker, task_heads
from models.entire_space import EntireSpace, EntireSpaceConfig
from models.loss import UnionSpaceLoss
from models.optional_parts import AroundConfig
from models.ple import CGCConfig
from models.tasks import TaskHead, predictions_of

Outputs = dict[str, Tensor]

CTR, CVR, CTAVR, CTCVR = (TaskHead(name=name, kind="binary") for name in ("ctr", "cvr", "ctavr", "ctcvr"))
PLACE, DWELL = TaskHead(name="place", kind="multiclass", num_classes=3), TaskHead(name="dwell", kind="regression")

ESMM: dict[str, Any] = {"towers": ["buy"], "probabilities": {"ctcvr": {"given": "ctr", "then": "buy"}}}
ESM2: dict[str, Any] = {
    "towers": ["act", "buy_acted", "buy_other"],
    "probabilities": {
        "ctcvr": {"given": "ctr", "then": "cvr"},  # reads what comes after it
        "ctavr": {"given": "ctr", "then": "act"},
        "cvr": {"given": "act", "then": "buy_acted", "otherwise": "buy_other"},
    },
}


def _esmm(y: Outputs) -> Outputs:
    return {"ctr": y["ctr"], "ctcvr": y["ctr"] * y["buy"]}


def _esm2(y: Outputs) -> Outputs:
    cvr = y["act"] * y["buy_acted"] + (1 - y["act"]) * y["buy_other"]
    return {"ctr": y["ctr"], "ctavr": y["ctr"] * y["act"], "ctcvr": y["ctr"] * cvr, "cvr": cvr}


def _deep(y: Outputs) -> Outputs:
    ab = y["a"] * y["b"] + (1 - y["a"]) * y["a"]
    return {"ctr": y["ctr"], "cvr": ab * y["c"] + (1 - ab) * ab}


CASES: dict[str, tuple[dict[str, Any], list[TaskHead], Callable[[Outputs], Outputs]]] = {
    "esmm": (ESMM, [CTR, CTCVR], _esmm),
    "esmm, with other tasks": (ESMM, [PLACE, CTCVR, DWELL, CTR], _esmm),
    "esmm, cvr measured": (
        {"probabilities": {"ctcvr": {"given": "ctr", "then": "cvr"}}},
        [CTR, CVR, CTCVR],
        lambda y: {"ctr": y["ctr"], "cvr": y["cvr"], "ctcvr": y["ctr"] * y["cvr"]},
    ),
    "esm2": (ESM2, [CTR, CTAVR, CTCVR, CVR], _esm2),
    "esm2, cvr unmeasured": (ESM2, [CTCVR, CTR, PLACE, CTAVR], _esm2),
    "a rule twice deep": (
        {
            "towers": ["a", "b", "c"],
            "probabilities": {
                "cvr": {"given": "ab", "then": "c", "otherwise": "ab"},
                "ab": {"given": "a", "then": "b", "otherwise": "a"},
            },
        },
        [CTR, CVR],
        _deep,
    ),
}


def _build(case: str) -> tuple[EntireSpace, list[TaskHead], list[TaskHead]]:
    """The module, the towers and the tasks."""
    declared, heads, _ = CASES[case]
    config = EntireSpaceConfig.model_validate(declared)
    return config.build(heads), config.tower_heads(heads), heads


def _split(heads: list[TaskHead], outputs: Tensor) -> Outputs:
    parts = outputs.split([head.num_outputs for head in heads], dim=1)
    return {head.name: part for head, part in zip(heads, parts, strict=True)}


def _reference(case: str, towers: list[TaskHead], heads: list[TaskHead], outputs: Tensor) -> dict[str, Tensor]:
    """Predict from products of sigmoids; return raw outputs of the tasks that are no probabilities."""
    raw = _split(towers, outputs)
    composed = CASES[case][2]({name: part.sigmoid() for name, part in raw.items()})
    return {head.name: composed[head.name] if head.kind == "binary" else raw[head.name] for head in heads}


@pytest.mark.parametrize("case", CASES)
def test_equals_the_products_in_values_and_gradients(case: str) -> None:
    """Catches a rule that is read wrongly, towers mixed up by their order, and a wrong gradient of a composed logit."""
    module, towers, heads = _build(case)
    torch.manual_seed(0)
    outputs = 2 * torch.randn(50, sum(tower.num_outputs for tower in towers), dtype=torch.float64)
    outputs.requires_grad_()
    mine = _split(heads, module(outputs))
    expected = _reference(case, towers, heads, outputs)
    for head in heads:
        got = mine[head.name].sigmoid() if head.kind == "binary" else mine[head.name]
        torch.testing.assert_close(got, expected[head.name], rtol=0, atol=1e-13)
        weights = torch.rand_like(got)
        losses = ((values * weights).sum() for values in (got, expected[head.name]))
        grads = [torch.autograd.grad(loss, outputs, retain_graph=True)[0] for loss in losses]
        torch.testing.assert_close(*grads, rtol=0, atol=1e-13)


def test_esm2_by_hand() -> None:
    """Catches a deviation that the products above would share: y = 1/2, 1/4, 3/4, 1/5."""
    module, towers, heads = _build("esm2")
    assert [tower.name for tower in towers] == ["ctr", "act", "buy_acted", "buy_other"]
    outputs = torch.logit(torch.tensor([[1 / 2, 1 / 4, 3 / 4, 1 / 5]]))
    found = predictions_of(heads, module(outputs))
    # cvr = 1/4 3/4 + 3/4 1/5 = 27/80
    expected = {"ctr": 1 / 2, "ctavr": 1 / 8, "ctcvr": 27 / 160, "cvr": 27 / 80}
    assert list(found) == list(expected)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], torch.tensor([value]))


def test_a_tower_s_own_logit_passes_bit_by_bit() -> None:
    """Catches a detour through probabilities of what no rule composes."""
    module, towers, heads = _build("esmm, with other tasks")
    outputs = torch.randn(20, 6)
    mine, own = _split(heads, module(outputs)), _split(towers, outputs)
    assert all(torch.equal(mine[name], own[name]) for name in ("place", "dwell", "ctr"))


@pytest.mark.parametrize("size", [60.0, 200.0, 1e4])
@pytest.mark.parametrize("label", [0.0, 1.0])
def test_extreme_towers_stay_finite(size: float, label: float) -> None:
    """Catches a probability that is formed at all: of a product of sigmoids of -60 the logarithm is -inf in float32."""
    module, _, _ = _build("esm2")
    signs = torch.cartesian_prod(*[torch.tensor([-size, size])] * 4).requires_grad_()
    outputs = module(signs)
    F.binary_cross_entropy_with_logits(outputs, torch.full_like(outputs, label)).backward()
    assert outputs.isfinite().all()
    assert signs.grad is not None
    assert signs.grad.isfinite().all()
    # A click and an action that are both as good as impossible: log p is the sum of both.
    ctavr = outputs[(signs[:, :2] < 0).all(1), 1]
    torch.testing.assert_close(ctavr, torch.full_like(ctavr, -2 * size))
    # Both as good as certain: 1 - p is twice exp(-size).
    ctavr = outputs[(signs[:, :2] > 0).all(1), 1]
    torch.testing.assert_close(ctavr, torch.full_like(ctavr, size - float(torch.tensor(2.0).log())))
    assert (signs.sigmoid()[0, :2].prod().log() == -torch.inf) == (size >= 60)  # the control


def _loss(module: EntireSpace, heads: list[TaskHead], outputs: Tensor, batch: dict[str, Tensor]) -> Tensor:
    return UnionSpaceLoss(heads)(module(outputs), **batch)[0]


def _batch(num_rows: int, num_tasks: int) -> dict[str, Tensor]:
    return {
        "labels": torch.randint(0, 2, (num_rows, num_tasks)).double(),
        "in_space": torch.ones(num_rows, num_tasks, dtype=torch.bool),
        "weight": torch.rand(num_rows, num_tasks, dtype=torch.float64),
        "denominators": torch.full((num_tasks,), 7.0, dtype=torch.float64),
        "loss_weights": torch.arange(1, num_tasks + 1).double(),
    }


def test_the_loss_is_cross_entropy_of_the_products_over_all_impressions() -> None:
    """Catches a composed task that is trained on another probability than its own, or on a part of the rows; towers
    without a loss of their own learn through the products.
    """
    module, towers, heads = _build("esm2")
    torch.manual_seed(1)
    outputs, batch = torch.randn(30, 4, dtype=torch.float64, requires_grad=True), _batch(30, 4)
    expected = torch.zeros((), dtype=torch.float64)
    for index, (name, p) in enumerate(_reference("esm2", towers, heads, outputs).items()):
        assert name == heads[index].name
        for row in range(30):
            y = batch["labels"][row, index]
            row_loss = -(y * p[row, 0].log() + (1 - y) * (1 - p[row, 0]).log())
            expected = expected + (index + 1) * batch["weight"][row, index] * row_loss / 7
    total = _loss(module, heads, outputs, batch)
    torch.testing.assert_close(total, expected)
    grads = [torch.autograd.grad(loss, outputs)[0] for loss in (total, expected)]
    torch.testing.assert_close(*grads)
    assert (grads[0] != 0).all()


def test_a_probability_that_is_only_reported_trains_nothing() -> None:
    """Catches a task of weight 0 (ESM2's pCVR has no loss) that moves towers through what it shares with others."""
    torch.manual_seed(2)
    module, _, heads = _build("esm2")
    outputs, batch = torch.randn(30, 4, dtype=torch.float64, requires_grad=True), _batch(30, 4)
    batch["loss_weights"] = torch.tensor([1.0, 1, 1, 0], dtype=torch.float64)
    (with_it,) = torch.autograd.grad(_loss(module, heads, outputs, batch), outputs)
    of_three = EntireSpaceConfig.model_validate(ESM2).build(heads[:3])
    less = {name: tensor[..., :3] for name, tensor in batch.items()}
    (without,) = torch.autograd.grad(_loss(of_three, heads[:3], outputs, less), outputs)
    torch.testing.assert_close(with_it, without, rtol=0, atol=1e-15)
    batch["loss_weights"][3] = 1
    (trained,) = torch.autograd.grad(_loss(module, heads, outputs, batch), outputs)
    assert not torch.allclose(trained, without, atol=1e-3)  # the control


@pytest.mark.parametrize("garbage", [torch.nan, torch.inf, -1e30])
def test_rows_outside_a_space_change_nothing(garbage: float) -> None:
    """Catches a label outside the space that reaches towers through a product, and padding that does."""
    torch.manual_seed(3)
    module, _, heads = _build("esm2")
    outputs, batch = torch.randn(30, 4, dtype=torch.float64, requires_grad=True), _batch(30, 4)
    batch["in_space"] = torch.rand(30, 4) < 0.5
    batch["in_space"][-3:] = False
    spoilt = {name: torch.where(batch["in_space"], batch[name], garbage) for name in ("labels", "weight")}
    clean, same = (
        torch.autograd.grad(_loss(module, heads, outputs, batch | changed), outputs)[0] for changed in ({}, spoilt)
    )
    assert torch.equal(clean, same)
    assert not clean[-3:].any()
    assert clean[batch["in_space"].any(1)].any(1).all()


def test_symbolic_trace() -> None:
    """Catches what TorchRec's pipelines cannot trace."""
    module, _, _ = _build("esm2")
    outputs = torch.randn(9, 4)
    torch.testing.assert_close(torch.fx.symbolic_trace(module)(outputs), module(outputs))
    assert not module.state_dict()


# --- Declared ---

CLICK: dict[str, Any] = {"given": "ctr", "then": "cvr"}


@pytest.mark.parametrize(
    ("declared", "message"),
    [
        ({"probabilities": {"ctcvr": CLICK | {"then": "cvx"}}}, "no task or tower 'cvx': did you mean 'cvr'?"),
        ({"probabilities": {"ctcvr": CLICK | {"otherwise": "zzz"}}}, "no task or tower 'zzz': there are .* declare it"),
        ({"probabilities": {"ctcvr": CLICK | {"then": "place"}}}, "task 'place' is multiclass, it has no probability"),
        ({"probabilities": {"place": CLICK}}, "task 'place' is multiclass, it has no probability"),
        ({"probabilities": {"ctcvr": CLICK, "more": CLICK}}, "'more' is no task, and no probability reads it"),
        ({"towers": ["buy"], "probabilities": {"ctcvr": CLICK}}, "'buy' is no task, and no probability reads it"),
        ({"towers": ["ctr"], "probabilities": {"ctcvr": CLICK}}, "towers: 'ctr' is a task, .*: rename"),
        ({"towers": ["buy", "buy"], "probabilities": {"ctcvr": CLICK | {"then": "buy"}}}, "towers: 'buy' is a task"),
        ({"probabilities": {"ctcvr": {"given": "ctr", "then": "ctcvr"}}}, "'ctcvr' reads 'ctcvr': no probability"),
        (
            {"probabilities": {"ctcvr": CLICK, "cvr": {"given": "ctr", "then": "ctcvr"}}},
            "'c.*' reads 'c.*' reads 'c.*': no probability can be part of itself",
        ),
    ],
)
def test_a_wrong_declaration_is_refused(declared: dict[str, Any], message: str) -> None:
    """Catches a misspelt tower that silently becomes a new one, and what has no effect or no meaning."""
    with pytest.raises(ConfigError, match=message):
        EntireSpaceConfig.model_validate(declared).build([CTR, CVR, CTCVR, PLACE])


@pytest.mark.parametrize("declared", [{}, {"probabilities": {}}, {"probabilities": {"a b": CLICK}}])
def test_an_empty_declaration_is_refused(declared: dict[str, Any]) -> None:
    """Catches a section that composes nothing."""
    with pytest.raises(ValidationError):
        EntireSpaceConfig.model_validate(declared)


def _schema(names: list[str]) -> Schema:
    return Schema.model_validate(
        {
            "tables": [{"name": "user", "num_rows": 8, "dim": 4}],
            "features": [{"kind": "id", "name": "user", "table": "user"}],
            "tasks": [{"name": name, "label": f"label_{name}"} for name in names],
        }
    )


def test_a_network_has_a_representation_for_every_tower() -> None:
    """Catches experts and gates that are counted by task: ESM2 of three tasks has four towers, named in the config."""
    schema = _schema(["ctr", "ctavr", "ctcvr"])
    experts = {"ctr": 1, "act": 2, "buy_acted": 0, "buy_other": 3}
    network = CGCConfig(kind="cgc", expert_layers=[4], num_experts_per_task=experts, num_shared_experts=1)
    around = AroundConfig(entire_space=EntireSpaceConfig.model_validate(ESM2))
    ranker = build_ranker(schema, network, [3], 0.0, None, around=around).ranker
    outputs = ranker.head(torch.randn(5, 4))
    assert outputs.shape == (5, 4)
    assert ranker.entire_space is not None
    predicted = predictions_of(task_heads(schema.tasks), ranker.entire_space(outputs))
    towers = outputs.sigmoid()
    torch.testing.assert_close(predicted["ctavr"], towers[:, 0] * towers[:, 1])
    fewer = network.model_copy(update={"num_experts_per_task": {"ctr": 1, "buy_acted": 1, "buy_other": 1}})
    with pytest.raises(ConfigError, match="task 'act' is missing"):
        build_ranker(schema, fewer, [3], 0.0, None, around=around)
