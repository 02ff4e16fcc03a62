"""NFwFM's interaction against a loop over pairs, and its place in the whole model."""

from itertools import combinations
from typing import Any

import pytest
import torch
from grown_models import EXACT, FEATURES, NETWORKS, Built, grow, ids_feature, inherit, sections_of, values_of_features
from torch import Tensor, nn

from features.errors import ConfigError
from features.schema import Schema
from models.assembly import build_ranker
from models.balancing import blocks_of_dense
from models.interaction import NFwFM
from models.mran import MRAN, MRANConfig
from models.optional_parts import AroundConfig
from models.ranker import Ranker
from models.sharing import HardSharingConfig

NUM_FIELDS, DIM, NUM_DENSE = 4, 3, 2
WIDTH = NUM_FIELDS * DIM


def _layer(**options: Any) -> NFwFM:
    layer = NFwFM(NUM_FIELDS, DIM, **options).double()
    torch.manual_seed(0)
    for parameter in layer.parameters():
        parameter.data.normal_()
    return layer


def _rows(num_rows: int = 6) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(num_rows, WIDTH + NUM_DENSE, dtype=torch.float64, generator=generator).requires_grad_()


def _reference(layer: NFwFM, x: Tensor) -> Tensor:
    """S and h, by loops over rows, fields and pairs."""
    rows = []
    for row in x:
        fields = row[:WIDTH].split(DIM)
        linear, crossed = torch.zeros((), dtype=x.dtype), torch.zeros(DIM, dtype=x.dtype)
        for f in range(NUM_FIELDS):
            linear = linear + (fields[f] * layer.first_order[f]).sum()
        for number, (f, g) in enumerate(combinations(range(NUM_FIELDS), 2)):
            crossed = crossed + layer.pairs[number] * fields[f] * fields[g]
        rows.append(torch.cat([linear.view(1), crossed]))
    return torch.stack(rows)


def _grads(values: Tensor, *at: Tensor) -> list[Tensor]:
    weights = torch.arange(values.numel(), dtype=values.dtype).view_as(values).cos()
    return list(torch.autograd.grad((values * weights).sum(), at))


@pytest.mark.parametrize("keeps_inputs", [True, False])
def test_equals_a_loop_over_pairs_in_values_and_all_gradients(keeps_inputs: bool) -> None:
    """Catches a pair that is counted twice or with itself, a weight of another pair, and inputs that are lost."""
    layer, x = _layer(keeps_inputs=keeps_inputs), _rows()
    own = _reference(layer, x)
    expected = torch.cat([x, own], dim=1) if keeps_inputs else torch.cat([own, x[:, WIDTH:]], dim=1)
    found = layer(x)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-13)
    at = (x, layer.pairs, layer.first_order)
    for mine, other in zip(_grads(found, *at), _grads(expected, *at), strict=True):
        torch.testing.assert_close(mine, other, rtol=0, atol=1e-12)
    assert found.shape[1] == sum(layer.out_fields(NUM_DENSE))


def test_control_a_pair_with_itself_is_seen() -> None:
    """Shows that the test above can fail: a diagonal that is not 0, and pairs in another order."""
    layer, x = _layer(), _rows()
    expected = layer(x)
    right = layer.places.clone()
    layer.places[0] = 0
    assert not torch.allclose(layer(x), expected)
    layer.places.copy_(right)
    layer.pairs.data = layer.pairs.data.flip(0)
    assert not torch.allclose(layer(x), expected)


def test_by_hand() -> None:
    """Catches a deviation that the loop would share: e = (1, 2), (3, 4), (5, 6), r = 1, 10, 100, w = 0."""
    layer = NFwFM(3, 2)
    layer.pairs.data = torch.tensor([1.0, 10, 100])
    found = layer(torch.tensor([[1.0, 2, 3, 4, 5, 6, 7]]))
    # 1 * 3 + 10 * 5 + 100 * 15 and 2 * 4 + 10 * 12 + 100 * 24
    assert found.tolist() == [[1, 2, 3, 4, 5, 6, 7, 0, 1553, 2528]]


def test_it_starts_as_a_factorisation_machine() -> None:
    """Catches a start that is drawn, from which the rest of the model would start differently, or that is dead."""
    torch.manual_seed(3)
    state = torch.get_rng_state()
    layer = NFwFM(NUM_FIELDS, DIM).double()
    assert torch.equal(torch.get_rng_state(), state)
    x = _rows()
    own = layer(x)[:, WIDTH + NUM_DENSE :]
    fields = x[:, :WIDTH].unflatten(1, (NUM_FIELDS, DIM))
    torch.testing.assert_close(own[:, 1:], (fields.sum(1) ** 2 - (fields**2).sum(1)) / 2)
    assert all(grad.ne(0).all() for grad in _grads(own, layer.pairs, layer.first_order))


def test_empty_bags_have_no_interaction() -> None:
    """Catches a bias: of padding, S and h are 0."""
    assert not _layer()(torch.zeros(2, WIDTH + NUM_DENSE, dtype=torch.float64)).any()


def test_dropout_is_of_the_products_and_in_training_alone() -> None:
    """Catches dropped inputs, a scale that scoring does not have, and draws while scoring."""
    layer, x = _layer(dropout=0.25), _rows(5000).detach()
    plain = layer.eval()(x)
    state = torch.get_rng_state()
    assert torch.equal(layer(x), plain)
    assert torch.equal(torch.get_rng_state(), state)
    dropped = layer.train()(x)
    own = WIDTH + NUM_DENSE + 1
    assert torch.equal(dropped[:, :own], plain[:, :own])
    is_gone = dropped[:, own:] == 0
    assert 0.23 < is_gone.double().mean() < 0.27
    torch.testing.assert_close(dropped[:, own:][~is_gone], (plain[:, own:] / 0.75)[~is_gone])


def test_symbolic_trace() -> None:
    """Catches what TorchRec's pipelines cannot trace."""
    for keeps_inputs in (True, False):
        layer = _layer(keeps_inputs=keeps_inputs)
        torch.testing.assert_close(torch.fx.symbolic_trace(layer)(_rows()), layer(_rows()))
        assert set(layer.state_dict()) == {"pairs", "first_order"}


# --- Declared ---

NETWORK = HardSharingConfig(kind="hard_sharing", layers=[4])


def _schema(dims: tuple[int, ...] = (4, 4, 4)) -> Schema:
    names = ["user", "video", "author"][: len(dims)]
    ids = [{"kind": "id", "name": name, "table": name} for name in names]
    return Schema.model_validate(
        {
            "tables": [{"name": name, "num_rows": 8, "dim": dim} for name, dim in zip(names, dims, strict=True)],
            "features": [*ids, {"kind": "dense", "name": "age", "standardise": False}],
            "tasks": [{"name": "ctr", "label": "c"}, {"name": "cvr", "label": "v"}],
        }
    )


def _around(**options: Any) -> AroundConfig:
    return AroundConfig.model_validate({"interaction": {"kind": "nfwfm"} | options})


def _ranker(network: Any = NETWORK, around: AroundConfig | None = None) -> Ranker:
    torch.manual_seed(5)
    return build_ranker(_schema(), network, [3], 0.0, None, around=around or AroundConfig()).ranker


@pytest.mark.parametrize(
    ("dims", "message"),
    [
        ((4, 8, 4), r"features {'video': 8} differ from the others' dim 4, expected one dim: give their tables"),
        ((4,), r"sparse features are \['user'\], expected two or more: leave it out"),
    ],
)
def test_a_schema_that_does_not_fit_is_refused(dims: tuple[int, ...], message: str) -> None:
    """Catches columns of one field that are read as another's."""
    with pytest.raises(ConfigError, match=message), torch.device("meta"):
        build_ranker(_schema(dims), NETWORK, [3], 0.0, None, around=_around())


@pytest.mark.parametrize(("keep_inputs", "widths"), [(True, [4, 4, 4, 1, 5]), (False, [5, 1])])
def test_a_network_of_tokens_has_one_for_the_interaction(keep_inputs: bool, widths: list[int]) -> None:
    """Catches tokens that are cut where no field ends: MRAN is given the fields' widths."""
    network = _ranker(MRANConfig(kind="mran", width=4), _around(keep_inputs=keep_inputs)).head.network
    assert isinstance(network, MRAN)
    assert network.fields == widths


def test_absent_it_changes_no_bit() -> None:
    """Catches a layer that is there without being declared, and a start of the network that depends on the layer."""
    plain, interacting = _ranker(), _ranker(around=_around(keep_inputs=False))
    assert plain.interaction is None
    assert not [name for name, _ in plain.named_parameters() if "interaction" in name]
    assert _around().interaction is not None
    towers = [dict(ranker.head.towers.named_parameters()) for ranker in (plain, _ranker())]
    assert all(torch.equal(towers[0][name], towers[1][name]) for name in towers[0])
    names = [name for name, _ in interacting.dense_parameters()]
    assert names[1:3] == ["interaction.pairs", "interaction.first_order"]


def test_all_tasks_meet_in_it() -> None:
    """Catches parameters that balancing takes for one task's, or for nobody's."""
    ranker = _ranker(around=_around())
    dense: dict[str, nn.Parameter] = dict(ranker.dense_parameters())
    blocks = {block.name: block for block in blocks_of_dense(dense, ranker.head.network, 12 + 1 + 5, 2)}
    for name, rows in (("interaction.pairs", 3), ("interaction.first_order", 3)):
        assert (blocks[name].start, blocks[name].stop, blocks[name].tasks) == (0, rows, (0, 1))


# --- Taken to another schema ---

# All of one width: `video` and `author` read the users' table here.
FIELDS = [FEATURES[0], FEATURES[1], ids_feature("video", "user")]
INTERACTION = {"interaction": {"kind": "nfwfm"}}
CHANGES: dict[str, dict[str, Any]] = {
    "order": {"features": FIELDS[::-1]},
    "a field more": {"features": [ids_feature("author", "user"), *FIELDS]},
    "a number more": {"features": [*FIELDS, FEATURES[3]]},
}


@pytest.mark.parametrize("kind", EXACT)
def test_a_line_that_gets_it_gives_what_it_gave(kind: str) -> None:
    """Catches inputs that are not found again beside the interaction, in any network."""
    _assert_grown(kind, {}, {"around": INTERACTION})


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("kind", ["ple", "hard_sharing"])
def test_a_line_that_has_it_keeps_it(kind: str, change: str) -> None:
    """Catches the weight of a pair that goes to another pair, or is lost when its fields change places."""
    with_it = {"around": INTERACTION}
    _assert_grown(kind, with_it, with_it | CHANGES[change])


def _assert_grown(kind: str, old: dict[str, Any], new: dict[str, Any]) -> None:
    before, after = (
        Built(sections_of(NETWORKS[kind], **{"features": FIELDS} | changed), seed)
        for seed, changed in enumerate((old, new))
    )
    values = values_of_features()
    expected = before.outputs(values)
    grow(before, after)
    found = after.outputs(values)
    for task, output in expected.items():
        torch.testing.assert_close(found[task], output, rtol=0, atol=1e-12)


def test_control_pairs_by_their_place_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shows that the test above can fail: labels that say a pair's place, not its fields."""

    def by_place(self: NFwFM, features: Any, bags: Any) -> Any:
        first, *others = right(self, features, bags)
        labels = tuple(("pairs", str(index)) for index in range(first.num_rows))
        return [type(first)(first.parameter, 0, first.owner, "", (labels,)), *others]

    right = NFwFM.parts
    monkeypatch.setattr(NFwFM, "parts", by_place)
    with pytest.raises(AssertionError):
        _assert_grown("hard_sharing", {"around": INTERACTION}, {"around": INTERACTION} | CHANGES["a field more"])


@pytest.mark.parametrize("keep_inputs", [True, False])
@pytest.mark.parametrize("kind", NETWORKS)
def test_every_parameter_is_declared(kind: str, keep_inputs: bool) -> None:
    """Catches a parameter without a name: it would be lost with the first new feature."""
    around = {"interaction": {"kind": "nfwfm", "keep_inputs": keep_inputs}}
    built = Built(sections_of(NETWORKS[kind], features=FIELDS, around=around))
    parts = [(name, part) for name, parts in built.layout.items() for part in parts]
    assert all(part.owner != name for name, part in parts)
    keys = [(part.owner, part.detail) for _, part in parts]
    assert len(keys) == len(set(keys))
    assert {"ranker.interaction.pairs", "ranker.interaction.first_order"} <= set(built.layout)


def test_what_is_said_of_it() -> None:
    """Catches a report that does not name the interaction, or the pairs that came with a field."""
    old, new = (Built(sections_of(NETWORKS["hard_sharing"], features=FIELDS, around=of)) for of in ({}, INTERACTION))
    found = inherit(old, new)
    assert found.new == [
        "field weights of the interaction",
        "first-order weights of feature user",
        "first-order weights of feature video",
        "interaction",
    ]
    more = Built(sections_of(NETWORKS["hard_sharing"], around=INTERACTION) | CHANGES["a field more"])
    found = inherit(new, more)
    assert found.new == ["first-order weights of feature author", "input columns of feature author"]
    assert "field weights of the interaction (1 of 3)" in found.kept
