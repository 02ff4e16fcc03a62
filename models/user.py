"""User tower: a vector that is computed once per user and scored against many items.

Source: DUPN (`models.dupn`), rep = [rep_s ; u].
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
from models.parameter_names import Labels, ParameterPart
from models.sizes import Width
from models.tasks import TaskHead

if TYPE_CHECKING:  # the configuration imports this file, and must not import TorchRec
    from models.inputs import LookedUp


@dataclass(frozen=True, slots=True, kw_only=True)
class Sides:
    """Columns of the input by owner.

    Args:
        user: Columns of u.
        query: Columns of q.
        item: All other columns.
        ranking: Columns of r_i, the item's features that the user weighs; a part of `item`.
    """

    user: Sequence[int]
    query: Sequence[int]
    item: Sequence[int]
    ranking: Sequence[int] = ()


class UserArch(nn.Module):
    """rep = [rep_s ; u], and the outputs that are read from it without a network.

    A row's vector depends on the user's side alone, so a stored vector can be scored against any item. Learning to
    rank: the logit is weight(rep)^T r_i, with weight(rep) = W rep + b for each such task. Tasks of the user alone:
    their outputs are linear in rep.

    Args:
        dupn: Module that computes rep_s.
        item: Name of the unpooled feature of the events' items.
        properties: Names of the unpooled features of the events' properties.
        sides: Columns of the input by owner.
        num_ranked: Number of tasks that learn to rank.
        num_alone: Number of outputs of all tasks of the user alone.
        places: Indices of the tasks' outputs in [the towers' ; learning to rank ; the user alone].
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
            x: Pooled embeddings and dense values; only the user's side is read.
            sequences: Outputs of the EmbeddingCollections.
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
        """Return the network's input: the users' vectors, and the item's columns of the input."""
        return torch.cat([vectors, x.index_select(1, self.item).to(vectors.dtype)], dim=1)

    def read_out(
        self,
        outputs: Float[Tensor, "batch tower_output"],
        vectors: Float[Tensor, "batch width"],
        x: Float[Tensor, "batch input"],
    ) -> Float[Tensor, "batch output"]:
        """Insert the outputs of tasks without a tower; without such tasks nothing changes."""
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
        item: Name of the unpooled sequence of items.
        properties: Unpooled sequences aligned with it; the gates of the LSTM and the attention read them.
    """

    item: Name
    properties: list[Name] = Field(min_length=1)


class LearningToRankConfig(Declaration):
    """Tasks with the logit weight(rep)^T r_i: a user's weights of each feature of an item.

    Args:
        tasks: Binary tasks; label 1 is the source's y = 1, label 0 its -1, and the row weight its n_i.
        features: Dense features that make up r_i.
    """

    tasks: list[Name] = Field(min_length=1)
    features: list[Name] = Field(min_length=1)


class UserConfig(Declaration):
    """The user tower, computed once per user: rep = [rep_s ; u] of DUPN.

    Features named here are the user's side, and the network reads them through rep alone; all others are the item's
    side.

    Args:
        kind: `dupn`.
        events: The user's actions.
        profile: Features of u, the user's profile; the attention and the network read u.
        query: Features of q, the query; the attention alone reads q.
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
        """Names of tasks read from the user's vector: those that learn to rank, then those of the user alone."""
        return [*(self.learning_to_rank.tasks if self.learning_to_rank else []), *self.alone]

    def build(self, schema: Schema, heads: Sequence[TaskHead]) -> UserArch:
        """Build the module for a schema and tasks.

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
            next(f.max_length for f in schema.unpooled_features if f.name == self.events.item),
            self.hidden,
            self.attention,
        )
        alone = sum(head.num_outputs for head in heads if head.name in self.alone)
        num_ranked = len(self.learning_to_rank.tasks) if self.learning_to_rank else 0
        return UserArch(dupn, self.events.item, self.events.properties, sides, num_ranked, alone, self._places(heads))

    def sides(self, schema: Schema) -> Sides:
        """Return the columns of the input by owner; the input has all pooled and dense features in schema order."""
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
        """Return the widths of the network's fields: rep_s as one, the features of u, the features of the item."""
        columns = _columns_of(schema)
        named = {*self.profile, *self.query}
        rest = [len(found) for name, found in columns.items() if name not in named]
        return [self.hidden, *(len(columns[name]) for name in self.profile), *rest]

    def parts(
        self, built: UserArch, schema: Schema, labels: Mapping[str, Labels], inputs: Labels
    ) -> tuple[list[ParameterPart], Labels]:
        """Name the parts of a built user tower, and label the network's input; see `models.parameter_names`.

        Args:
            built: The module from `build`.
            schema: Tables and features.
            labels: Labels of every feature's columns.
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
                found.append(ParameterPart(weight, first, owner, "weight", (rows, vector)))
                found.append(ParameterPart(bias, first, owner, "bias", (rows,)))
        return found, (*vector, *item)

    def _places(self, heads: Sequence[TaskHead]) -> list[int]:
        """Return the indices of the tasks' outputs in [the towers' ; learning to rank ; the user alone]."""
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
                    f"model.user.learning_to_rank.features: {name!r} is of the user's side too, so a user's "
                    "vector could not be scored against many items"
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
            raise ConfigError("model.user: no task is left for the network: leave at least one out")


def _unknown(what: str, name: str, known: Mapping[str, object] | Sequence[str]) -> str:
    near = get_close_matches(name, known, n=1)
    return f"there is no {what} {name!r}: " + (f"did you mean {near[0]!r}?" if near else f"there are {[*known]}")


def _width(feature: FeatureConfig, dims: Mapping[str, int]) -> int:
    return 1 if isinstance(feature, DenseFeature) else dims[feature.table]


def _columns_of(schema: Schema) -> dict[str, range]:
    """Return the columns of every feature of the input, in the order of the input."""
    dims = {table.name: table.dim for table in schema.tables}
    order = [*pooled_features(schema), *schema.dense_features]
    ends = [*accumulate((_width(feature, dims) for feature in order), initial=0)]
    return {feature.name: range(ends[index], ends[index + 1]) for index, feature in enumerate(order)}


def pooled_features(schema: Schema) -> list[FeatureConfig]:
    """Return the sparse features with a pooled embedding, in the schema's order."""
    return [f for f in schema.sparse_features if not (isinstance(f, SequenceFeature) and f.is_unpooled)]
