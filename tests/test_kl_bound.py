"""The KL bound against probabilities that are written out, and that it reaches whom it is to reach, and nobody else."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from features.errors import ConfigError
from features.schema import Schema
from models.assembly import build_ranker, task_heads
from models.batch import RankingBatch
from models.kl_bound import KLBound, KLBoundConfig, symmetric_kl
from models.loss_combination import JointLoss
from models.optional_parts import AroundConfig
from models.pcgrad import PCGradConfig
from models.ranker import RankerTrain
from models.sharing import HardSharingConfig
from models.uncertainty import UncertaintyConfig

# Outputs of five tasks, of which a multiclass one has three: place (0 to 2), order, click, dwell, convert.
ORDER, CLICK, CONVERT = 3, 4, 6
TASK = 1


def _bound(weight: float = 0.1, **options: Any) -> KLBound:
    return KLBound([ORDER, CLICK, CONVERT], TASK, weight=weight, **options)


def _outputs(*probabilities: tuple[float, float, float]) -> Tensor:
    """Outputs whose rows have these probabilities of order, click and convert; the others are anything."""
    outputs = torch.randn(len(probabilities), 7, dtype=torch.float64)
    outputs[:, [ORDER, CLICK, CONVERT]] = torch.logit(torch.tensor(probabilities, dtype=torch.float64))
    return outputs


def _batch(num_rows: int, denominator: float = 8.0) -> dict[str, Tensor]:
    torch.manual_seed(num_rows)
    in_space = torch.ones(num_rows, 5, dtype=torch.bool)
    weight = torch.rand(num_rows, 5, dtype=torch.float64)
    denominators = torch.tensor([1.0, denominator, 3, 4, 5], dtype=torch.float64)
    return {"in_space": in_space, "weight": weight, "denominators": denominators}


def _reference(outputs: Tensor, batch: dict[str, Tensor], weight: float = 0.1) -> Tensor:
    """Row by row, KL(a || b) + KL(b || a) as the two sums over the outcomes that they are."""
    total = torch.zeros((), dtype=torch.float64)
    for row in range(len(outputs)):
        if batch["in_space"][row, TASK]:
            a = outputs[row, ORDER].sigmoid()
            b = outputs[row, CLICK].sigmoid() * outputs[row, CONVERT].sigmoid()
            there = a * (a / b).log() + (1 - a) * ((1 - a) / (1 - b)).log()
            back = b * (b / a).log() + (1 - b) * ((1 - b) / (1 - a)).log()
            total = total + batch["weight"][row, TASK] * (there + back)
    return weight * total / batch["denominators"][TASK]


def _gradient(value: Tensor, at: Tensor) -> Tensor:
    return torch.autograd.grad(value, at, retain_graph=True)[0]


def test_by_hand() -> None:
    """Catches one direction alone, another task's weights or denominator, and a mean over rows.

    (a, b) = (1/2, 1/4): 1/4 ln 3. (1/4, 1/4): 0. (1/5, 1/2): 3/10 ln 4. Weights 1, 5, 2, of denominator 8.
    """
    batch = _batch(3)
    batch["weight"][:, TASK] = torch.tensor([1.0, 5.0, 2.0])
    found = _bound()(_outputs((1 / 2, 1 / 2, 1 / 2), (1 / 4, 1 / 2, 1 / 2), (1 / 5, 3 / 4, 2 / 3)), **batch)
    expected = 0.1 * (0.25 * math.log(3) + 2 * 0.3 * math.log(4)) / 8
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64))


def test_equals_the_loop_in_value_and_gradient() -> None:
    """Catches a sign, a column of another task, and a factor that autograd does not see."""
    batch = _batch(40)
    batch["in_space"] = torch.rand(40, 5) < 0.6
    outputs = (2 * torch.randn(40, 7, dtype=torch.float64)).requires_grad_()
    found, expected = _bound()(outputs, **batch), _reference(outputs, batch)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)
    mine, other = _gradient(found, outputs), _gradient(expected, outputs)
    torch.testing.assert_close(mine, other, rtol=0, atol=1e-14)
    of_bound = mine.ne(0).any(0).nonzero().flatten().tolist()
    assert of_bound == [ORDER, CLICK, CONVERT]


def test_control_the_loop_sees_one_direction() -> None:
    """Shows that the test above can fail: KL(a || b) alone, and a product of other tasks."""
    batch, outputs = _batch(40), torch.randn(40, 7, dtype=torch.float64)
    expected = _reference(outputs, batch)
    a, b = outputs[:, ORDER].sigmoid(), outputs[:, CLICK].sigmoid() * outputs[:, CONVERT].sigmoid()
    there = a * (a / b).log() + (1 - a) * ((1 - a) / (1 - b)).log()
    assert not torch.isclose(0.1 * (batch["weight"][:, TASK] * there).sum() / 8, expected, rtol=1e-2)
    wrong = KLBound([ORDER, CLICK, 5], TASK, weight=0.1)
    assert not torch.isclose(wrong(outputs, **batch), expected, rtol=1e-2)


@pytest.mark.parametrize("size", [80.0, 200.0, 1e4])
def test_extreme_logits_stay_finite(size: float) -> None:
    """Catches a probability that is divided by or whose logarithm is taken: in float32 s(-80)^2 is 0, s(80) is 1."""
    batch = {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in _batch(27).items()}
    outputs = torch.zeros(27, 7)
    outputs[:, [ORDER, CLICK, CONVERT]] = torch.cartesian_prod(*[torch.tensor([-size, 0.0, size])] * 3)
    outputs.requires_grad_()
    found = _bound()(outputs, **batch)
    assert found.isfinite()
    assert _gradient(found, outputs).isfinite().all()
    naive = _reference(outputs, batch)  # the control
    assert not naive.isfinite()


def test_small_differences_do_not_cancel() -> None:
    """Catches a - b formed of probabilities: near 1, float32 has none left of a difference of 1e-8."""
    x, y = torch.tensor([17.0, 19.0]), torch.tensor([18.0, 25.0])
    exact = (x.double().sigmoid() - y.double().sigmoid()) * (x - y).double()
    torch.testing.assert_close(symmetric_kl(x, y).double(), exact, rtol=1e-5, atol=0)
    naive = (x.sigmoid() - y.sigmoid()) * (x - y)
    assert not torch.allclose(naive.double(), exact, rtol=1e-2, atol=0)  # the control


def test_tasks_that_agree_are_left_alone() -> None:
    """Catches a term that pulls where p(click) p(convert) is p(order) already."""
    outputs = _outputs((0.25, 0.5, 0.5), (0.42, 0.6, 0.7), (0.003, 0.1, 0.03)).requires_grad_()
    found = _bound()(outputs, **_batch(3))
    assert found < 1e-30
    assert _gradient(found, outputs).abs().max() < 1e-15
    moved = outputs.detach().clone().requires_grad_()
    moved.data[:, ORDER] += 0.1
    assert _gradient(_bound()(moved, **_batch(3)), moved).abs().max() > 1e-4  # the control


@pytest.mark.parametrize(
    ("stopped", "learning"),
    [("none", [ORDER, CLICK, CONVERT]), ("order", [CLICK, CONVERT]), ("product", [ORDER])],
)
def test_a_side_that_is_stopped_does_not_learn(stopped: Any, learning: list[int]) -> None:
    """Catches sides mixed up, a value that changes with what is stopped, and another gradient of what is not."""
    batch, outputs = _batch(10), torch.randn(10, 7, dtype=torch.float64, requires_grad=True)
    plain, found = _bound()(outputs, **batch), _bound(stop_gradient=stopped)(outputs, **batch)
    assert torch.equal(plain, found)
    whole, mine = _gradient(plain, outputs), _gradient(found, outputs)
    assert mine.ne(0).any(0).nonzero().flatten().tolist() == learning
    assert torch.equal(mine[:, learning], whole[:, learning])


@pytest.mark.parametrize("garbage", [torch.nan, torch.inf, -1e30])
def test_rows_outside_the_space_have_no_influence(garbage: float) -> None:
    """Catches a term that is masked after it was computed: NaN * 0 is NaN, in the value or in the gradient."""
    batch, outputs = _batch(30), torch.randn(30, 7, dtype=torch.float64)
    batch["in_space"] = torch.rand(30, 5) < 0.5
    inside = batch["in_space"][:, TASK]
    spoilt = torch.where(inside.unsqueeze(1), outputs, garbage).requires_grad_()
    weight = torch.where(inside.unsqueeze(1), batch["weight"], garbage)
    clean = outputs.clone().requires_grad_()
    found, same = _bound()(clean, **batch), _bound()(spoilt, **batch | {"weight": weight})
    assert torch.equal(found, same)
    first, second = _gradient(found, clean), _gradient(same, spoilt)
    assert torch.equal(first, second)
    assert not first[~inside].any()


def test_control_masking_after_the_term_does_not_survive_garbage() -> None:
    """Shows that the test above can fail."""
    logits = torch.tensor([0.5, torch.nan], requires_grad=True)
    masked = torch.tensor([1.0, 0.0]) * symmetric_kl(logits, torch.zeros(2))
    assert masked.sum().isnan()
    assert _gradient(masked[0], logits).isnan().any()


def test_an_empty_space_has_no_bound() -> None:
    """Catches 0 / 0 where no row of any rank is in the order task's space."""
    batch, outputs = _batch(5, denominator=0.0), torch.randn(5, 7, dtype=torch.float64, requires_grad=True)
    batch["in_space"][:, TASK] = False
    found = _bound()(outputs, **batch)
    assert found == 0
    assert not _gradient(found, outputs).any()


def test_symbolic_trace() -> None:
    """Catches what TorchRec's pipelines cannot trace."""
    bound, batch, outputs = _bound(), _batch(9), torch.randn(9, 7, dtype=torch.float64)
    torch.testing.assert_close(torch.fx.symbolic_trace(bound)(outputs, **batch), bound(outputs, **batch))
    assert not bound.state_dict()


# --- In a model ---

SCHEMA = Schema.model_validate(
    {
        "tables": [{"name": "user", "num_rows": 9, "dim": 4}],
        "features": [{"kind": "id", "name": "user", "table": "user"}],
        "tasks": [
            {"name": "dwell", "kind": "regression", "label": "d"},
            {"name": "click", "label": "c"},
            {"name": "cvr", "label": "v"},
            {"name": "buy", "label": "b"},
        ],
    }
)
DECLARED: dict[str, Any] = {"order": "buy", "click": "click", "convert": "cvr", "weight": 0.5}
BOUNDS = (KLBoundConfig.model_validate(DECLARED),)
NETWORK = HardSharingConfig(kind="hard_sharing", layers=[4])


def _model(joint: JointLoss) -> RankerTrain:
    torch.manual_seed(0)
    model = build_ranker(SCHEMA, NETWORK, [3], 0.0, None, joint)
    for parameter in model.ranker.embeddings.to_empty(device="cpu").parameters():
        parameter.data.normal_(generator=torch.Generator().manual_seed(1))
    return model


def _rows() -> RankingBatch:
    torch.manual_seed(2)
    ids = KeyedJaggedTensor(["user"], torch.randint(9, (12,)), lengths=torch.ones(12, dtype=torch.long))
    labels = torch.randint(2, (12, 4)).float()
    in_space = torch.rand(12, 4) < 0.7
    weight, slot, ones = torch.rand(12, 4), torch.full((12,), -1), torch.ones(4)
    return RankingBatch(ids, torch.empty(12, 0), labels, in_space, weight, slot, 6 * ones, 2 * ones)


def _step(model: RankerTrain) -> tuple[Tensor, dict[str, Tensor], Any]:
    total, output = model(_rows())
    total.backward()
    grads = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return total.detach(), grads, output


BALANCINGS = {
    "schedule": {},
    "uncertainty": {"balancing": UncertaintyConfig(kind="uncertainty")},
    "pcgrad": {"balancing": PCGradConfig(kind="pcgrad")},
}


@pytest.mark.parametrize("kind", BALANCINGS)
def test_it_joins_the_loss_and_the_gradients_whatever_balances(kind: str) -> None:
    """Catches a bound that a balancing weighs, replaces, or keeps from the tables, where it cuts embeddings off; and
    one that is among the losses of the tasks.
    """
    without, before, plain = _step(_model(JointLoss(**BALANCINGS[kind])))
    found, after, output = _step(_model(JointLoss(**BALANCINGS[kind], bounds=BOUNDS)))
    assert torch.equal(output.losses, plain.losses)
    model, batch = _model(JointLoss()), _rows()
    outputs = model.ranker(batch.sparse, batch.dense)
    bound = BOUNDS[0].build(task_heads(SCHEMA.tasks), {})(outputs, batch.in_space, batch.weight, batch.denominators)
    assert bound > 0.001
    torch.testing.assert_close(found, without + bound.detach())
    bound.backward()
    alone = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert "ranker.embeddings.embedding_bags.user.weight" in alone
    for name, grad in after.items():
        torch.testing.assert_close(grad, before[name] + alone.get(name, torch.zeros_like(grad)))


def test_control_a_bound_that_is_not_carried_over_misses_the_tables() -> None:
    """Shows that the test above can fail: added as it is, the bound ends at the embeddings that were cut off."""
    model = _model(JointLoss(**BALANCINGS["pcgrad"], bounds=BOUNDS))
    _, right, _ = _step(model)
    wrong = _model(JointLoss(**BALANCINGS["pcgrad"], bounds=BOUNDS))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("models.ranker.carry_over", lambda loss, meeting: loss)
        _, missed, _ = _step(wrong)
    name = "ranker.embeddings.embedding_bags.user.weight"
    assert not torch.allclose(right[name], missed[name], rtol=1e-3)


def test_without_a_bound_no_bit_is_changed() -> None:
    """Catches a sum with 0, or a draw of start values, where nothing is declared."""
    first, second = _step(_model(JointLoss())), _step(_model(JointLoss(bounds=[])))
    assert torch.equal(first[0], second[0])
    assert all(torch.equal(grad, second[1][name]) for name, grad in first[1].items())
    assert set(_model(JointLoss()).state_dict()) == set(_model(JointLoss(bounds=BOUNDS)).state_dict())


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"order": "bye"}, "there is no task 'bye': did you mean 'buy'?"),
        ({"convert": "zzz"}, r"there is no task 'zzz': declared are \['dwell', 'click', 'cvr', 'buy'\]"),
        ({"convert": "dwell"}, "task 'dwell' is regression, expected a binary one"),
        ({"convert": "click"}, "task 'click' is named twice, expected three tasks"),
        ({"order": "click"}, "task 'click' is named twice"),
    ],
)
def test_a_wrong_declaration_is_refused(changed: dict[str, Any], message: str) -> None:
    """Catches what would fail in the middle of a run, or hold a task to itself."""
    bounds = (KLBoundConfig.model_validate(DECLARED | changed),)
    with pytest.raises(ConfigError, match=message), torch.device("meta"):
        build_ranker(SCHEMA, NETWORK, [3], 0.0, None, JointLoss(bounds=bounds))


def test_a_bound_that_is_always_0_is_refused() -> None:
    """Catches a bound on a task that is composed as that very product, which would silently do nothing."""
    rule = {"given": "click", "then": "cvr"}
    around = AroundConfig.model_validate({"entire_space": {"probabilities": {"buy": rule}}})
    with pytest.raises(ConfigError, match="entire_space composes 'buy' of 'click' and 'cvr'"):
        build_ranker(SCHEMA, NETWORK, [3], 0.0, None, JointLoss(bounds=BOUNDS), around=around)
    other = rule | {"otherwise": "click"}
    around = AroundConfig.model_validate({"entire_space": {"probabilities": {"buy": other}}})
    assert len(build_ranker(SCHEMA, NETWORK, [3], 0.0, None, JointLoss(bounds=BOUNDS), around=around).bounds) == 1
