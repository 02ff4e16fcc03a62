"""The union-space loss: against scikit-learn and formulas, and that what is outside a space has no influence at all."""

from dataclasses import replace

import pytest
import torch
from pydantic import ValidationError
from sklearn.metrics import log_loss
from torch import Tensor

from models.loss import LossWeightConfig, LossWeightSchedule, TaskWeightConfig, UnionSpaceLoss
from models.tasks import TaskHead, predictions_of

HEADS = [
    TaskHead(name="ctr", kind="binary"),
    TaskHead(name="rating", kind="multiclass", num_classes=4),
    TaskHead(name="vcr", kind="regression", loss="mse", link="sigmoid"),
    TaskHead(name="vtr", kind="binary"),
    TaskHead(name="watch", kind="regression", loss="huber", huber_delta=0.5, log1p_target=True),
    TaskHead(name="comments", kind="regression", loss="poisson"),
    TaskHead(name="topic", kind="multiclass", num_classes=3),
    TaskHead(name="delta", kind="regression", loss="mse"),
]
STARTS = [0, 1, 5, 6, 7, 8, 9, 12, 13]
Batch = tuple[Tensor, Tensor, Tensor, Tensor]


@pytest.fixture
def batch() -> Batch:
    """Outputs (float64), labels, space and weight of 12 rows; every space has rows, and none has all of them."""
    generator = torch.Generator().manual_seed(4)
    rows = 12
    uniform = torch.rand(rows, 8, generator=generator, dtype=torch.float64)
    labels = uniform.clone()
    for task, factor in ((0, 2), (1, 4), (3, 2), (5, 6), (6, 3)):
        labels[:, task] = (factor * uniform[:, task]).floor()
    labels[:, 4] *= 30
    in_space = torch.rand(rows, 8, generator=generator) < 0.6
    in_space[0], in_space[1] = True, False
    outputs = 2 * torch.randn(rows, 13, generator=generator, dtype=torch.float64)
    weight = 0.5 + torch.rand(rows, 8, generator=generator, dtype=torch.float64)
    return outputs, labels, in_space, weight


def _in_space_weight(in_space: Tensor, weight: Tensor) -> Tensor:
    return (in_space * weight).sum(0)


def _run(batch: Batch, denominators: Tensor, loss_weights: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """The loss, each task's, and the gradient of the loss at the outputs."""
    outputs, labels, in_space, weight = batch
    outputs = outputs.clone().requires_grad_()
    loss_weights = torch.ones_like(denominators) if loss_weights is None else loss_weights
    total, losses = UnionSpaceLoss(HEADS)(outputs, labels, in_space, weight, denominators, loss_weights)
    total.backward()
    assert outputs.grad is not None
    return total.detach(), losses.detach(), outputs.grad


def _reference(head: TaskHead, outputs: Tensor, labels: Tensor, weight: Tensor) -> float:
    """The weighted mean loss over rows that are all in space, written out from predictions."""
    predictions = predictions_of([head], outputs)[head.name]
    if head.kind != "regression":
        classes = range(head.num_classes or 2)
        return log_loss(labels.numpy(), predictions.numpy(), sample_weight=weight.numpy(), labels=list(classes))
    if head.loss == "poisson":
        rows = predictions - labels * predictions.log()
    else:
        error = predictions - labels
        if head.log1p_target:
            error = (1 + predictions).log() - (1 + labels).log()
        rows = error**2
        if head.loss == "huber":
            large = head.huber_delta * (error.abs() - head.huber_delta / 2)
            rows = torch.where(error.abs() <= head.huber_delta, rows / 2, large)
    return float((weight * rows).sum() / weight.sum())


def test_every_kind_against_scikit_learn_and_its_formula(batch: Batch) -> None:
    """Catches a wrong formula, link or target, and tasks mixed up where alike ones are computed together."""
    outputs, labels, in_space, weight = batch
    loss_weights = torch.arange(1, 9, dtype=torch.float64)
    total, losses, _ = _run(batch, _in_space_weight(in_space, weight), loss_weights)
    expected = []
    for task, head in enumerate(HEADS):
        rows = in_space[:, task]
        mine = outputs[rows, STARTS[task] : STARTS[task + 1]]
        expected.append(_reference(head, mine, labels[rows, task], weight[rows, task]))
    torch.testing.assert_close(losses, torch.tensor(expected, dtype=torch.float64))
    torch.testing.assert_close(total, (loss_weights * losses).sum())


@pytest.mark.parametrize("garbage", [float("nan"), float("inf"), -1e30])
def test_rows_outside_a_space_have_no_influence(batch: Batch, garbage: float) -> None:
    """Catches masking after the loss: garbage labels, weights and outputs there must not change one bit."""
    outputs, labels, in_space, weight = batch
    denominators = _in_space_weight(in_space, weight)
    column_in_space = in_space.repeat_interleave(torch.tensor([head.num_outputs for head in HEADS]), dim=1)
    spoilt = (
        torch.where(column_in_space, outputs, garbage),
        torch.where(in_space, labels, garbage),
        in_space,
        torch.where(in_space, weight, garbage),
    )
    total, losses, grad = _run(batch, denominators)
    for clean, same in zip((total, losses, grad), _run(spoilt, denominators), strict=True):
        assert torch.equal(clean, same)
    assert torch.equal(grad != 0, column_in_space)


def test_control_masking_after_the_loss_does_not_survive_garbage(batch: Batch) -> None:
    """Shows that the test above can fail: the usual mask behind the loss turns a NaN label into a NaN gradient."""
    outputs, labels, in_space, _ = batch
    output = outputs[:, 0].clone().requires_grad_()
    spoilt = torch.where(in_space[:, 0], labels[:, 0], torch.nan)
    loss = torch.nn.functional.binary_cross_entropy_with_logits(output, spoilt, reduction="none")
    torch.where(in_space[:, 0], loss, 0.0).sum().backward()
    assert output.grad is not None
    assert output.grad.isnan().any()


def test_rows_in_a_space_have_influence(batch: Batch) -> None:
    """Catches a loss that ignores labels altogether, which would pass the tests of what has no influence."""
    outputs, labels, in_space, weight = batch
    denominators = _in_space_weight(in_space, weight)
    _, losses, _ = _run(batch, denominators)
    changed = torch.where(in_space, labels + 1, labels)
    changed[:, [0, 1, 3, 6]] = torch.where(in_space, (labels + 1) % 2, labels)[:, [0, 1, 3, 6]]
    _, others, _ = _run((outputs, changed, in_space, weight), denominators)
    assert (losses != others).all()


def test_an_empty_space_gives_no_loss_and_no_gradient(batch: Batch) -> None:
    """Catches 0 / 0: a rank, or a whole step, may have no row of a rare task."""
    outputs, labels, in_space, weight = batch
    empty = in_space.clone()
    empty[:, [0, 1, 5]] = False
    labels = torch.where(empty, labels, torch.nan)
    denominators = _in_space_weight(empty, weight)
    assert denominators[0] == 0
    denominators[5] = 7.0  # other ranks have rows
    total, losses, grad = _run((outputs, labels, empty, weight), denominators)
    assert losses[[0, 1, 5]].tolist() == [0, 0, 0]
    assert not grad[:, [0, 1, 2, 3, 4, 8]].any()
    assert total.isfinite()
    _, unweighted, nothing = _run((outputs, labels, empty, torch.zeros_like(weight)), torch.zeros_like(denominators))
    assert not unweighted.any()
    assert not nothing.any()


def test_ranks_with_the_denominators_of_all_add_up_to_the_whole_batch(batch: Batch) -> None:
    """Catches a mean per rank; the control, with each half's own denominators, must come out wrong."""
    _, _, in_space, weight = batch
    whole = _in_space_weight(in_space, weight)
    total, losses, grad = _run(batch, whole)
    halves = [(batch[0][rows], batch[1][rows], batch[2][rows], batch[3][rows]) for rows in (slice(5), slice(5, None))]
    first, second = (_run(half, whole) for half in halves)
    torch.testing.assert_close(first[0] + second[0], total)
    torch.testing.assert_close(first[1] + second[1], losses)
    torch.testing.assert_close(torch.cat([first[2], second[2]]), grad)
    means = [_run(half, _in_space_weight(half[2], half[3])) for half in halves]
    assert not torch.allclose((means[0][1] + means[1][1]) / 2, losses, rtol=1e-3)
    assert not torch.allclose(torch.cat([means[0][2], means[1][2]]) / 2, grad, rtol=1e-3)


@pytest.mark.parametrize("logit", [-200.0, 200.0])
def test_extreme_outputs_stay_finite(logit: float) -> None:
    """Catches log(sigmoid) written out, which is infinite for a confident mistake in float32."""
    heads = HEADS[:2]
    outputs = torch.full((2, 5), logit)
    outputs[:, 1] = -logit
    labels = torch.tensor([[0.0, 0.0], [1.0, 1.0]])
    ones = torch.ones(2)
    args = (torch.ones(2, 2, dtype=torch.bool), torch.ones(2, 2), 2 * ones, ones)
    _, losses = UnionSpaceLoss(heads)(outputs, labels, *args)
    assert losses.isfinite().all()
    assert losses[0] == 100  # one of two rows is wrong by 200


def test_bfloat16_outputs_are_as_good_as_float32(batch: Batch) -> None:
    """Catches losses computed or added up in bfloat16, which keeps two to three digits."""
    outputs, labels, in_space, weight = (tensor.float() if tensor.is_floating_point() else tensor for tensor in batch)
    narrow = outputs.bfloat16()
    args = (labels, in_space, weight, torch.ones(8), torch.ones(8))
    loss = UnionSpaceLoss(HEADS)
    for mine, wide in zip(loss(narrow, *args), loss(narrow.float(), *args), strict=True):
        assert torch.equal(mine, wide)


def test_symbolic_trace(batch: Batch) -> None:
    """Catches what TorchRec's pipelines cannot trace."""
    outputs, labels, in_space, weight = batch
    loss = UnionSpaceLoss(HEADS)
    args = (outputs, labels, in_space, weight, torch.ones(8), torch.ones(8))
    torch.testing.assert_close(torch.fx.symbolic_trace(loss)(*args), loss(*args))


def test_predictions_by_hand() -> None:
    """Catches predictions that are not in the label's own unit."""
    ln3 = torch.tensor(3.0).log()
    heads = [*HEADS[:1], *HEADS[4:6], *HEADS[6:], replace(HEADS[2], log1p_target=True, link="identity")]
    outputs = torch.stack([ln3, ln3, ln3, *torch.tensor([1.0, 3, 4]).log(), ln3, ln3]).repeat(2, 1)
    predictions = predictions_of(heads, outputs)
    expected = {
        "ctr": 0.75,
        "watch": 2.0,
        "comments": 3.0,
        "topic": [0.125, 0.375, 0.5],
        "delta": float(ln3),
        "vcr": 2.0,
    }
    assert list(predictions) == list(expected)
    for name, value in expected.items():
        torch.testing.assert_close(predictions[name], torch.tensor([value, value]))
    squashed = predictions_of([HEADS[2]], ln3.view(1, 1))["vcr"]
    torch.testing.assert_close(squashed, torch.tensor([0.75]))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"kind": "multiclass"}, "num_classes None"),
        ({"kind": "binary", "num_classes": 3}, "binary with num_classes 3"),
        ({"kind": "regression", "loss": "poisson", "log1p_target": True}, "poisson has a link of its own"),
        ({"kind": "regression", "loss": "huber", "huber_delta": 0.0}, "huber_delta must be positive"),
    ],
)
def test_a_head_without_a_loss_is_refused(values: dict[str, object], message: str) -> None:
    """Catches declarations that would train something else than was meant."""
    with pytest.raises(ValueError, match=message):
        TaskHead(name="t", **values)  # pyright: ignore[reportArgumentType]


def test_loss_weights_by_hand() -> None:
    """Catches a floor that is added instead of a lower bound, and a factor applied once too often."""
    schedule = LossWeightSchedule("day", initial=[1, 2, 0.5], gamma=[1, 0.5, 0.5], floor=[0, 0.3, 0])
    assert schedule.at(0).tolist() == [1, 2, 0.5]
    assert schedule.at(2).tolist() == [1, 0.5, 0.125]
    assert schedule.at(3).tolist() == [1, torch.tensor(0.3).item(), 0.0625]
    assert schedule.at(10**9).tolist() == [1, torch.tensor(0.3).item(), 0]
    assert schedule.at(1).dtype == torch.float32
    assert schedule.weights(step=900, day=2, epoch=0).tolist() == [1, 0.5, 0.125]


def test_loss_weights_by_task_name() -> None:
    """Catches weights in the order of the file instead of the tasks', and a misspelt task that keeps weight 1."""
    config = LossWeightConfig(unit="epoch", tasks={"vtr": TaskWeightConfig(initial=3, gamma=0.5)})
    schedule = config.schedule(["ctr", "vtr"])
    assert schedule.unit == "epoch"
    assert schedule.weights(step=7, day=3, epoch=1).tolist() == [1, 1.5]
    assert LossWeightConfig().schedule(["ctr", "vtr"]).at(5).tolist() == [1, 1]
    with pytest.raises(ValueError, match="there is no task 'vtr': did you mean 'vtx'"):
        config.schedule(["ctr", "vtx"])


def test_decay_by_steps_needs_a_floor() -> None:
    """Catches a weight that reaches 0 over months of steps: a task that is silently no longer trained."""
    decaying = {"tasks": {"ctr": {"gamma": 0.99999}}}
    with pytest.raises(ValidationError, match="is applied at every step and there is no floor"):
        LossWeightConfig.model_validate(decaying)
    with pytest.raises(ValueError, match="task 1: gamma"):
        LossWeightSchedule("step", [1, 1], [1, 0.9], [0, 0])
    for allowed in ({"unit": "day"} | decaying, {"tasks": {"ctr": {"gamma": 0.99999, "floor": 0.1}}}):
        LossWeightConfig.model_validate(allowed)
