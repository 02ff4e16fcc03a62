"""Loss balancing by hand: every method on two parameters, and what a zero gradient does to it."""

import math
from collections import Counter
from typing import Any

import pytest
import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor, nn
from torchrec.sparse.jagged_tensor import KeyedTensor

from features.errors import ConfigError
from features.tasks import TaskConfig
from models.all_reduce import Ranks
from models.balancing import LossBalancingConfig
from models.gradient_balance import BalanceRule, GradientBalance
from models.gradnorm import GradNorm
from models.metabalance import MetaBalance
from models.pcgrad import PCGrad, drawn_orders, project
from models.uncertainty import UncertaintyWeights

ALL = torch.ones(2, dtype=torch.bool)
TASKS = [TaskConfig(name=name, label=name) for name in ("click", "like")]


def grams(*gradients: list[float]) -> Tensor:
    """Return the Gram matrix of the tasks' gradients, of one shared part."""
    wide = torch.tensor(gradients, dtype=torch.float64)
    return (wide @ wide.t()).unsqueeze(0)


def losses(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


# --- Uncertainty weighting ---


def test_uncertainty_by_hand() -> None:
    """Catches a sign, a factor 1/2 that is not ours, and a term that w_k(t) does not weigh: s = 0, ln 2; L = 3, 4."""
    weights = UncertaintyWeights(2)
    weights.log_variances.data = torch.tensor([0.0, math.log(2)])
    inputs = torch.tensor([3.0, 4.0], requires_grad=True)
    total = weights(inputs, torch.tensor([1.0, 10.0]), ALL)
    torch.testing.assert_close(total, torch.tensor(3 + 10 * (4 / 2 + math.log(2))))
    of_s, of_losses = torch.autograd.grad(total, [weights.log_variances, inputs])
    torch.testing.assert_close(of_losses, torch.tensor([1.0, 10 / 2]))
    torch.testing.assert_close(of_s, torch.tensor([1 - 3.0, 10 * (1 - 2.0)]))


def test_a_task_without_rows_keeps_its_uncertainty() -> None:
    """Catches a lone s_k, which would fall at every step in which the task has no row."""
    weights = UncertaintyWeights(2)
    total = weights(torch.tensor([3.0, 0.0]), torch.ones(2), torch.tensor([True, False]))
    total.backward()
    assert weights.log_variances.grad is not None
    assert weights.log_variances.grad.tolist() == [-2.0, 0.0]


# --- MetaBalance ---


def metabalance(strategy: Any, beta: float = 0.5, relax: float = 0.5) -> MetaBalance:
    return MetaBalance([True, False], 1, strategy=strategy, beta=beta, relax=relax)


@pytest.mark.parametrize(
    ("strategy", "auxiliary", "expected"),
    [
        # ||G_tar|| = 5. ||G_1|| = 10: (5/10 - 1) / 2 + 1; ||G_1|| = 2: (5/2 - 1) / 2 + 1.
        ("A", [6.0, 8.0], 0.75),
        ("A", [0.0, 2.0], 1.0),
        ("B", [6.0, 8.0], 1.0),
        ("B", [0.0, 2.0], 1.75),
        ("C", [6.0, 8.0], 0.75),
        ("C", [0.0, 2.0], 1.75),
    ],
)
def test_metabalance_by_hand(strategy: str, auxiliary: list[float], expected: float) -> None:
    """Catches a strategy that changes the wrong side, a ratio upside down, and a target that is changed."""
    rule = metabalance(strategy)
    of_parts, alone = rule(grams([3.0, 4.0], auxiliary), losses(1, 1), ALL)
    torch.testing.assert_close(of_parts, torch.tensor([[1.0, expected]], dtype=torch.float64))
    assert alone.tolist() == [1.0, 1.0]


def test_metabalance_s_moving_averages_by_hand() -> None:
    """Catches norms of this step alone: m_tar = (2.5, 1.25 + 5), m_1 = (5, 2.5 + 1)."""
    rule = metabalance("C", relax=1.0)
    rule(grams([3.0, 4.0], [6.0, 8.0]), losses(1, 1), ALL)
    assert rule.norms.tolist() == [[2.5, 2.5, 5.0]]
    of_parts, _ = rule(grams([6.0, 8.0], [0.0, 2.0]), losses(1, 1), ALL)
    assert rule.norms.tolist() == [[6.25, 6.25, 3.5]]
    torch.testing.assert_close(of_parts[0, 1], torch.tensor(6.25 / 3.5, dtype=torch.float64))


def test_several_targets_are_one() -> None:
    """Catches a target norm that is a sum of norms: (3, 0) + (0, 4) has norm 5, and the auxiliary's is 10."""
    rule = MetaBalance([True, True, False], 1, strategy="C", beta=0.0, relax=1.0)
    of_parts, _ = rule(grams([3.0, 0.0], [0.0, 4.0], [10.0, 0.0]), losses(1, 1, 1), ALL)
    torch.testing.assert_close(of_parts, torch.tensor([[1.0, 1.0, 0.5]], dtype=torch.float64))


# --- GradNorm ---


def test_gradnorm_by_hand() -> None:
    """Catches a target without r_k^alpha, another sign, weights used a step too early, and a sum that is not K.

    Gradients of norm 5 and 1, so G = 3. First step: r = (1, 1), so v moves by -.1 * (+5/3, -1/3) to (5/6, 31/30), and
    scaled by 2 / (28/15) to (25/28, 31/28). Second: losses halved for the first task only, l = (.5, 1), r = (2/3, 4/3).
    """
    rule = GradNorm(2, alpha=1.0, learning_rate=0.1)
    gram = grams([3.0, 4.0], [0.0, 1.0])
    of_parts, alone = rule(gram, losses(8, 2), ALL)
    assert (of_parts.tolist(), alone.tolist()) == ([[1.0, 1.0]], [1.0, 1.0])
    torch.testing.assert_close(rule.weights, losses(25 / 28, 31 / 28))
    of_parts, alone = rule(gram, losses(4, 2), ALL)
    torch.testing.assert_close(alone, losses(25 / 28, 31 / 28))
    first, second = 25 / 28, 31 / 28
    mean = (5 * first + second) / 2
    assert 5 * first > mean * 2 / 3
    assert second < mean * 4 / 3
    moved = [first - 0.1 * 5 / mean, second + 0.1 / mean]
    torch.testing.assert_close(rule.weights, losses(*[2 * value / sum(moved) for value in moved]))


def test_gradnorm_pulls_a_slow_task_along() -> None:
    """Catches r_k upside down: of equal gradients, the task whose loss has fallen less gains weight."""
    rule = GradNorm(2, alpha=1.5, learning_rate=0.1)
    gram = grams([1.0, 0.0], [0.0, 1.0])
    rule(gram, losses(1, 1), ALL)
    rule(gram, losses(0.9, 0.2), ALL)
    assert rule.weights[0] > 1 > rule.weights[1]


def test_gradnorm_leaves_an_absent_task_alone() -> None:
    """Catches a weight that moves, or a first loss of 0 that is kept, for a task that has no row in this step."""
    rule = GradNorm(3, alpha=1.5, learning_rate=0.1)
    rule(grams([3.0, 4.0], [0.0, 1.0], [0.0, 0.0]), losses(8, 2, 0), torch.tensor([True, True, False]))
    assert rule.weights[2] == 1
    assert rule.first_losses.tolist() == [8.0, 2.0, 0.0]
    torch.testing.assert_close(rule.weights[:2], losses(25 / 28, 31 / 28))
    rule(grams([3.0, 4.0], [0.0, 1.0], [1.0, 0.0]), losses(8, 2, 7), torch.ones(3, dtype=torch.bool))
    assert rule.first_losses.tolist() == [8.0, 2.0, 7.0]


# --- PCGrad ---


def test_pcgrad_by_hand() -> None:
    """Catches a projection on a gradient that was projected itself: g_1 = (1, 0), g_2 = (-1, 1), their dot -1.

    g_1 + g_2 / 2 = (.5, .5), g_2 + g_1 = (0, 1); the sum is (.5, 1.5) = 2 g_1 + 1.5 g_2.
    """
    gram = grams([1.0, 0.0], [-1.0, 1.0])
    assert project(gram[0], torch.tensor([[1], [0]])).tolist() == [[1.0, 0.5], [1.0, 1.0]]
    of_parts, alone = PCGrad()(gram, losses(1, 1), ALL)
    assert (of_parts.tolist(), alone.tolist()) == ([[2.0, 1.5]], [1.0, 1.0])


def test_pcgrad_leaves_agreement_alone() -> None:
    """Catches gradients that are projected although they agree."""
    of_parts, _ = PCGrad()(grams([1.0, 0.0], [1.0, 1.0]), losses(1, 1), ALL)
    assert of_parts.tolist() == [[1.0, 1.0]]


def test_pcgrad_s_order_matters_and_is_drawn_anew() -> None:
    """Catches one order for all steps, and three tasks that are projected on in an order that is not the drawn one."""
    gram = grams([1.0, 0.0], [-1.0, 1.0], [-1.0, -2.0])
    one, other = (project(gram[0], torch.tensor([order] * 3))[0].tolist() for order in ([1, 2], [2, 1]))
    assert one != other
    # (1, 0) + (-1, 1) / 2 = (.5, .5), whose dot with (-1, -2) is -1.5; + .3 (-1, -2) is orthogonal to that.
    assert one == pytest.approx([1.0, 0.5, 0.3])
    rule = PCGrad()
    found = {tuple(rule(gram, losses(1, 1, 1), ALL)[0][0].tolist()) for _ in range(20)}
    assert len(found) > 1
    assert rule.num_steps == 20


def _projected(gram: list[list[float]], orders: list[list[int]]) -> list[list[float]]:
    """Algorithm 1 of the source, task by task."""
    tasks = range(len(gram))
    found = []
    for task in tasks:
        own = [float(task == other) for other in tasks]
        for other in orders[task]:
            dot = sum(own[each] * gram[each][other] for each in tasks)
            if other != task and dot < 0 < gram[other][other]:
                own[other] -= dot / gram[other][other]
        found.append(own)
    return found


@pytest.mark.parametrize("num_tasks", [1, 2, 3, 8])
def test_projections_are_those_of_the_loop(num_tasks: int) -> None:
    """Catches a step of one task that reads another task's order, gradient, or dot products."""
    for step in range(10):
        gradients = torch.randn(num_tasks, 4, generator=torch.Generator().manual_seed(step), dtype=torch.float64)
        gram, orders = gradients @ gradients.t(), drawn_orders(torch.tensor(step), num_tasks)
        expected = torch.tensor(_projected(gram.tolist(), orders.tolist()), dtype=torch.float64)
        torch.testing.assert_close(project(gram, orders), expected, rtol=0, atol=1e-12)


def test_orders_are_drawn_evenly() -> None:
    """Catches a hash that prefers an order, gives two tasks the same one, or does not depend on the step."""
    drawn = [drawn_orders(torch.tensor(step), 3).tolist() for step in range(6000)]
    for task in range(3):
        counts = Counter(tuple(orders[task]) for orders in drawn)
        assert len(counts) == 6
        assert all(850 < count < 1150 for count in counts.values())  # 1,000 expected, five standard deviations
    pairs = Counter((tuple(first), tuple(second)) for first, second, _ in drawn)
    assert len(pairs) == 36
    assert all(100 < count < 235 for count in pairs.values())  # 167 expected


# --- All of them ---

RULES = {
    "metabalance A": lambda: metabalance("A"),
    "metabalance B": lambda: metabalance("B"),
    "metabalance C": lambda: metabalance("C"),
    "gradnorm": lambda: GradNorm(2, 1.5, 0.025),
    "pcgrad": PCGrad,
}


@pytest.mark.parametrize("zero", [(0,), (1,), (0, 1)])
@pytest.mark.parametrize("rule", RULES)
def test_a_gradient_of_zero_is_no_nan(rule: str, zero: tuple[int, ...]) -> None:
    """Catches 0 / 0, of the target, of an auxiliary task and of both, in the first step and after others."""
    balance = RULES[rule]()
    gradients = [[0.0, 0.0] if task in zero else [1.0, -2.0] for task in (0, 1)]
    values = losses(*[0.0 if task in zero else 1.0 for task in (0, 1)])
    for gram in (grams(*gradients), grams([1.0, 0.0], [-1.0, 0.5]), grams(*gradients)):
        of_parts, alone = balance(gram, values, ALL)
        assert torch.isfinite(of_parts).all()
        assert torch.isfinite(alone).all()
    assert all(torch.isfinite(buffer).all() for buffer in balance.buffers())


class _Doubled(BalanceRule):
    """Multiplies task k's gradient by k + 2 in part 0, by 10 (k + 2) in part 1, and by 100 where it is alone."""

    def forward(self, grams: Tensor, losses: Tensor, is_present: Tensor) -> tuple[Tensor, Tensor]:
        self.seen = grams
        factors = torch.tensor([2.0, 3.0])
        return torch.stack([factors, 10 * factors]), torch.full((2,), 100.0)


def test_each_part_gets_its_own_gradient() -> None:
    """Catches coefficients at the wrong rows or columns, a gradient that is counted twice, and a value that is not the
    loss's: dense a is shared, b is task 1's, and two columns of one row are pooled.
    """
    a, b = nn.Parameter(torch.tensor([1.0, 2.0])), nn.Parameter(torch.tensor([3.0]))
    pooled = torch.tensor([[5.0, 7.0]], requires_grad=True)
    keyed = KeyedTensor(["video"], [2], pooled)
    leaf = KeyedTensor(["video"], [2], pooled.detach().requires_grad_())
    inner = leaf.values()[0]
    of_tasks = torch.stack([inner[0] * a[0], inner[1] * a[1] * b[0]])
    balance = GradientBalance(_Doubled(), [slice(0, 2)], Ranks())
    total = balance(of_tasks, torch.tensor([1.0, 0.5]), ALL, (keyed, leaf), [a, b])
    assert total.item() == 5 * 1 + 0.5 * 7 * 2 * 3
    total.backward()
    assert a.grad is not None
    assert b.grad is not None
    assert pooled.grad is not None
    assert a.grad.tolist() == [2 * 5.0, 3 * 0.5 * 7 * 3]
    assert b.grad.tolist() == [100 * 0.5 * 7 * 2]
    assert pooled.grad.tolist() == [[20 * 1.0, 30 * 0.5 * 2 * 3]]
    assert balance.rule.seen[0].tolist() == [[25.0, 0.0], [0.0, (0.5 * 21) ** 2]]


def _build(config: dict[str, Any], tasks: list[TaskConfig] = TASKS) -> Any:
    parsed = TypeAdapter(LossBalancingConfig).validate_python(config)
    return parsed.build(tasks) if config["kind"] == "uncertainty" else parsed.build(tasks, 1)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"targets": ["clik"]}, "there is no task 'clik': did you mean 'click'?"),
        ({}, "all of the tasks .* are targets: name some of them in loss_balancing.targets"),
        ({"targets": ["click", "like"]}, "all of the tasks"),
    ],
)
def test_targets_that_do_not_fit(config: dict[str, Any], message: str) -> None:
    """Catches a balancing that would silently do nothing."""
    with pytest.raises(ConfigError, match=message):
        _build({"kind": "metabalance"} | config)


def test_auxiliary_roles_are_no_targets() -> None:
    """Catches roles that are not looked at where no target is named."""
    tasks = [TASKS[0], TaskConfig(name="like", label="like", role="auxiliary")]
    assert _build({"kind": "metabalance"}, tasks).is_target.tolist() == [True, False]
    with pytest.raises(ConfigError, match="none of the tasks"):
        _build({"kind": "metabalance"}, [tasks[1], tasks[1].model_copy(update={"name": "share"})])


@pytest.mark.parametrize("kind", ["uncertainty", "gradnorm"])
def test_losses_that_may_be_negative_are_refused(kind: str) -> None:
    """Catches a logarithm, or a ratio, of a loss below 0: s_k would fall without a bound."""
    tasks = [TASKS[0], TaskConfig(name="plays", kind="regression", loss="poisson", label="plays")]
    with pytest.raises(ConfigError, match="task 'plays' has a poisson loss"):
        _build({"kind": kind}, tasks)


@pytest.mark.parametrize(
    "wrong",
    [{"kind": "metabalance", "relax": 1.5}, {"kind": "metabalance", "strategy": "D"}, {"kind": "gradnorm", "alpah": 1}],
)
def test_a_wrong_value_is_refused(wrong: dict[str, Any]) -> None:
    """Catches values without a meaning, and a misspelt key."""
    with pytest.raises(ValidationError):
        TypeAdapter(LossBalancingConfig).validate_python(wrong)
