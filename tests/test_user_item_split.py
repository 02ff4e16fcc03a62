"""A model with DUPN: its tables, its two halves, its tasks, and the declarations that are refused."""

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from dupn_models import KEYS, NETWORK, around_of, random_batch, ranker_of, schema_of
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from features.errors import ConfigError
from models.assembly import build_ranker, declared_layout, task_heads
from models.balancing import SCHEDULE, LossBalancingConfig
from models.inputs import sum_of_bags
from models.loss import UnionSpaceLoss
from models.loss_combination import JointLoss
from models.optional_parts import AroundConfig
from models.parameter_names import match_layouts
from models.pcgrad import PCGradConfig
from models.tables import build_tables, parameter_of, table_of
from models.user_item_split import SplitRanker


def _with(sparse: KeyedJaggedTensor, other: KeyedJaggedTensor, names: Sequence[str]) -> KeyedJaggedTensor:
    """A batch with some features of another one."""
    bags = [(other if key in names else sparse)[key] for key in KEYS]
    return KeyedJaggedTensor(
        KEYS, torch.cat([b.values() for b in bags]), lengths=torch.cat([b.lengths() for b in bags])
    )


def test_pooled_features_of_an_unpooled_table_are_its_bags_sums() -> None:
    """Catches a second copy of a table, a bag of another row or feature, and a mean that is not taken."""
    schema, pooled = schema_of(), schema_of()
    pooled = schema_of(
        features=[
            feature.model_dump() | ({"pooling": "mean", "aligned_with": None} if "watched" in feature.name else {})
            for feature in pooled.features
        ]
    )
    ranker, cpu = ranker_of(schema, around_of()), torch.device("cpu")
    assert set(dict(ranker.named_parameters())) >= {"sequences.dim_4.embeddings.video.weight"}
    assert [table_of(name) for name in ranker.state_dict() if table_of(name)] == ["user", "video", "kind"]
    bags = build_tables(pooled, cpu)
    assert bags is not None
    assert ranker.sequences is not None
    for name, parameter in ranker.named_parameters():
        table = table_of(name)
        if table:
            bags.embedding_bags[table].get_parameter("weight").data = parameter.data
    sparse, dense = random_batch()
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
    schema = schema_of()
    model = build_ranker(schema, NETWORK, [3], 0.0, None, around=around_of())
    names = {name for name, _ in model.named_parameters() if table_of(name)}
    assert names == {parameter_of(schema, table) for table in schema.tables}
    assert table_of("model.ranker.sequences.dim_4.embeddings.video.weight.video.momentum1") == "video"
    assert table_of("ranker.user.dupn.attention.layers.0.weight") is None


USERS = ["age", "user_id", "watched", "watched_kind", "asked"]


def test_the_halves_are_the_whole_to_the_bit() -> None:
    """Catches a half that reads the other's features, and a split that computes anything otherwise."""
    ranker = ranker_of(schema_of(), around_of())
    split, (sparse, dense), (other, numbers) = SplitRanker(ranker), random_batch(40), random_batch(40, seed=1)
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
    ranker = ranker_of(schema_of(), around_of())
    split, (sparse, dense) = SplitRanker(ranker), random_batch(rows=7)
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
    dumped = [f.model_dump() for f in schema_of().features if f.name in ("age", "user_id", "video_id")]
    plain = schema_of(features=dumped, tables=[table.model_dump() for table in schema_of().tables[:2]])
    ranker = build_ranker(plain, NETWORK, [3], 0.0, None).ranker
    with pytest.raises(ValueError, match=r"no section model.user"):
        SplitRanker(ranker)


def test_learning_to_rank_by_hand() -> None:
    """Catches labels of another sign, a weight of another row, and a feature that is weighed by another's weight."""
    ranker = ranker_of(schema_of(), around_of())
    assert ranker.user is not None
    assert ranker.user.ranked is not None
    sparse, dense = random_batch()
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
    _, losses = UnionSpaceLoss(task_heads(schema_of().tasks))(
        ranker(sparse, dense), labels, in_space, weights, ones, ones
    )
    assert losses[0].item() == pytest.approx(expected, rel=1e-5)
    flipped = 1 - labels
    _, others = UnionSpaceLoss(task_heads(schema_of().tasks))(
        ranker(sparse, dense), flipped, in_space, weights, ones, ones
    )
    assert abs(others[0].item() - expected) > 1e-2


def test_outputs_stand_in_the_order_of_the_tasks() -> None:
    """Catches outputs without a tower that are put behind the others."""
    ranker = ranker_of(schema_of(), around_of())
    assert ranker.user is not None
    # Towers: click, dwell; then learning to rank; then three classes.
    assert ranker.user.places.tolist() == [2, 3, 4, 5, 0, 1]
    assert ranker(*random_batch()).shape == (5, 6)


def _changed(feature: str, **changed: Any) -> dict[str, Any]:
    dumped = [f.model_dump() for f in schema_of().features]
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
        build_ranker(schema_of(**schema), NETWORK, [3], 0.0, None, around=around_of(**declared))


def test_what_reads_no_events_or_balances_gradients_is_refused() -> None:
    """Catches a table that nothing looks up, and gradients that meet where there is nothing pooled."""

    def build(around: AroundConfig, balancing: LossBalancingConfig = SCHEDULE) -> None:
        with torch.device("meta"):
            build_ranker(schema_of(), NETWORK, [3], 0.0, None, JointLoss(balancing=balancing), around=around)

    with pytest.raises(ConfigError, match=r"have pooling none, and there is no model.user"):
        build(AroundConfig())
    with pytest.raises(ConfigError, match=r"pcgrad with model.user"):
        build(around_of(), PCGRAD)
    bias = {"tasks": ["bought"], "num_slots": 2}
    with pytest.raises(ValueError, match="'bought' is read from the user's vector"):
        AroundConfig.model_validate(around_of().model_dump() | {"slot_bias": bias})


def test_a_migrated_model_keeps_what_means_the_same() -> None:
    """Catches columns of the network that are kept for another feature, now that it reads the users' vectors first."""

    def layout(**changed: Any) -> Any:
        return declared_layout(schema_of(), NETWORK, [3], around=around_of(**changed))

    matches = match_layouts(layout(), layout(profile=["user_id"]))
    kept = {(m.new.owner, m.new.detail): m.num_elements for m in matches}
    # Gates and states read the same; the attention lost the column of age, and age is the item's now.
    assert kept[("property-gated LSTM", "items")] == 16 * 4
    assert kept[("property-gated LSTM", "properties")] == 12 * 8
    assert kept[("attention over events", "layer 1 weight")] == 5 * (4 + 8 + 4 + 4)
    assert kept[("learning to rank of task bought", "weight")] == 2 * (4 + 4)
