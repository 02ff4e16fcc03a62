"""Declared schema: the columns of a log line that become ids, sequences, dense values, labels and sample spaces."""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from features.declaration import Declaration, Name
from features.expressions import parse_expression
from features.tables import TableConfig, VocabularyConfig
from features.tasks import TaskConfig


class _Column(Declaration):
    name: Name
    column: str | None = None
    allow_outcome: str | None = Field(default=None, min_length=1)

    @property
    def source(self) -> str:
        """Name of the log's column that the feature reads; the feature's own name unless declared otherwise."""
        return self.column or self.name


class IdFeature(_Column):
    """One id per row, hashed into a table; a null id is an empty bag.

    Args:
        kind: `id`.
        name: The feature's name, the key in the batch's KeyedJaggedTensor.
        column: The log's column (integer, string or binary); absent: the name.
        allow_outcome: Reason for which a task's label may read the column too; see `outcome_columns`.
        table: The table of its embeddings.
    """

    kind: Literal["id"]
    table: Name


class SequenceFeature(_Column):
    """A list of ids per row, hashed into a table and pooled, or left unpooled as events in order.

    A null inside a list is skipped in a pooled list, and an error in an unpooled one.

    Args:
        kind: `sequence`.
        name: The feature's name.
        column: The log's list column; absent: the name. A null list is an error, an empty one is an empty bag.
        allow_outcome: Reason for which a task's label may read the column too; see `outcome_columns`.
        table: The table of its embeddings.
        max_length: Longer lists are cut to this many ids.
        keep: The end of a longer list that stays.
        pooling: Reduction of the looked-up rows to one vector; an empty bag gives zeros. `none`: every entry keeps its
            vector, for `model.user`.
        aligned_with: The unpooled feature whose entries have these ids as properties: the two lists of a row have one
            length, and both are cut alike.
    """

    kind: Literal["sequence"]
    table: Name
    max_length: int = Field(ge=1, le=100_000)
    keep: Literal["first", "last"] = "last"
    pooling: Literal["sum", "mean", "none"] = "mean"
    aligned_with: Name | None = None

    @property
    def is_unpooled(self) -> bool:
        """True if every entry keeps a vector of its own."""
        return self.pooling == "none"


class DenseFeature(_Column):
    """A number per row; null and NaN map to a learned value (Meituan's missing value layer).

    Args:
        kind: `dense`.
        name: The feature's name.
        column: The log's numeric or boolean column; absent: the name.
        allow_outcome: Reason for which a task's label may read the column too; see `outcome_columns`.
        log1p: Apply sign(x) * log(1 + abs(x)) first.
        standardise: Subtract the mean and divide by the deviation of the statistics, after log1p.
        clip: Bound the result to [-clip, clip]; absent: unbounded.
    """

    kind: Literal["dense"]
    log1p: bool = False
    standardise: bool = True
    clip: float | None = Field(default=None, gt=0)


class BucketFeature(_Column):
    """A number per row as one of equal-frequency buckets, looked up in a table; missing has a bucket of its own.

    Args:
        kind: `bucket`.
        name: The feature's name.
        column: The log's numeric or boolean column; absent: the name.
        allow_outcome: Reason for which a task's label may read the column too; see `outcome_columns`.
        table: A table with at least `num_buckets` + 1 rows: row 0 is for null and NaN.
        num_buckets: Number of buckets; fewer are used where values repeat.
    """

    kind: Literal["bucket"]
    table: Name
    num_buckets: int = Field(ge=2, le=1024)


FeatureConfig = Annotated[IdFeature | SequenceFeature | DenseFeature | BucketFeature, Field(discriminator="kind")]
SparseFeature = IdFeature | SequenceFeature | BucketFeature


class Schema(Declaration):
    """Declared meaning of a log line.

    Args:
        tables: Embedding tables.
        features: Inputs, in the order of the batch.
        tasks: Objectives, in the order of every `(B, K)` tensor.
        slot: The column of the item's place on the page (an integer); absent: none.
        hash_salt: Salt of all id hashes, recorded in every checkpoint; another salt is another model.
    """

    tables: list[TableConfig]
    features: list[FeatureConfig] = Field(min_length=1)
    tasks: list[TaskConfig] = Field(min_length=1)
    slot: str | None = None
    hash_salt: str = "counterpoise"

    @model_validator(mode="after")
    def _check_references(self) -> Self:
        _refuse_repeats("tables", (table.name for table in self.tables))
        _refuse_repeats("features", (feature.name for feature in self.features))
        _refuse_repeats("tasks", (task.name for task in self.tasks))
        tables = {table.name: table for table in self.tables}
        for feature in self.sparse_features:
            if feature.table not in tables:
                raise ValueError(
                    f"feature {feature.name!r} reads table {feature.table!r}, declared are {sorted(tables)}: declare it"
                )
            rows = tables[feature.table].num_rows
            if isinstance(feature, BucketFeature) and rows < feature.num_buckets + 1:
                raise ValueError(
                    f"feature {feature.name!r} has {feature.num_buckets} buckets and one for missing values, its table "
                    f"{feature.table!r} has {rows} rows: declare at least {feature.num_buckets + 1}"
                )
            if isinstance(feature, BucketFeature) and feature.table in self.vocabularies:
                raise ValueError(
                    f"feature {feature.name!r} is bucketised, its table {feature.table!r} gives rows to ids: declare a "
                    "table of its own"
                )
        unused = set(tables) - {feature.table for feature in self.sparse_features}
        if unused:
            raise ValueError(f"tables {sorted(unused)} are read by no feature: remove them")
        if not self.sparse_features:
            raise ValueError("no feature is looked up in a table: declare an id, sequence or bucket feature")
        self._refuse_leaks()
        self._check_alignment()
        if all(task.matures_after for task in self.tasks):
            raise ValueError("every task has matures_after: at least one has to train on a day's own rows")
        if all(task.role == "auxiliary" for task in self.tasks):
            raise ValueError("every task is auxiliary: at least one needs role: main")
        return self

    def _refuse_leaks(self) -> None:
        outcomes = {text.strip() for task in self.tasks for text in (task.label, task.truth) if text}
        for feature in self.features:
            if feature.source in outcomes:
                raise ValueError(
                    f"feature {feature.name!r} reads {feature.source!r}, which is a task's label or truth: a model "
                    "that sees it learns nothing else"
                )

    def _check_alignment(self) -> None:
        unpooled = {feature.name: feature for feature in self.unpooled_features}
        for feature in self.features:
            if not isinstance(feature, SequenceFeature) or feature.aligned_with is None:
                continue
            of = unpooled.get(feature.aligned_with)
            if not feature.is_unpooled or of is None or of.aligned_with is not None:
                raise ValueError(
                    f"feature {feature.name!r} is aligned with {feature.aligned_with!r}: both must be sequences with "
                    "pooling none, and the latter not aligned itself"
                )
            if (feature.max_length, feature.keep) != (of.max_length, of.keep):
                raise ValueError(
                    f"feature {feature.name!r} is aligned with {of.name!r}, of which the {of.keep} {of.max_length} "
                    f"entries are kept: keep the same of both, not the {feature.keep} {feature.max_length}"
                )

    @property
    def sparse_features(self) -> list[SparseFeature]:
        """Features that are looked up in a table, in declared order: the keys of the KeyedJaggedTensor."""
        return [feature for feature in self.features if not isinstance(feature, DenseFeature)]

    @property
    def unpooled_features(self) -> list[SequenceFeature]:
        """Sequences whose entries keep a vector each, in declared order."""
        return [feature for feature in self.features if isinstance(feature, SequenceFeature) and feature.is_unpooled]

    @property
    def unpooled_tables(self) -> set[str]:
        """Tables that an unpooled sequence reads, whatever else reads them: a table stands in one collection only."""
        return {feature.table for feature in self.unpooled_features}

    @property
    def dense_features(self) -> list[DenseFeature]:
        """Features that are columns of the dense tensor, in declared order."""
        return [feature for feature in self.features if isinstance(feature, DenseFeature)]

    @property
    def task_names(self) -> list[str]:
        """Names of the tasks, in the order of every `(B, K)` tensor."""
        return [task.name for task in self.tasks]

    @property
    def vocabularies(self) -> dict[str, VocabularyConfig]:
        """Tables that give rows to ids, by name, in declared order."""
        mappings = {table.name: table.id_mapping for table in self.tables}
        return {name: mapping for name, mapping in mappings.items() if isinstance(mapping, VocabularyConfig)}

    def columns(self, *, with_truth: bool = False) -> list[str]:
        """Return the log's columns that training reads (an evaluation also reads the truth), each once."""
        names = {feature.source: None for feature in self.features}
        for task in self.tasks:
            texts = task.expressions(with_truth=with_truth)
            names |= {name: None for text in texts for name in parse_expression(text).columns}
        if self.slot:
            names[self.slot] = None
        return list(names)

    def outcome_columns(self) -> dict[str, tuple[str, str]]:
        """Return the columns that a feature and the label of a task read, without a reason.

        Such a column normally is an outcome, such as `play_ms` of the label `play_ms >= 7000`: it is not known when the
        model has to score, and a model that sees it learns nothing else. A duration that a label divides by is known.

        Returns:
            Names of the feature and the task, by column.
        """
        read = {name: task.name for task in self.tasks for name in task.label_expression.columns}
        return {
            feature.source: (feature.name, read[feature.source])
            for feature in self.features
            if feature.source in read and feature.allow_outcome is None
        }

    def fingerprint(self) -> str:
        """Return twelve hexadecimal digits that change with the meaning of a checkpoint's tensors.

        Left out are: keys at their defaults, so that a new key changes no fingerprint; keys that only reports,
        evaluations and checks read; a vocabulary's number of rows and its rules of admission.
        """
        meaning = self.model_dump(mode="json", exclude_defaults=True)
        for feature in meaning["features"]:
            feature.pop("allow_outcome", None)
        for task in meaning["tasks"]:
            for key in ("objective", "role", "truth"):
                task.pop(key, None)
        for table in meaning["tables"]:
            if table["name"] in self.vocabularies:
                del table["num_rows"]
                table["id_mapping"] = {key: table["id_mapping"][key] for key in ("kind", "tail_rows")}
        return hashlib.blake2b(json.dumps(meaning, sort_keys=True).encode(), digest_size=6).hexdigest()


def _refuse_repeats(what: str, names: Iterable[str]) -> None:
    repeated = [name for name, count in Counter(names).items() if count > 1]
    if repeated:
        raise ValueError(f"{what} named {sorted(repeated)} are declared twice: rename one")
