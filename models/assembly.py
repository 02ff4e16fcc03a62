"""Assembly of a declared model from its modules, all in one place."""

from collections.abc import Sequence

import torch

from features.errors import ConfigError
from features.schema import DenseFeature, FeatureConfig, Schema
from features.tasks import TaskConfig
from models.all_reduce import Ranks
from models.balancing import LossBalancingConfig, build_balancing, check_composed, check_pooled
from models.inputs import InputArch
from models.loss import UnionSpaceLoss
from models.loss_combination import WEIGHTED_SUM, JointLoss
from models.network import NetworkConfig, build_network
from models.optional_parts import AroundConfig
from models.parameter_names import Labels, Layout, ParameterPart, layout_of
from models.ranker import Head, Ranker, RankerTrain
from models.tables import build_sequences, build_tables, mean_pooled, table_of
from models.tasks import TaskHead
from models.towers import Towers
from models.uncertainty import UncertaintyWeights
from models.user import UserArch, pooled_features

ALONE = Ranks()


def task_heads(tasks: Sequence[TaskConfig]) -> list[TaskHead]:
    """Return the heads of declared tasks, in order."""
    return [
        TaskHead(
            name=task.name,
            kind=task.kind,
            loss=task.loss,
            huber_delta=task.huber_delta,
            link=task.link,
            log1p_target=task.log1p_target,
            num_classes=task.num_classes,
            sampled_rate=_corrected_rate(task),
        )
        for task in tasks
    ]


def _corrected_rate(task: TaskConfig) -> float:
    """Return the sampling rate that the loss corrects; 1 without sampling or with correction by weights."""
    sampling = task.sampling
    return sampling.rate if sampling and sampling.rate and sampling.correction == "log_odds" else 1.0


# All keys absent: the network alone.
_NOTHING = AroundConfig()


def build_ranker(
    schema: Schema,
    network: NetworkConfig,
    towers: Sequence[int],
    dropout: float,
    autocast: torch.dtype | None,
    joint: JointLoss = WEIGHTED_SUM,
    ranks: Ranks = ALONE,
    around: AroundConfig = _NOTHING,
) -> RankerTrain:
    """Assemble a model, its tables on the meta device.

    Args:
        schema: Tables, features and tasks.
        network: The multi-task network.
        towers: Widths of the towers' hidden layers.
        dropout: Dropout probability within the towers.
        autocast: Dtype of the head's matrix products; None: float32.
        joint: Combination of the tasks' losses, beyond w_k(t).
        ranks: All ranks, for sums over them within a step.
        around: Optional parts around the network.

    Raises:
        ConfigError: The parts do not fit the schema, or each other.
    """
    heads = task_heads(schema.tasks)
    towered = around.tower_heads(heads)
    keys = [feature.name for feature in schema.sparse_features]
    num_dense = len(schema.dense_features)
    interaction = around.interaction.build(schema) if around.interaction else None
    user = _build_user(schema, around, heads, joint.balancing)
    fields = around.user.fields(schema) if around.user else _fields(schema)
    if interaction is not None:
        fields = interaction.out_fields(num_dense)
    width = sum(fields)
    built = build_network(network, width, [tower.name for tower in towered], fields, ranks)
    head = Head(built, Towers(built.out_features, list(towers), [h.num_outputs for h in towered], dropout), autocast)
    inputs = InputArch(keys, mean_pooled(schema), num_dense, [feature.name for feature in schema.unpooled_features])
    meta = torch.device("meta")
    tables, sequences = build_tables(schema, meta), build_sequences(schema, meta)
    entire_space = around.entire_space.build(around.network_heads(heads)) if around.entire_space else None
    slot_bias = around.slot_bias.build(schema, towered) if around.slot_bias else None
    ranker = Ranker(tables, inputs, head, slot_bias, entire_space, interaction, sequences, user)
    if entire_space is not None:
        check_composed(joint.balancing)
    dense = dict(ranker.dense_parameters())
    balance = build_balancing(joint.balancing, schema.tasks, dense, built, width, len(keys), ranks)
    composed = around.entire_space.probabilities if around.entire_space else {}
    bounds = [bound.build(heads, composed) for bound in joint.bounds]
    return RankerTrain(ranker, UnionSpaceLoss(heads), balance, bounds)


def _build_user(
    schema: Schema, around: AroundConfig, heads: Sequence[TaskHead], balancing: LossBalancingConfig
) -> UserArch | None:
    unpooled = [feature.name for feature in schema.unpooled_features]
    if around.user is None and unpooled:
        raise ConfigError(f"features {unpooled} have pooling none, and there is no model.user that reads them")
    if around.user is not None:
        check_pooled(balancing)
    return around.user.build(schema, heads) if around.user else None


def _fields(schema: Schema) -> list[int]:
    dims = {table.name: table.dim for table in schema.tables}
    return [*(dims[feature.table] for feature in schema.sparse_features), *([1] * len(schema.dense_features))]


def declared_layout(
    schema: Schema,
    network: NetworkConfig,
    towers: Sequence[int],
    joint: JointLoss = WEIGHTED_SUM,
    around: AroundConfig = _NOTHING,
) -> Layout:
    """Return the owner of every number of a declared model's dense part, by the names of its parameters.

    Nothing is allocated.

    Args:
        schema: Tables, features and tasks.
        network: The multi-task network.
        towers: Widths of the towers' hidden layers.
        joint: Combination of the tasks' losses.
        around: Optional parts around the network.
    """
    with torch.device("meta"):
        model = build_ranker(schema, network, towers, 0.0, None, joint, around=around)
    dense = {name: parameter for name, parameter in model.named_parameters() if table_of(name) is None}
    head, inputs = model.ranker.head, model.ranker.inputs
    assert isinstance(head.towers, Towers)
    dims = {table.name: table.dim for table in schema.tables}
    labels = {f.name: column_labels(f, 1 if isinstance(f, DenseFeature) else dims[f.table]) for f in schema.features}
    numbers = tuple(label for feature in schema.dense_features for label in labels[feature.name])
    bags = tuple(label for feature in pooled_features(schema) for label in labels[feature.name])
    interaction = model.ranker.interaction
    read = interaction.outputs(bags, numbers) if interaction else (*bags, *numbers)
    of_user: list[ParameterPart] = []
    if around.user is not None and model.ranker.user is not None:
        of_user, read = around.user.parts(model.ranker.user, schema, labels, read)
    towered = around.tower_heads(task_heads(schema.tasks))
    names = [tower.name for tower in towered]
    fused = head.network.parts(read, names)
    parts = inputs.missing_values.parts([feature.name for feature in schema.dense_features], numbers)
    if isinstance(model.balance, UncertaintyWeights):
        parts += model.balance.parts(schema.task_names)
    of_towers = head.towers.parts(names, fused, [_outputs(tower) for tower in towered])
    bias = model.ranker.slot_bias
    of_slots = around.slot_bias.parts(bias, schema) if around.slot_bias and bias else []
    of_pairs = interaction.parts([feature.name for feature in schema.sparse_features], bags) if interaction else []
    return layout_of(dense, [*parts, *of_pairs, *fused.parts, *of_towers, *of_slots, *of_user])


def column_labels(feature: FeatureConfig, width: int) -> Labels:
    """Label a feature's columns of the input by its name and everything that its values depend on.

    Excluded are the table, which another of the same use may replace, the maximum length of a list, and a reason.
    """
    meaning = feature.model_dump(exclude={"name", "table", "max_length", "keep", "allow_outcome"}) | {
        "column": feature.source
    }
    of_values = ", ".join(f"{key} {value}" for key, value in sorted(meaning.items()))
    return tuple((f"input columns of feature {feature.name}", f"{index}: {of_values}") for index in range(width))


def _outputs(head: TaskHead) -> Labels:
    """Label a tower's outputs by their meaning, so that another kind of label gets new ones."""
    link = "log" if head.loss == "poisson" else head.link
    kind = f"{head.kind}, link {link}, log1p {head.log1p_target}"
    return tuple((f"output of task {head.name}", f"{index}: {kind}") for index in range(head.num_outputs))
