"""DUPN against a loop over rows and events, and its gates by hand."""

import math
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from models.dupn import DUPN, EventSteps, PropertyGatedLSTM

LENGTHS = [2, 0, 4, 1, 0, 3]
ITEM, PROPERTY, USER, QUERY, HIDDEN, MOST = 3, 2, 2, 1, 4, 5


@pytest.fixture(autouse=True, params=["packed", "padded"])
def _form(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test runs with the events of a CPU, and with those of a GPU."""
    if request.param == "padded":
        padded = EventSteps.padded
        monkeypatch.setattr(DUPN, "steps_of", lambda self, lengths, num: padded(lengths, self.max_events, num))


def _dupn() -> DUPN:
    torch.manual_seed(0)
    dupn = DUPN(ITEM, PROPERTY, USER, QUERY, MOST, HIDDEN, [5, 3]).double()
    for parameter in dupn.parameters():
        parameter.data.normal_(0, 0.7)
    return dupn


def _inputs(lengths: Sequence[int] = LENGTHS) -> list[Tensor]:
    torch.manual_seed(1)
    widths = ((sum(lengths), ITEM), (sum(lengths), PROPERTY), (len(lengths), QUERY), (len(lengths), USER))
    return [torch.randn(*shape, dtype=torch.float64, requires_grad=True) for shape in widths]


def _run(dupn: DUPN, inputs: Sequence[Tensor], lengths: Sequence[int] = LENGTHS) -> Tensor:
    items, properties, query, user = inputs
    return dupn(items, properties, torch.tensor(lengths, dtype=torch.int32), query, user)


def _attended(dupn: DUPN, state: Tensor, query: Tensor, user: Tensor, of_property: Tensor) -> Tensor:
    value = torch.cat([state, of_property, query, user])
    for number, layer in enumerate(dupn.attention.layers):
        value = layer(value.relu() if number else value)
    return value.squeeze()


def _reference(dupn: DUPN, inputs: Sequence[Tensor], mistake: str = "") -> Tensor:
    """B6's equations row by row and event by event; with a mistake if asked for."""
    items, properties, query, user = inputs
    lstm, width = dupn.lstm, HIDDEN
    w_e, w_p, w_h, b = lstm.items.split(width), lstm.properties.split(width), lstm.hidden.split(width), lstm.bias
    b_i, b_f, b_o, b_c = b.split(width)
    vectors, first = [], 0
    for row, length in enumerate(LENGTHS):
        h = c = torch.zeros(width, dtype=torch.float64)
        states, logits = [], []
        places = range(first, first + length)
        for place in reversed(places) if mistake == "latest first" else places:
            e, p = items[place], properties[place]
            if mistake == "the last row's state goes on" and states == [] and vectors:
                h = vectors[-1]
            i = torch.sigmoid(w_e[0] @ e + w_p[0] @ p + w_h[0] @ h + b_i)
            f = torch.sigmoid(w_e[1] @ e + w_p[1] @ p + w_h[1] @ h + b_f)
            o = torch.sigmoid(w_e[2] @ e + w_p[2] @ p + w_h[2] @ h + b_o)
            inside = w_e[3] @ e + w_h[3] @ h + b_c
            c = f * c + i * torch.tanh(inside + w_p[0] @ p if mistake == "a property in the candidate" else inside)
            h = o * torch.tanh(c)
            states.append(h)
            q = query[row] * (mistake != "no query")
            logits.append(_attended(dupn, h, q, user[row], p))
        first += length
        if not states:
            vectors.append(torch.zeros(width, dtype=torch.float64))
            continue
        shares = torch.stack(logits).softmax(0)
        if mistake == "the mean of the events":
            shares = torch.full_like(shares, 1 / length)
        vectors.append((shares.unsqueeze(1) * torch.stack(states)).sum(0))
    return torch.stack(vectors)


def _grads(values: Tensor, at: Sequence[Tensor]) -> list[Tensor]:
    weights = torch.arange(values.numel(), dtype=values.dtype).view_as(values).cos()
    return list(torch.autograd.grad((values * weights).sum(), at))


def test_equals_the_loop_in_values_and_all_gradients() -> None:
    """Catches a gate that reads another's weights, a property in the candidate, an event of another row or another
    time, and attention over events that are not the row's.
    """
    dupn, inputs = _dupn(), _inputs()
    at = [*inputs, *dupn.parameters()]
    got, expected = _run(dupn, inputs), _reference(dupn, inputs)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-14)
    for mine, other in zip(_grads(got, at), _grads(expected, at), strict=True):
        assert other.any()
        torch.testing.assert_close(mine, other, rtol=0, atol=1e-13)


@pytest.mark.parametrize(
    "mistake",
    [
        "a property in the candidate",
        "latest first",
        "the last row's state goes on",
        "no query",
        "the mean of the events",
    ],
)
def test_control_a_mistake_is_seen(mistake: str) -> None:
    """Shows that the test above can fail."""
    dupn, inputs = _dupn(), _inputs()
    assert (_run(dupn, inputs) - _reference(dupn, inputs, mistake)).abs().max() > 1e-3


def test_gates_of_two_events_by_hand() -> None:
    """Catches a gate in another's place, which a reference with the same mistake would not."""
    lstm = PropertyGatedLSTM(1, 1, 1).double()
    # Rows: input, forget, output gate, candidate.
    lstm.items.data = torch.tensor([[1.0], [0.0], [-1.0], [2.0]]).double()
    lstm.properties.data = torch.tensor([[0.5], [1.0], [2.0]]).double()
    lstm.hidden.data = torch.tensor([[0.0], [3.0], [0.0], [1.0]]).double()
    lstm.bias.data = torch.tensor([0.0, 0.5, 0.25, -0.5]).double()
    items, properties = torch.tensor([[1.0], [-1.0]]).double(), torch.tensor([[2.0], [0.0]]).double()
    got = lstm(items, properties, [1, 1])[:, 0].tolist()

    def s(x: float) -> float:
        return 1 / (1 + math.exp(-x))

    # First event: e = 1, p = 2, h = c = 0. Input gate 1 + 1, output gate -1 + 4 + .25, candidate 2 - .5.
    c = s(2) * math.tanh(1.5)
    h = s(3.25) * math.tanh(c)
    assert got[0] == pytest.approx(h, abs=1e-15)
    # Second: e = -1, p = 0. Input gate -1, forget gate 3 h + .5, output gate 1 + .25, candidate -2 + h - .5.
    c = s(3 * h + 0.5) * c + s(-1) * math.tanh(h - 2.5)
    assert got[1] == pytest.approx(s(1.25) * math.tanh(c), abs=1e-15)


@pytest.mark.parametrize("lengths", [[0, 0, 0], []])
def test_no_events_give_zeros_and_no_nan(lengths: list[int]) -> None:
    """Catches a softmax over nothing, and a graph without the tables: in it, a rank would leave out an exchange."""
    dupn, inputs = _dupn(), _inputs(lengths)
    got = _run(dupn, inputs, lengths)
    assert torch.equal(got, torch.zeros(len(lengths), HIDDEN).double())
    at = [inputs[0], inputs[1], *dupn.parameters()]
    grads = torch.autograd.grad(got.sum(), at)  # refuses what is not in the graph
    assert all(not grad.any() for grad in grads)


def test_a_row_is_treated_by_itself() -> None:
    """Catches padding, or longer rows beside it, in a row's vector or gradients."""
    dupn, inputs = _dupn(), _inputs()
    whole = _run(dupn, inputs)
    first = 0
    for row, length in enumerate(LENGTHS):
        mine = [of[first : first + length] for of in inputs[:2]] + [of[row : row + 1] for of in inputs[2:]]
        torch.testing.assert_close(_run(dupn, mine, [length])[0], whole[row], rtol=0, atol=1e-14)
        first += length
    padded = [inputs[0], inputs[1], *(torch.cat([of, torch.full_like(of[:2], torch.nan)]) for of in inputs[2:])]
    got = _run(dupn, padded, [*LENGTHS, 0, 0])
    torch.testing.assert_close(got[:-2], whole, rtol=0, atol=1e-14)
    assert not got[-2:].any()
    mine, other = (_grads(of, [*inputs, *dupn.parameters()])[0] for of in (got[:-2], whole))
    torch.testing.assert_close(mine, other, rtol=0, atol=1e-14)


def test_weights_of_a_row_s_events_sum_to_one() -> None:
    """Catches a softmax over the batch, or over places that are padded."""
    dupn, (items, properties, query, user) = _dupn(), _inputs()
    steps = EventSteps.packed(torch.tensor(LENGTHS))
    states = dupn.lstm(items[steps.events], properties[steps.events], steps.counts)
    events = torch.cat([states, properties[steps.events]], dim=1)
    shares = dupn.attention(events, torch.cat([query, user], dim=1), steps)
    sums = torch.zeros(len(LENGTHS)).double().index_add(0, steps.rows, shares)
    torch.testing.assert_close(sums, torch.tensor(LENGTHS).clamp(max=1).double())
    over_all = events.new_zeros(len(LENGTHS)).index_add(0, steps.rows, shares.log().softmax(0))
    assert (over_all - sums).abs().max() > 0.1


def test_steps_by_hand() -> None:
    """Catches an event that is put into another row, place or order."""
    steps = EventSteps.packed(torch.tensor([1, 0, 3, 1]))
    # Entries: row 0 has the first, row 2 the next three, row 3 the last. Rows by length: 2, 0, 3, 1.
    assert steps.events.tolist() == [1, 0, 4, 2, 3]
    assert steps.rows.tolist() == [2, 0, 3, 2, 2]
    assert steps.places.tolist() == [0, 0, 0, 1, 2]
    assert steps.counts == [3, 1, 1]


def test_padded_steps_by_hand() -> None:
    """Catches a place without an event that reads another row's entry."""
    steps = EventSteps.padded(torch.tensor([1, 0, 2]), 2, 3)
    assert steps.events.tolist() == [0, 3, 1, 3, 3, 2]
    assert steps.rows.tolist() == [0, 1, 2, 0, 1, 2]
    assert steps.places.tolist() == [0, 0, 0, 1, 1, 1]
    assert steps.counts == [3, 3]
    assert steps.is_event is not None
    assert steps.is_event.tolist() == [True, False, True, False, False, True]
    assert steps.take(torch.tensor([[1.0], [2.0], [3.0]])).flatten().tolist() == [1, 0, 2, 0, 0, 3]
