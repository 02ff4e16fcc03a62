"""DUPN against a loop over rows and events, its gates by hand, and the user's side apart from the item's."""

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from features.errors import ConfigError
from features.schema import Schema
from models.assembly import build_ranker, declared_layout, task_heads
from models.balancing import SCHEDULE, LossBalancingConfig
from models.dupn import DUPN, EventSteps, PropertyGatedLSTM
from models.inputs import sum_of_bags
from models.loss import UnionSpaceLoss
from models.loss_combination import JointLoss
from models.optional_parts import AroundConfig
from models.parameter_names import match_layouts
from models.pcgrad import PCGradConfig
from models.ranker import Ranker
from models.sharing import HardSharingConfig
from models.tables import build_sequences, build_tables, parameter_of, table_of
from models.user_item_split import SplitRanker

LENGTHS = [2, 0, 4, 1, 0, 3]
ITEM, PROPERTY, USER, QUERY, HIDDEN = 3, 2, 2, 1, 4


def _dupn() -> DUPN:
    torch.manual_seed(0)
    dupn = DUPN(ITEM, PROPERTY, USER, QUERY, HIDDEN, [5, 3]).double()
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
    steps = EventSteps.of(torch.tensor(LENGTHS))
    states = dupn.lstm(items[steps.events], properties[steps.events], steps.counts)
    events = torch.cat([states, properties[steps.events]], dim=1)
    shares = dupn.attention(events, torch.cat([query, user], dim=1), steps)
    sums = torch.zeros(len(LENGTHS)).double().index_add(0, steps.rows, shares)
    torch.testing.assert_close(sums, torch.tensor(LENGTHS).clamp(max=1).double())
    over_all = events.new_zeros(len(LENGTHS)).index_add(0, steps.rows, shares.log().softmax(0))
    assert (over_all - sums).abs().max() > 0.1


def test_steps_by_hand() -> None:
    """Catches an event that is put into another row, place or order."""
    steps = EventSteps.of(torch.tensor([1, 0, 3, 1]))
    # Entries: row 0 has the first, row 2 the next three, row 3 the last. Rows by length: 2, 0, 3, 1.
    assert steps.events.tolist() == [1, 0, 4, 2, 3]
    assert steps.rows.tolist() == [2, 0, 3, 2, 2]
    assert steps.places.tolist() == [0, 0, 0, 1, 2]
    assert steps.counts == [3, 1, 1]


# --- A whole model ---


def _schema(**changed: Any) -> Schema:
    events = {"kind": "sequence", "max_length": 4, "pooling": "none"}
    return Schema.model_validate(
        {
            "tables": [
                {"name": "user", "num_rows": 6, "dim": 4},
                {"name": "video", "num_rows": 9, "dim": 4},
                {"name": "kind", "num_rows": 3, "dim": 8},
            ],
            "features": [
                {"kind": "dense", "name": "age", "standardise": False},
                events | {"name": "watched_kind", "table": "kind", "aligned_with": "watched"},
                {"kind": "id", "name": "user_id", "table": "user"},
                {"kind": "id", "name": "video_id", "table": "video"},
                events | {"name": "watched", "table": "video"},
                {"kind": "sequence", "name": "similar", "table": "video", "max_length": 3},
                {"kind": "dense", "name": "price", "standardise": False},
                {"kind": "id", "name": "asked", "table": "user"},
                {"kind": "dense", "name": "past", "standardise": False},
            ],
            "tasks": [
                {"name": "bought", "label": "b", "weight": "n"},
                {"name": "price_class", "kind": "multiclass", "num_classes": 3, "label": "p"},
                {"name": "click", "label": "c"},
                {"name": "dwell", "kind": "regression", "label": "d"},
            ],
        }
        | changed
    )


KEYS = ["watched_kind", "user_id", "video_id", "watched", "similar", "asked"]
NETWORK = HardSharingConfig(kind="hard_sharing", layers=[4])


def _around(**changed: Any) -> AroundConfig:
    user = {
        "kind": "dupn",
        "events": {"item": "watched", "properties": ["watched_kind"]},
        "profile": ["age", "user_id"],
        "query": ["asked"],
        "hidden": 4,
        "attention": [5],
        "learning_to_rank": {"tasks": ["bought"], "features": ["past", "price"]},
        "alone": ["price_class"],
    }
    return AroundConfig.model_validate({"user": user | changed})


def _ranker(schema: Schema, around: AroundConfig) -> Ranker:
    """On the CPU, in evaluation mode; with a user's side that is wide awake: where no ReLU turns, q has no effect."""
    torch.manual_seed(3)
    ranker = build_ranker(schema, NETWORK, [3], 0.0, None, around=around).ranker
    assert ranker.user is not None
    for parameter in ranker.user.dupn.parameters():
        parameter.data.normal_(0, 0.7)
    cpu = torch.device("cpu")
    ranker.embeddings, ranker.sequences = build_tables(schema, cpu), build_sequences(schema, cpu)
    return ranker.eval()


def _batch(rows: int = 5, seed: int = 0) -> tuple[KeyedJaggedTensor, Tensor]:
    random = torch.Generator().manual_seed(seed)
    of_events = torch.randint(0, 4, (rows,), generator=random)
    one = torch.ones(rows, dtype=torch.long)
    lengths = [of_events, one, one, of_events, torch.randint(0, 3, (rows,), generator=random), one]
    sizes = [3, 6, 9, 9, 9, 6]
    pairs = zip(lengths, sizes, strict=True)
    values = [torch.randint(0, size, (int(of.sum()),), generator=random) for of, size in pairs]
    sparse = KeyedJaggedTensor(KEYS, torch.cat(values), lengths=torch.cat(lengths))
    return sparse, torch.randn(rows, 3, generator=random)


def _with(sparse: KeyedJaggedTensor, other: KeyedJaggedTensor, names: Sequence[str]) -> KeyedJaggedTensor:
    """A batch with some features of another one."""
    bags = [(other if key in names else sparse)[key] for key in KEYS]
    return KeyedJaggedTensor(
        KEYS, torch.cat([b.values() for b in bags]), lengths=torch.cat([b.lengths() for b in bags])
    )


def test_pooled_features_of_an_unpooled_table_are_its_bags_sums() -> None:
    """Catches a second copy of a table, a bag of another row or feature, and a mean that is not taken."""
    schema, pooled = _schema(), _schema()
    pooled = _schema(
        features=[
            feature.model_dump() | ({"pooling": "mean", "aligned_with": None} if "watched" in feature.name else {})
            for feature in pooled.features
        ]
    )
    ranker, cpu = _ranker(schema, _around()), torch.device("cpu")
    assert set(dict(ranker.named_parameters())) >= {"sequences.dim_4.embeddings.video.weight"}
    assert [table_of(name) for name in ranker.state_dict() if table_of(name)] == ["user", "video", "kind"]
    bags = build_tables(pooled, cpu)
    assert bags is not None
    assert ranker.sequences is not None
    for name, parameter in ranker.named_parameters():
        table = table_of(name)
        if table:
            bags.embedding_bags[table].get_parameter("weight").data = parameter.data
    sparse, dense = _batch()
    x = ranker.inputs(ranker.look_up(sparse)[0], sparse, dense, ranker.look_up(sparse)[1])
    sums = bags(sparse).to_dict()
    similar = sums["similar"] / sparse["similar"].lengths().clamp(min=1).unsqueeze(1)
    expected = torch.cat([sums["user_id"], sums["video_id"], similar, sums["asked"], dense], dim=1)
    torch.testing.assert_close(x, expected)
    for name in ("watched", "watched_kind"):
        (entries,) = (found[name] for found in ranker.look_up(sparse)[1] if name in found)
        torch.testing.assert_close(sum_of_bags(entries.values(), sparse[name].lengths()), sums[name])


def test_names_of_tables_parameters() -> None:
    """Catches a table that the optimizers, checkpoints or migrations would not find."""
    schema = _schema()
    model = build_ranker(schema, NETWORK, [3], 0.0, None, around=_around())
    names = {name for name, _ in model.named_parameters() if table_of(name)}
    assert names == {parameter_of(schema, table) for table in schema.tables}
    assert table_of("model.ranker.sequences.dim_4.embeddings.video.weight.video.momentum1") == "video"
    assert table_of("ranker.user.dupn.attention.layers.0.weight") is None


USERS = ["age", "user_id", "watched", "watched_kind", "asked"]


def test_the_halves_are_the_whole_to_the_bit() -> None:
    """Catches a half that reads the other's features, and a split that computes anything otherwise."""
    ranker = _ranker(_schema(), _around())
    split, (sparse, dense), (other, numbers) = SplitRanker(ranker), _batch(40), _batch(40, seed=1)
    whole = ranker(sparse, dense)
    item_side = ["video_id", "similar"]
    # Columns of dense: age, price, past.
    of_user = torch.cat([dense[:, :1], numbers[:, 1:]], dim=1)
    of_item = torch.cat([numbers[:, :1], dense[:, 1:]], dim=1)
    vectors = split.vectors(_with(sparse, other, item_side), of_user)
    assert vectors.shape == (40, split.width) == (40, 4 + 1 + 4)
    assert torch.equal(split.score(vectors, _with(sparse, other, USERS), of_item), whole)
    # Controls: a user's vector depends on each feature of the user, and scores on each of the item.
    for name in USERS[1:]:
        changed = [name] if "watched" not in name else ["watched", "watched_kind"]
        assert not torch.equal(split.vectors(_with(sparse, other, changed), dense), vectors), name
    for name in item_side:
        assert not torch.equal(split.score(vectors, _with(sparse, other, [name]), dense), whole), name


def test_a_user_s_vector_is_scored_against_many_items() -> None:
    """Catches a vector that depends on the item that it was computed beside."""
    ranker = _ranker(_schema(), _around())
    split, (sparse, dense) = SplitRanker(ranker), _batch(rows=7)
    lengths = torch.cat([sparse[key].lengths()[:1].repeat(7) for key in KEYS])
    mine = [sparse[key].values()[: int(sparse[key].lengths()[0])].repeat(7) for key in KEYS]
    repeated = KeyedJaggedTensor(KEYS, torch.cat(mine), lengths=lengths)
    pairs = _with(repeated, sparse, ["video_id", "similar"])  # the first row's user with every row's item
    numbers = torch.cat([dense[:1, :1].expand(7, 1), dense[:, 1:]], dim=1)
    vector = split.vectors(sparse, dense)[:1]
    got = split.score(vector.expand(7, -1), _with(pairs, sparse, USERS), numbers)
    torch.testing.assert_close(got, ranker(pairs, numbers), rtol=0, atol=1e-6)
    assert (got[1:] - got[:1]).abs().max() > 1e-3
    assert (got - ranker(sparse, dense)).abs().max() > 1e-3
    # The price class is of the user alone; a matrix product may round the rows of one batch in different ways.
    torch.testing.assert_close(got[:, 1:4], got[:1, 1:4].expand(7, -1), rtol=0, atol=1e-6)


def test_a_model_without_a_user_s_side_has_no_halves() -> None:
    """Catches vectors of nothing."""
    dumped = [f.model_dump() for f in _schema().features if f.name in ("age", "user_id", "video_id")]
    plain = _schema(features=dumped, tables=[table.model_dump() for table in _schema().tables[:2]])
    ranker = build_ranker(plain, NETWORK, [3], 0.0, None).ranker
    with pytest.raises(ValueError, match=r"no section model.user"):
        SplitRanker(ranker)


def test_learning_to_rank_by_hand() -> None:
    """Catches labels of another sign, a weight of another row, and a feature that is weighed by another's weight."""
    ranker = _ranker(_schema(), _around())
    assert ranker.user is not None
    assert ranker.user.ranked is not None
    sparse, dense = _batch()
    vectors = SplitRanker(ranker).vectors(sparse, dense)
    weight, bias = ranker.user.ranked.weight, ranker.user.ranked.bias
    y, n = [1, -1, -1, 1, -1], [3.0, 1.0, 2.0, 5.0, 0.5]
    expected = 0.0
    for row in range(5):
        of_features = [float(weight[k] @ vectors[row] + bias[k]) for k in range(2)]
        product = of_features[0] * float(dense[row, 2]) + of_features[1] * float(dense[row, 1])  # past, price
        expected += n[row] * math.log(1 + math.exp(-y[row] * product))
    labels = torch.zeros(5, 4)
    labels[:, 0] = (torch.tensor(y) + 1) / 2
    in_space = torch.zeros(5, 4, dtype=torch.bool)
    in_space[:, 0] = True
    weights = torch.tensor(n).unsqueeze(1).expand(5, 4)
    ones = torch.ones(4)  # a denominator of 1 leaves the source's sum
    _, losses = UnionSpaceLoss(task_heads(_schema().tasks))(
        ranker(sparse, dense), labels, in_space, weights, ones, ones
    )
    assert losses[0].item() == pytest.approx(expected, rel=1e-5)
    flipped = 1 - labels
    _, others = UnionSpaceLoss(task_heads(_schema().tasks))(
        ranker(sparse, dense), flipped, in_space, weights, ones, ones
    )
    assert abs(others[0].item() - expected) > 1e-2


def test_outputs_stand_in_the_order_of_the_tasks() -> None:
    """Catches outputs without a tower that are put behind the others."""
    ranker = _ranker(_schema(), _around())
    assert ranker.user is not None
    # Towers: click, dwell; then learning to rank; then three classes.
    assert ranker.user.places.tolist() == [2, 3, 4, 5, 0, 1]
    assert ranker(*_batch()).shape == (5, 6)


def _changed(feature: str, **changed: Any) -> dict[str, Any]:
    dumped = [f.model_dump() for f in _schema().features]
    return {"features": [f | changed if f["name"] == feature else f for f in dumped]}


RANKED = {"tasks": ["bought"], "features": ["price"]}
PCGRAD = PCGradConfig(kind="pcgrad")


@pytest.mark.parametrize(
    ("declared", "schema", "message"),
    [
        ({"events": {"item": "similar", "properties": ["watched_kind"]}}, {}, "'similar' is no sequence with pooling"),
        ({"events": {"item": "watched_kind", "properties": ["watched"]}}, {}, "'watched_kind' is aligned with another"),
        ({}, _changed("watched_kind", aligned_with=None), "'watched_kind' is not aligned_with 'watched'"),
        ({"profile": ["user"]}, {}, "model.user.profile: there is no feature 'user': did you mean 'user_id'?"),
        ({"profile": ["watched"]}, {}, "model.user.profile: there is no feature 'watched'"),
        ({"query": ["user_id"]}, {}, "'user_id' is named twice: declare a second feature"),
        ({"learning_to_rank": RANKED | {"features": ["age"]}}, {}, "'age' is of the user's side too"),
        ({"learning_to_rank": RANKED | {"features": ["video_id"]}}, {}, "there is no dense feature 'video_id'"),
        ({"learning_to_rank": RANKED | {"tasks": ["dwell"]}}, {}, "task 'dwell' is regression, it has no logit"),
        ({"alone": ["bougt"]}, {}, "there is no task 'bougt': did you mean 'bought'?"),
        ({"alone": ["bought"]}, {}, "task 'bought' is named twice"),
        ({"alone": ["price_class", "click", "dwell"]}, {}, "no task is left"),
    ],
)
def test_a_wrong_declaration_is_refused(declared: dict[str, Any], schema: dict[str, Any], message: str) -> None:
    """Catches what would fail in the middle of a run, or compute something else."""
    with pytest.raises(ConfigError, match=message), torch.device("meta"):
        build_ranker(_schema(**schema), NETWORK, [3], 0.0, None, around=_around(**declared))


def test_what_reads_no_events_or_balances_gradients_is_refused() -> None:
    """Catches a table that nothing looks up, and gradients that meet where there is nothing pooled."""

    def build(around: AroundConfig, balancing: LossBalancingConfig = SCHEDULE) -> None:
        with torch.device("meta"):
            build_ranker(_schema(), NETWORK, [3], 0.0, None, JointLoss(balancing=balancing), around=around)

    with pytest.raises(ConfigError, match=r"have pooling none, and there is no model.user"):
        build(AroundConfig())
    with pytest.raises(ConfigError, match=r"pcgrad with model.user"):
        build(_around(), PCGRAD)
    bias = {"tasks": ["bought"], "num_slots": 2}
    with pytest.raises(ValueError, match="'bought' is read from the user's vector"):
        AroundConfig.model_validate(_around().model_dump() | {"slot_bias": bias})


def test_a_migrated_model_keeps_what_means_the_same() -> None:
    """Catches columns of the network that are kept for another feature, now that it reads the users' vectors first."""

    def layout(**changed: Any) -> Any:
        return declared_layout(_schema(), NETWORK, [3], around=_around(**changed))

    matches = match_layouts(layout(), layout(profile=["user_id"]))
    kept = {(m.new.owner, m.new.detail): m.num_elements for m in matches}
    # Gates and states read the same; the attention lost the column of age, and age is the item's now.
    assert kept[("property-gated LSTM", "items")] == 16 * 4
    assert kept[("property-gated LSTM", "properties")] == 12 * 8
    assert kept[("attention over events", "layer 1 weight")] == 5 * (4 + 8 + 4 + 4)
    assert kept[("learning to rank of task bought", "weight")] == 2 * (4 + 4)
