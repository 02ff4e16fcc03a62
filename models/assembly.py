"""The one place where a declared model is assembled from its bricks."""

from collections.abc import Sequence

import torch

from features.schema import Schema, TaskConfig
from models.inputs import InputArch
from models.loss import UnionSpaceLoss
from models.network import NetworkConfig, build_network
from models.ranker import Head, Ranker, RankerTrain
from models.tables import build_tables, mean_pooled
from models.tasks import TaskHead
from models.towers import Towers


def task_heads(tasks: Sequence[TaskConfig]) -> list[TaskHead]:
    """The heads of declared tasks, in order."""
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
    """The rate that the loss makes up for; 1 where nothing was thinned out, or weights do it."""
    sampling = task.sampling
    return sampling.rate if sampling and sampling.rate and sampling.correction == "log_odds" else 1.0


def build_ranker(
    schema: Schema,
    network: NetworkConfig,
    towers: Sequence[int],
    dropout: float,
    autocast: torch.dtype | None,
) -> RankerTrain:
    """Assemble a model, its tables on the meta device.

    Args:
        schema: Tables, features and tasks.
        network: The multi-task network.
        towers: Widths of the towers' hidden layers.
        dropout: Within the towers.
        autocast: The type of the head's matrix products; None: float32.
    """
    heads = task_heads(schema.tasks)
    keys = [feature.name for feature in schema.sparse_features]
    dims = {table.name: table.dim for table in schema.tables}
    num_dense = len(schema.dense_features)
    width = sum(dims[feature.table] for feature in schema.sparse_features) + num_dense
    built = build_network(network, width, schema.task_names)
    head = Head(built, Towers(built.out_features, list(towers), [h.num_outputs for h in heads], dropout), autocast)
    inputs = InputArch(keys, mean_pooled(schema), num_dense)
    tables = build_tables(schema, torch.device("meta"))
    return RankerTrain(Ranker(tables, inputs, head), UnionSpaceLoss(heads))
