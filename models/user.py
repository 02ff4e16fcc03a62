"""The user's side of a model: a vector that is computed once and scored against many items.

Source: DUPN (`models.dupn`), whose rep = [rep_s ; u] it is.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from itertools import accumulate
from typing import TYPE_CHECKING, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from features.declaration import Declaration, Name
from features.errors import ConfigError
from features.schema import DenseFeature, FeatureConfig, Schema, SequenceFeature
from models.dupn import DUPN
from models.parameter_names import Labels, Part
from models.sizes import Width
from models.tasks import TaskHead

if TYPE_CHECKING:  # the configuration imports this file, and must not import TorchRec
    from models.inputs import LookedUp


@dataclass(frozen=True, slots=True, kw_only=True)
class Sides:
    """Whose the columns of the input are.

    Args:
        user: Of u.
        query: Of q.
        item: Of all else.
        ranking: Of r_i, the features of the item that the user weighs; among those of the item.
    """

    user: Sequence[int]
    query: Sequence[int]
    item: Sequence[int]
    ranking: Sequence[int] = ()


class UserArch(nn.Module):
    """rep = [rep_s ; u], and what is read from it without a network.

    What it computes of a row depends on the user's side alone, so a vector that is kept can be scored against any item.
    Learning to rank: the logit is weight(rep)^T r_i, with weight(rep) = W rep + b for each such task. Tasks of the user
    alone: their outputs are linear in rep.

    Args:
        dupn: Makes rep_s.
        item: The unpooled feature of the events' items.
        properties: Those of their properties.
        sides: Whose the columns of the input are.
        num_ranked: Tasks that learn to rank.
        num_alone: Outputs of all tasks of the user alone.
        places: Where the tasks' outputs stand in [the towers' ; learning to rank ; the user alone].
    """

    user: Tensor
    query: Tensor
    item: Tensor
    ranking: Tensor
    places: Tensor

    def __init__(
        self,
        dupn: DUPN,
        item: str,
        properties: Sequence[str],
        sides: Sides,
        num_ranked: int = 0,
        num_alone: int = 0,
        places: Sequence[int] = (),
    ) -> None:
        super().__init__()
        self.dupn, self.events = dupn, (item, *properties)
        for name in ("user", "query", "item", "ranking"):
            self.register_buffer(name, torch.tensor(getattr(sides, name), dtype=torch.long), persistent=False)
        self.register_buffer("places", torch.tensor(places, dtype=torch.long), persistent=False)
        self.width = dupn.lstm.width + len(sides.user)
        self.ranked = nn.Linear(self.width, num_ranked * len(sides.ranking)) if num_ranked else None
        self.alone = nn.Linear(self.width, num_alone) if num_alone else None

    def forward(self, x: Float[Tensor, "batch input"], sequences: "LookedUp") -> Float[Tensor, "batch width"]:
        """Compute the users' vectors.

        Args:
            x: Pooled embeddings and dense values, of which those of the user's side are read.
            sequences: What EmbeddingCollections have found.
        """
        found = {name: entries for looked_up in sequences for name, entries in looked_up.items()}
        kind = self.dupn.lstm.bias.dtype
        items, *properties = (found[name].values().to(kind) for name in self.events)
        user, query = (x.index_select(1, columns).to(kind) for columns in (self.user, self.query))
        lengths = found[self.events[0]].lengths()
        return torch.cat([self.dupn(items, torch.cat(properties, dim=1), lengths, query, user), user], dim=1)

    def join(
        self, vectors: Float[Tensor, "batch width"], x: Float[Tensor, "batch input"]
    ) -> Float[Tensor, "batch joined"]:
        """What the network reads: the users' vectors, and of the input what is the item's."""
        return torch.cat([vectors, x.index_select(1, self.item).to(vectors.dtype)], dim=1)

    def read_out(
        self,
        outputs: Float[Tensor, "batch tower_output"],
        vectors: Float[Tensor, "batch width"],
        x: Float[Tensor, "batch input"],
    ) -> Float[Tensor, "batch output"]:
        """Put the outputs of tasks that have no tower in their places; without such tasks nothing is changed."""
        parts = [outputs]
        if self.ranked is not None:
            weights = self.ranked(vectors).unflatten(1, (-1, len(self.ranking)))
            ranking = x.index_select(1, self.ranking).to(vectors.dtype).unsqueeze(1)
            parts.append((weights * ranking).sum(2).to(outputs.dtype))
        if self.alone is not None:
            parts.append(self.alone(vectors).to(outputs.dtype))
        return outputs if len(parts) == 1 else torch.cat(parts, dim=1).index_select(1, self.places)


class EventsConfig(Declaration):
    """A user's events, each an item with properties.

    Args:
        item: The unpooled sequence of items.
        properties: Unpooled sequences that are aligned with it; they reach the gates of the LSTM and the attention.
    """

    item: Name
    properties: list[Name] = Field(min_length=1)


class LearningToRankConfig(Declaration):
    """Tasks whose logit is weight(rep)^T r_i: how much a user weighs each feature of an item.

    Args:
        tasks: Binary tasks, of the label 1 where the source has y = 1 and 0 where it has -1, and of the weight n_i.
        features: Dense features that make up r_i.
    """

    tasks: list[Name] = Field(min_length=1)
    features: list[Name] = Field(min_length=1)


class UserConfig(Declaration):
    """The user's side of the model, computed once for a user: rep = [rep_s ; u] of DUPN.

    Features that are named here are the user's side, and the network reads them through rep alone; all others are the
    item's side.

    Args:
        kind: `dupn`.
        events: What the user has done.
        profile: Features of u, what is known of the user; u is read by the attention and by the network.
        query: Features of q, what is asked for; q is read by the attention alone.
        hidden: Width of the LSTM, and of rep_s.
        attention: Widths of the hidden layers of the attention.
        learning_to_rank: Tasks that weigh features of the item; absent: none.
        alone: Tasks of the user alone, whose outputs are linear in rep.
    """

    kind: Literal["dupn"]
    events: EventsConfig
    profile: list[Name] = []
    query: list[Name] = []
    hidden: Width = 128
    attention: list[Width] = Field(default=[128, 64], min_length=1)
    learning_to_rank: LearningToRankConfig | None = None
    alone: list[Name] = []

    @property
    def without_tower(self) -> list[str]:
        """Tasks that are read from the user's vector: those that learn to rank, then those of the user alone."""
        return [*(self.learning_to_rank.tasks if self.learning_to_rank else []), *self.alone]

    def build(self, schema: Schema, heads: Sequence[TaskHead]) -> UserArch:
        """Unpack.

        Args:
            schema: Tables and features.
            heads: The tasks, in order.

        Raises:
            ConfigError: The parts do not fit the schema, or each other.
        """
        self._check_features(schema)
        self._check_tasks(heads)
        dims = {table.name: table.dim for table in schema.tables}
        widths = {feature.name: _width(feature, dims) for feature in schema.features}
        sides = self.sides(schema)
        dupn = DUPN(
            widths[self.events.item],
            sum(widths[name] for name in self.events.properties),
            len(sides.user),
            len(sides.query),
            self.hidden,
            self.attention,
        )
        alone = sum(head.num_outputs for head in heads if head.name in self.alone)
        num_ranked = len(self.learning_to_rank.tasks) if self.learning_to_rank else 0
        return UserArch(dupn, self.events.item, self.events.properties, sides, num_ranked, alone, self._places(heads))

    def sides(self, schema: Schema) -> Sides:
        """Whose the columns of the input are, the input being all that is not unpooled in the schema's order."""
        columns = _columns_of(schema)
        named = {*self.profile, *self.query}
        ranking = self.learning_to_rank.features if self.learning_to_rank else []
        return Sides(
            user=[column for name in self.profile for column in columns[name]],
            query=[column for name in self.query for column in columns[name]],
            item=[column for name, found in columns.items() if name not in named for column in found],
            ranking=[column for name in ranking for column in columns[name]],
        )

    def fields(self, schema: Schema) -> list[int]:
        """Widths of the features that the network reads: rep_s as one, those of u, those of the item."""
        columns = _columns_of(schema)
        named = {*self.profile, *self.query}
        rest = [len(found) for name, found in columns.items() if name not in named]
        return [self.hidden, *(len(columns[name]) for name in self.profile), *rest]

    def parts(
        self, built: UserArch, schema: Schema, labels: Mapping[str, Labels], inputs: Labels
    ) -> tuple[list[Part], Labels]:
        """Name the parts of what `build` gave, and label what the network reads; see `models.parameter_names`.

        Args:
            built: What `build` gave.
            schema: Tables and features.
            labels: Of every feature the labels of its columns.
            inputs: Labels of the input.
        """
        sides = self.sides(schema)
        user, query, item = (tuple(inputs[at] for at in of) for of in (sides.user, sides.query, sides.item))
        properties = tuple(label for name in self.events.properties for label in labels[name])
        found, states = built.dupn.parts(labels[self.events.item], properties, query, user)
        vector = (*states, *user)
        if built.ranked is not None and self.learning_to_rank is not None:
            weight, bias = (built.ranked.get_parameter(name) for name in ("weight", "bias"))
            weighed = [label for name in self.learning_to_rank.features for label in labels[name]]
            for index, task in enumerate(self.learning_to_rank.tasks):
                first, owner = index * len(weighed), f"learning to rank of task {task}"
                rows = tuple((f"weight of {label[0]}", label[1]) for label in weighed)
                found.append(Part(weight, first, owner, "weight", (rows, vector)))
                found.append(Part(bias, first, owner, "bias", (rows,)))
        return found, (*vector, *item)

    def _places(self, heads: Sequence[TaskHead]) -> list[int]:
        """Where the tasks' outputs stand in [the towers' ; learning to rank ; the user alone]."""
        by_name = {head.name: head.num_outputs for head in heads}
        order = [name for name in by_name if name not in self.without_tower] + self.without_tower
        starts = dict(zip(order, accumulate((by_name[name] for name in order), initial=0), strict=False))
        return [starts[name] + output for name, count in by_name.items() for output in range(count)]

    def _check_features(self, schema: Schema) -> None:
        unpooled = {feature.name: feature for feature in schema.unpooled_features}
        events = [self.events.item, *self.events.properties]
        for name in events:
            if name not in unpooled:
                raise ConfigError(
                    f"model.user.events: {name!r} is no sequence with pooling none; those are {[*unpooled]}"
                )
        if unpooled[self.events.item].aligned_with is not None:
            raise ConfigError(f"model.user.events.item: {self.events.item!r} is aligned with another: name that one")
        for name in self.events.properties:
            if unpooled[name].aligned_with != self.events.item:
                raise ConfigError(
                    f"model.user.events.properties: {name!r} is not aligned_with {self.events.item!r}: declare it so"
                )
        unread = [name for name in unpooled if name not in events]
        if unread:
            raise ConfigError(f"features {unread} have pooling none, and model.user.events does not read them")
        columns = _columns_of(schema)
        for section, names in (("profile", self.profile), ("query", self.query)):
            for name in names:
                if name not in columns:
                    raise ConfigError(f"model.user.{section}: {_unknown('feature', name, columns)}")
        self._check_sides(schema)

    def _check_sides(self, schema: Schema) -> None:
        mine = [*self.events.properties, *self.profile, *self.query]
        repeated = sorted({name for name in mine if mine.count(name) > 1})
        if repeated:
            raise ConfigError(f"model.user: {repeated[0]!r} is named twice: declare a second feature of its column")
        numbers = [feature.name for feature in schema.features if isinstance(feature, DenseFeature)]
        ranking = self.learning_to_rank.features if self.learning_to_rank else []
        for name in ranking:
            if name not in numbers:
                raise ConfigError(f"model.user.learning_to_rank.features: {_unknown('dense feature', name, numbers)}")
            if name in mine:
                raise ConfigError(
                    f"model.user.learning_to_rank.features: {name!r} is of the user's side too: then no vector of a "
                    "user could be scored against many items"
                )

    def _check_tasks(self, heads: Sequence[TaskHead]) -> None:
        kinds = {head.name: head.kind for head in heads}
        for name in self.without_tower:
            if name not in kinds:
                raise ConfigError(f"model.user: {_unknown('task', name, kinds)}")
            if self.without_tower.count(name) > 1:
                raise ConfigError(f"model.user: task {name!r} is named twice in learning_to_rank and alone")
        for name in self.learning_to_rank.tasks if self.learning_to_rank else []:
            if kinds[name] != "binary":
                raise ConfigError(f"model.user.learning_to_rank: task {name!r} is {kinds[name]}, it has no logit")
        if set(self.without_tower) == set(kinds):
            raise ConfigError("model.user: no task is left that the network is for: leave at least one out")


def _unknown(what: str, name: str, known: Mapping[str, object] | Sequence[str]) -> str:
    near = get_close_matches(name, known, n=1)
    return f"there is no {what} {name!r}: " + (f"did you mean {near[0]!r}?" if near else f"there are {[*known]}")


def _width(feature: FeatureConfig, dims: Mapping[str, int]) -> int:
    return 1 if isinstance(feature, DenseFeature) else dims[feature.table]


def _columns_of(schema: Schema) -> dict[str, range]:
    """The columns of every feature that is part of the input, in the order of the input."""
    dims = {table.name: table.dim for table in schema.tables}
    order = [*pooled_features(schema), *schema.dense_features]
    ends = [*accumulate((_width(feature, dims) for feature in order), initial=0)]
    return {feature.name: range(ends[index], ends[index + 1]) for index, feature in enumerate(order)}


def pooled_features(schema: Schema) -> list[FeatureConfig]:
    """Sparse features that have a pooled embedding, in the schema's order."""
    return [f for f in schema.sparse_features if not (isinstance(f, SequenceFeature) and f.is_unpooled)]
