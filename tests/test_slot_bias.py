"""The slot's logits against a loop over rows, and where they are left out."""

from itertools import accumulate
from typing import Any

import pytest
import torch
from torch import Tensor
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from features.errors import ConfigError
from features.schema import Schema
from models.assembly import build_ranker
from models.entire_space import EntireSpaceConfig
from models.loss import UnionSpaceLoss
from models.optional_parts import AroundConfig
from models.parameter_names import match_layouts
from models.sharing import HardSharingConfig
from models.slot_bias import Device, SlotBias, SlotBiasConfig
from models.tasks import TaskHead

NUM_SLOTS, NUM_DEVICES = 4, 3
# Known, the last, beyond the last, not known.
SLOTS = torch.tensor([0, 2, 3, 9, -1, 2, 0, -1, 3, 1], dtype=torch.int32)
# The device of each row; None: an empty bag, at the very end too.
DEVICES = [0, 2, None, 1, 0, None, None, 2, 1, None]


def _sparse() -> KeyedJaggedTensor:
    """Three features, the device between two with lists."""
    lists = [[7] * (row % 3) for row in range(10)]
    bags = [*lists, *([] if device is None else [device] for device in DEVICES), *[[] for _ in range(10)]]
    values, lengths = [value for bag in bags for value in bag], [len(bag) for bag in bags]
    return KeyedJaggedTensor(["a", "device", "b"], torch.tensor(values), lengths=torch.tensor(lengths))


def _bias(crossed: bool, **options: Any) -> SlotBias:
    bias = SlotBias([4, 1], NUM_SLOTS, Device(1, 3, NUM_DEVICES) if crossed else None, **options).double()
    torch.manual_seed(0)
    bias.weight.data.normal_()
    return bias


def _reference(bias: SlotBias, outputs: Tensor, slots: list[int], crossed: bool) -> Tensor:
    rows = []
    for row, slot in enumerate(slots):
        device = DEVICES[row] if crossed else None
        of_row = outputs[row].clone()
        for tower, column in enumerate((4, 1)):
            cell = bias.weight[tower, 0 if slot < 0 else 1 + min(slot, 3), 0 if device is None else 1 + device]
            of_row[column] = of_row[column] + cell
        rows.append(of_row)
    return torch.stack(rows)


def _grads(values: Tensor, *at: Tensor) -> list[Tensor]:
    weights = torch.arange(values.numel(), dtype=values.dtype).view_as(values).cos()
    return list(torch.autograd.grad((values * weights).sum(), at))


@pytest.mark.parametrize("crossed", [True, False])
@pytest.mark.parametrize("mode", ["training", "known", "missing", "none"])
def test_equals_a_loop_over_rows_in_values_and_gradients(crossed: bool, mode: str) -> None:
    """Catches a slot that is one off, a device of another row or feature, another column's logit, and a slot that is
    used where it must be missing.
    """
    bias = _bias(crossed, scores_known=mode == "known").train(mode == "training")
    outputs = torch.randn(10, 5, dtype=torch.float64, requires_grad=True)
    slots = SLOTS.tolist() if mode in ("training", "known") else [-1] * 10
    got = bias(outputs, None if mode == "none" else SLOTS, _sparse())
    expected = _reference(bias, outputs, slots, crossed)
    torch.testing.assert_close(got, expected, rtol=0, atol=0)
    for mine, other in zip(*(_grads(v, outputs, bias.weight) for v in (got, expected)), strict=True):
        torch.testing.assert_close(mine, other, rtol=0, atol=1e-14)
    assert torch.equal(got[:, [0, 2, 3]], outputs[:, [0, 2, 3]])


def test_no_bag_has_a_device() -> None:
    """Catches an index behind the last value, where the batch has no ids at all: a batch of padding."""
    bias, outputs = _bias(True), torch.zeros(10, 5, dtype=torch.float64)
    empty = KeyedJaggedTensor(["a", "device", "b"], torch.empty(0).long(), lengths=torch.zeros(30).long())
    torch.testing.assert_close(bias(outputs, SLOTS * 0 - 1, empty)[:, 4], bias.weight[0, 0, 0].expand(10))


def test_dropped_slots_are_missing_slots() -> None:
    """Catches another rate than 10 %, a dropped device, one draw for the whole batch, and draws while scoring."""
    bias = SlotBias([0], 2, Device(0, 1, 2), dropout=0.1, scores_known=True)
    bias.weight.data = torch.arange(9.0).view(1, 3, 3)
    rows = 20_000
    sparse = KeyedJaggedTensor(["device"], torch.arange(rows) % 2, lengths=torch.ones(rows, dtype=torch.long))
    outputs, slots = torch.zeros(rows, 1), torch.ones(rows, dtype=torch.int32)
    logits = bias(outputs, slots, sparse)[:, 0]
    known, missing = 7.0 + torch.arange(rows) % 2, 1.0 + torch.arange(rows) % 2
    dropped = logits == missing
    assert ((logits == known) | dropped).all()
    assert 0.09 < dropped.float().mean() < 0.11
    state = torch.get_rng_state()
    assert torch.equal(bias.eval()(outputs, slots, sparse)[:, 0], known)
    assert torch.equal(torch.get_rng_state(), state)


def test_slots_are_dropped_by_the_process_generator() -> None:
    """Catches a generator of its own: the train step seeds torch's from (seed, step, rank), so that a resumed run drops
    the same slots.
    """
    bias, sparse = _bias(True, dropout=0.5), _sparse()
    outputs = torch.zeros(10, 5, dtype=torch.float64)
    found = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        found.append(bias(outputs, SLOTS, sparse))
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


def test_rows_outside_a_space_train_no_slot() -> None:
    """Catches padding, whose slot is missing and which is in no space, in the logits of missing slots."""
    bias, heads = _bias(True), [TaskHead(name=name, kind="binary") for name in "abcde"]
    in_space = torch.rand(10, 5) < 0.5
    in_space[[4, 7]] = False  # the rows whose slot is not known
    labels = torch.where(in_space, 1.0, torch.nan).double()
    ones = torch.ones(5, dtype=torch.float64)
    outputs = bias(torch.zeros(10, 5, dtype=torch.float64), SLOTS, _sparse())
    total, _ = UnionSpaceLoss(heads)(outputs, labels, in_space, ones.expand(10, 5), ones, ones)
    (grad,) = torch.autograd.grad(total, bias.weight)
    assert not grad[:, 0].any()
    assert grad[:, 1:].any()


def test_symbolic_trace() -> None:
    """Catches what TorchRec's pipelines cannot trace."""
    bias, outputs = _bias(True), torch.randn(10, 5, dtype=torch.float64)
    traced = torch.fx.symbolic_trace(bias)
    torch.testing.assert_close(traced(outputs, SLOTS, _sparse()), bias(outputs, SLOTS, _sparse()))
    assert set(bias.state_dict()) == {"weight"}


# --- Declared ---


def _schema(**changed: Any) -> Schema:
    vocabulary = {"kind": "vocabulary", "min_count": 1, "keep_days": 1, "tail_rows": 1}
    return Schema.model_validate(
        {
            "tables": [
                {"name": "user", "num_rows": 400_000, "dim": 4},
                {"name": "device", "num_rows": 5, "dim": 4},
                {"name": "video", "num_rows": 5, "dim": 4, "id_mapping": vocabulary},
            ],
            "features": [
                {"kind": "id", "name": "user", "table": "user"},
                {"kind": "dense", "name": "age", "standardise": False},
                {"kind": "sequence", "name": "seen", "table": "video", "max_length": 3},
                {"kind": "id", "name": "video", "table": "video"},
                {"kind": "id", "name": "device", "table": "device"},
            ],
            "tasks": [
                {"name": "place", "kind": "multiclass", "num_classes": 3, "label": "p"},
                {"name": "ctr", "label": "c"},
                {"name": "buy", "label": "b"},
                {"name": "dwell", "kind": "regression", "label": "d"},
            ],
            "slot": "slot",
        }
        | changed
    )


RULE = EntireSpaceConfig.model_validate(
    {"towers": ["bought"], "probabilities": {"buy": {"given": "ctr", "then": "bought"}}}
)


def _around(**changed: Any) -> AroundConfig:
    declared = {"tasks": ["ctr"], "num_slots": 4, "dropout": 0.0} | changed
    return AroundConfig(slot_bias=SlotBiasConfig.model_validate(declared), entire_space=RULE)


NETWORK = HardSharingConfig(kind="hard_sharing", layers=[4])


@pytest.mark.parametrize(
    ("declared", "schema", "message"),
    [
        ({}, {"slot": None}, "declare schema.slot"),
        ({"tasks": ["cvr"]}, {}, "there is no task 'cvr': did you mean 'ctr'?"),
        ({"tasks": ["place"]}, {}, "'place' is multiclass"),
        ({"tasks": ["buy"]}, {}, "'buy' is composed in entire_space: name towers of it"),
        ({"tasks": ["ctr", "ctr"]}, {}, "'ctr' is named twice"),
        ({"feature": "seen"}, {}, r"'seen', which is no id feature; those are \['user', 'video', 'device'\]"),
        ({"feature": "age"}, {}, "'age', which is no id feature"),
        ({"feature": "video"}, {}, "gives its rows to other ids in time: declare a hashed table"),
        ({"feature": "user"}, {}, "2,000,005 logits .* are more than 1,000,000: choose a feature of fewer rows"),
    ],
)
def test_a_wrong_declaration_is_refused(declared: dict[str, Any], schema: dict[str, Any], message: str) -> None:
    """Catches what would fail in the middle of a run, or add the logits to something else."""
    with pytest.raises(ConfigError, match=message), torch.device("meta"):
        build_ranker(_schema(**schema), NETWORK, [3], 0.0, None, around=_around(**declared))


def test_a_model_s_slots_reach_their_tasks_alone() -> None:
    """Catches columns that are counted by task where one has several outputs, or in the order of the tasks."""
    around = _around(tasks=["dwell", "ctr", "bought"], feature="device")
    ranker = build_ranker(_schema(), NETWORK, [3], 0.0, None, around=around).ranker
    bias = ranker.slot_bias
    assert bias is not None
    # Outputs of the towers: three classes, ctr, dwell, bought.
    assert bias.columns.tolist() == [4, 3, 5]
    assert bias.device == (3, 4, 5)  # of user, seen, video, device
    assert bias.weight.shape == (3, 5, 6)
    assert not bias.weight.any()


def test_it_starts_from_nothing() -> None:
    """Catches a bias that draws its start values: with it, the rest of the model would start differently."""
    models = []
    for around in (_around(), AroundConfig(entire_space=RULE)):
        torch.manual_seed(4)
        ranker = build_ranker(_schema(), NETWORK, [3], 0.0, None, around=around).ranker
        models.append(dict(ranker.head.named_parameters()))
    assert all(torch.equal(models[0][name], models[1][name]) for name in models[0])


def test_a_factor_s_slot_is_in_what_is_composed_of_it() -> None:
    """Catches a bias that is added behind the composition, where no tower has it."""
    ranker = build_ranker(_schema(), NETWORK, [3], 0.0, None, around=_around()).ranker
    assert ranker.slot_bias is not None
    assert ranker.entire_space is not None
    ranker.slot_bias.weight.data[0, 2, 0] = 1.5
    outputs, none = torch.randn(2, 6), KeyedJaggedTensor(["user"], torch.empty(0).long(), lengths=torch.zeros(2).long())
    shown = ranker.entire_space(ranker.slot_bias(outputs, torch.tensor([1, 0]), none))
    plain = ranker.entire_space(outputs)
    assert (shown != plain).nonzero().tolist() == [[0, 3], [0, 4]]
    p = torch.sigmoid(outputs[0, 3] + 1.5) * torch.sigmoid(outputs[0, 5])
    torch.testing.assert_close(shown[0, 4].sigmoid(), p)


def test_parts_are_kept_by_slot_and_device() -> None:
    """Catches logits that are kept for another slot, or for a device whose ids have another row."""

    def layout(bias: SlotBias, tasks: list[str], feature: str) -> Any:
        return {"weight": bias.parts(tasks, feature)}

    old = layout(SlotBias([0, 1], 3, Device(0, 1, 2)), ["a", "b"], "column device")
    (match,) = match_layouts(old, layout(SlotBias([0], 4, Device(0, 1, 2)), ["b"], "column device"))
    # Of slots missing, 0, 1, "2 and beyond" it keeps three, of devices missing, 0, 1 all.
    assert match.places == (([0], [0]), ([0, 1, 2], [0, 1, 2]), ([0, 1, 2], [0, 1, 2]))
    for bias, feature in (
        (SlotBias([0], 3, Device(0, 1, 3)), "column device"),
        (SlotBias([0], 3, Device(0, 1, 2)), "column other"),
    ):
        (match,) = match_layouts(old, layout(bias, ["a"], feature))
        assert match.places[2] == ([0], [0])
    assert list(accumulate(part.num_rows for part in old["weight"])) == [1, 2]
