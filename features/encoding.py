"""Encoding of a unit's Arrow columns to the fixed columns of a batch: vectorised, without torch."""

from collections.abc import Mapping

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from features.columns import LARGEST, contiguous, dense_values, id_values
from features.encoded_rows import EncodedRows
from features.errors import ConfigError, DataError
from features.events import check_events
from features.expressions import as_boolean, parse_expression
from features.hashing import hash_ids, map_hashes, salt_of, table_rows
from features.ids import is_id, is_sequence
from features.measured_columns import MeasuredColumns, encode_slices, group_hashes
from features.schema import BucketFeature, DenseFeature, IdFeature, Schema, SparseFeature
from features.statistics import Statistics
from features.tables import TableConfig
from features.tasks import TaskConfig
from features.vocabulary import Vocabulary

_RAREST = 1e-9  # lower bound of the probability with which a row was kept


class Encoder:
    """Encoder of units by a schema and its statistics.

    Args:
        schema: The declared schema.
        statistics: Statistics of the same schema; needed where dense features are standardised or bucketised.
        with_truth: True to read the tasks' truth columns too.
        measuring: True for metrics, which always weigh rows by the sampling of the log, whatever the loss does.
        vocabularies: Vocabulary by table, for every table that declares one; only the lookup index is kept.
        measured: Further columns that an evaluation asks for; None: none.

    Raises:
        ConfigError: The statistics lack a feature of the schema, or a table's vocabulary is missing.
    """

    def __init__(
        self,
        schema: Schema,
        statistics: Statistics | None,
        *,
        with_truth: bool = False,
        measuring: bool = False,
        vocabularies: Mapping[str, Vocabulary] | None = None,
        measured: MeasuredColumns | None = None,
    ) -> None:
        check_statistics(schema, statistics)
        self.schema = schema
        self.statistics = statistics
        self.with_truth = with_truth and any(task.truth for task in schema.tasks)
        self._tables = {table.name: table for table in schema.tables}
        self._salt = salt_of(schema.hash_salt)
        self._sampling = [task.sampling if _weighs(task, measuring=measuring) else None for task in schema.tasks]
        self._has_weights = any(self._sampling) or any(task.weight for task in schema.tasks)
        self._measured = measured or MeasuredColumns()
        users = self._measured.users
        self._users = next((feature for feature in schema.sparse_features if feature.name == users), None)
        given = vocabularies or {}
        self._indexes = {name: _fitting(self._tables[name], given.get(name)).index() for name in schema.vocabularies}

    @property
    def columns(self) -> list[str]:
        """Names of the log's columns that `encode` reads."""
        own = self.schema.columns(with_truth=self.with_truth)
        return list(dict.fromkeys([*own, *self._measured.columns]))

    def check_columns(self, log: pa.Schema) -> None:
        """Check a file's schema against the declaration.

        Raises:
            DataError: A column is missing or of a wrong type.
        """
        check_columns(self.schema, log, self.columns)

    def empty(self) -> EncodedRows:
        """Return zero rows, with the columns and types of `encode`."""
        num_sparse, num_tasks = len(self.schema.sparse_features), len(self.schema.tasks)
        labels = np.empty((0, num_tasks), np.float32)
        return EncodedRows(
            ids=[np.empty(0, np.int32)] * num_sparse,
            offsets=[np.zeros(1, np.int32)] * num_sparse,
            dense=np.empty((0, len(self.schema.dense_features)), np.float32),
            labels=labels,
            weights=labels if self._has_weights else None,
            slots=np.empty(0, np.int32),
            rows=np.empty(0, np.int32),
            truth=labels if self.with_truth else None,
            users=np.empty(0, np.int64) if self._users else None,
            groups=np.empty(0, np.int64) if self._measured.groups else None,
            slices=np.empty((0, len(self._measured.slices)), np.int64) if self._measured.slices else None,
            slice_texts=np.empty(0, np.uint8) if self._measured.slices else None,
        )

    def encode(self, columns: Mapping[str, pa.Array | pa.ChunkedArray], first_row: int = 0) -> EncodedRows:
        """Encode rows.

        Args:
            columns: Arrays of equal length N by column name.
            first_row: The row number of the first row within its unit.

        Returns:
            N encoded rows, in the order given.

        Raises:
            DataError: The declaration does not allow a value; names column or task, and row, counted from the first of
                `columns`.
        """
        columns = contiguous(columns)
        num_rows = len(next(iter(columns.values())))
        check_events(self.schema, columns)
        sparse = [self._encode_sparse(feature, columns[feature.source]) for feature in self.schema.sparse_features]
        dense = np.empty((num_rows, len(self.schema.dense_features)), np.float32)
        for index, feature in enumerate(self.schema.dense_features):
            dense[:, index] = self._encode_dense(feature, columns[feature.source])
        labels = self._encode_labels(columns, num_rows)
        measured = self._measured
        slices, texts = encode_slices(measured.slices, columns) if measured.slices else (None, None)
        return EncodedRows(
            ids=[ids for ids, _ in sparse],
            offsets=[offsets for _, offsets in sparse],
            dense=dense,
            labels=labels,
            weights=self._encode_weights(columns, labels),
            slots=self._encode_slots(columns, num_rows),
            rows=np.arange(first_row, first_row + num_rows, dtype=np.int32),
            truth=self._encode_truth(columns, num_rows) if self.with_truth else None,
            users=user_hashes(self._users, columns[self._users.source]) if self._users else None,
            groups=group_hashes(columns[measured.groups], measured.groups) if measured.groups else None,
            slices=slices,
            slice_texts=texts,
        )

    def _encode_sparse(self, feature: SparseFeature, column: pa.Array) -> tuple[np.ndarray, np.ndarray]:
        if isinstance(feature, BucketFeature):
            assert self.statistics is not None
            values = dense_values(feature, column)
            buckets = np.searchsorted(self.statistics.numbers[feature.name].boundaries, values, side="right") + 1
            buckets[np.isnan(values)] = 0
            return buckets.astype(np.int32), np.arange(len(column) + 1, dtype=np.int32)
        ids, offsets = id_values(feature, column)
        index = self._indexes.get(feature.table)
        if index is not None:
            return map_hashes(ids, self._salt, index.lookup), offsets
        return table_rows(ids, self._salt, self._tables[feature.table].num_rows), offsets

    def _encode_dense(self, feature: DenseFeature, column: pa.Array) -> np.ndarray:
        values = dense_values(feature, column)
        if feature.standardise:
            assert self.statistics is not None
            numbers = self.statistics.numbers[feature.name]
            values = (values - numbers.mean) / (numbers.deviation or 1.0)
        if feature.clip is not None:
            values = np.clip(values, -feature.clip, feature.clip)
        return values

    def _encode_slots(self, columns: Mapping[str, pa.Array], num_rows: int) -> np.ndarray:
        if self.schema.slot is None:
            return np.full(num_rows, -1, np.int32)
        values = pc.cast(columns[self.schema.slot], pa.float64(), safe=False).to_numpy(zero_copy_only=False)
        wrong = np.abs(values) >= 2**31
        if wrong.any():
            row = int(wrong.argmax())
            raise DataError(
                f"column {self.schema.slot!r} has {values[row]:.0f} at row {row}: a slot is a place on the page, "
                "an integer within 32 bits, or null"
            )
        return np.where(np.isnan(values), -1, values).astype(np.int32)

    def _encode_labels(self, columns: Mapping[str, pa.Array], num_rows: int) -> np.ndarray:
        labels = np.empty((num_rows, len(self.schema.tasks)), np.float32)
        for index, task in enumerate(self.schema.tasks):
            label = task.label_expression.evaluate(columns)
            values = pc.cast(label, pa.float64(), safe=False).to_numpy(zero_copy_only=False)
            in_space = label.is_valid().to_numpy(zero_copy_only=False)
            if task.space is not None:
                in_space &= evaluate_space(task.space, columns)
            check_labels(task, values, in_space)
            labels[:, index] = np.where(in_space, values, np.nan)
        return labels

    def _encode_weights(self, columns: Mapping[str, pa.Array], labels: np.ndarray) -> np.ndarray | None:
        if not self._has_weights:
            return None
        weights = np.ones(labels.shape, np.float32)
        for index, (task, sampling) in enumerate(zip(self.schema.tasks, self._sampling, strict=True)):
            in_space = ~np.isnan(labels[:, index])
            if task.weight is not None:
                values = _numbers(task.weight, columns)
                _check_numbers(f"task {task.name!r}: weight {task.weight!r}", values, in_space, 0, LARGEST)
                weights[:, index] = np.where(in_space, values, 1.0)
            if sampling is not None and sampling.column is not None:
                kept = _numbers(sampling.column, columns)
                what = f"task {task.name!r}: sampling.column {sampling.column!r}"
                _check_numbers(what, kept, in_space, _RAREST, 1)
                weights[:, index] *= np.where(in_space, 1 / np.where(in_space, kept, 1.0), 1.0)
            elif sampling is not None and sampling.rate is not None:
                weights[labels[:, index] == 0, index] /= sampling.rate
        return weights

    def _encode_truth(self, columns: Mapping[str, pa.Array], num_rows: int) -> np.ndarray:
        truth = np.full((num_rows, len(self.schema.tasks)), np.nan, np.float32)
        for index, task in enumerate(self.schema.tasks):
            if task.truth is not None:
                truth[:, index] = _numbers(task.truth, columns)
        return truth


def user_hashes(feature: SparseFeature, column: pa.Array) -> np.ndarray:
    """Return a hash of each row's user, int64 of shape (N,), that depends on no table; 0 for rows without a user."""
    assert isinstance(feature, IdFeature)
    ids, offsets = id_values(feature, column)
    users = np.zeros(len(column), np.int64)
    users[np.diff(offsets) > 0] = hash_ids(ids, salt_of("users")).view(np.int64)
    return users


def _weighs(task: TaskConfig, *, measuring: bool) -> bool:
    """Return True if the task weighs rows by the sampling of the log."""
    return task.sampling is not None and (measuring or task.sampling.correction == "weight")


def _check_numbers(what: str, values: np.ndarray, in_space: np.ndarray, least: float, most: float) -> None:
    wrong = in_space & ~((values >= least) & (values <= most))
    if wrong.any():
        row = int(wrong.argmax())
        expected = "finite >= 0" if most == LARGEST else f"a probability from {least:g} to {most:g}"
        raise DataError(f"{what} is {values[row]} at row {row}, expected {expected}")


def evaluate_space(text: str, columns: Mapping[str, pa.Array]) -> np.ndarray:
    """Return the rows on which a space's expression is true, bool of shape (N,); null and NaN are outside."""
    space = as_boolean(parse_expression(text).evaluate(columns))
    return space.fill_null(False).to_numpy(zero_copy_only=False)


def _numbers(text: str, columns: Mapping[str, pa.Array]) -> np.ndarray:
    return pc.cast(parse_expression(text).evaluate(columns), pa.float64(), safe=False).to_numpy(zero_copy_only=False)


def check_statistics(schema: Schema, statistics: Statistics | None) -> None:
    """Check that the statistics hold every figure that the schema's features need.

    Raises:
        ConfigError: A figure is missing; names the feature.
    """
    for feature in schema.features:
        needed = isinstance(feature, BucketFeature) or (isinstance(feature, DenseFeature) and feature.standardise)
        if needed and (statistics is None or feature.name not in statistics.numbers):
            raise ConfigError(f"feature {feature.name!r} needs statistics, there are none: run jobs.fit_features")
        if isinstance(feature, BucketFeature) and statistics is not None:
            _check_buckets(feature, statistics)


def _fitting(table: TableConfig, vocabulary: Vocabulary | None) -> Vocabulary:
    """Return the vocabulary of a table after checking that it belongs to this table with exactly these rows."""
    declared = Vocabulary.empty(table)
    if vocabulary is None:
        raise ConfigError(f"table {table.name!r} declares a vocabulary, none is given: it is made by training a day")
    for name in ("table", "num_rows", "tail_rows"):
        found, expected = getattr(vocabulary, name), getattr(declared, name)
        if found != expected:
            raise ConfigError(
                f"table {table.name!r} has {name} {expected!r}, its vocabulary {found!r}: restore the old config, or "
                "start a new root"
            )
    return vocabulary


def _check_buckets(feature: BucketFeature, statistics: Statistics) -> None:
    found = len(statistics.numbers[feature.name].boundaries) + 1
    if found > feature.num_buckets:
        raise ConfigError(
            f"feature {feature.name!r} has {feature.num_buckets} buckets, its statistics have {found}: "
            "run jobs.fit_features"
        )


def check_labels(task: TaskConfig, values: np.ndarray, in_space: np.ndarray) -> None:
    """Check that the task's kind allows its labels.

    Args:
        task: The task.
        values: float64 of shape (N,).
        in_space: bool of shape (N,); labels outside the space are not checked.

    Raises:
        DataError: A label is not allowed; names task, label, row, value and the expected values.
    """
    allowed, expected = np.abs(values) <= LARGEST, "a finite number"
    if task.kind == "binary":
        allowed, expected = (values == 0) | (values == 1), "0 or 1"
    elif task.kind == "multiclass":
        assert task.num_classes is not None
        allowed = (values >= 0) & (values < task.num_classes) & (values == np.floor(values))
        expected = f"a class from 0 to {task.num_classes - 1}"
    elif task.loss == "poisson" or task.log1p_target:
        allowed, expected = allowed & (values >= 0), "a finite number of at least 0"
    elif task.link == "sigmoid":
        allowed, expected = allowed & (values >= 0) & (values <= 1), "a number from 0 to 1"
    wrong = in_space & ~allowed
    if wrong.any():
        row = int(wrong.argmax())
        raise DataError(
            f"task {task.name!r}: label {task.label!r} is {values[row]:g} at row {row} ({int(wrong.sum())} such rows), "
            f"expected {expected}: correct the label or leave these rows out of the task's space"
        )


def check_columns(schema: Schema, log: pa.Schema, columns: list[str]) -> None:
    """Check a log file's Arrow schema against the declaration.

    Args:
        schema: The declaration.
        log: The file's schema.
        columns: Names of the columns that will be read.

    Raises:
        DataError: A column is missing, there twice or of a wrong type, or an expression does not fit.
    """
    missing = [name for name in columns if name not in log.names]
    if missing:
        raise DataError(f"no column {missing[0]!r} ({len(missing)} missing: {missing}); the file has {log.names}")
    _check_names(log, columns)
    for feature in schema.features:
        found = log.field(feature.source).type
        if not _accepts(feature.kind, found):
            raise DataError(
                f"column {feature.source!r} is {found}, feature {feature.name!r} is {_EXPECTED[feature.kind]}"
            )
    slot = log.field(schema.slot).type if schema.slot else pa.null()
    if not (pa.types.is_integer(slot) or pa.types.is_null(slot)):
        raise DataError(f"column {schema.slot!r} is {slot}, the slot is an integer")
    empty = contiguous({name: pa.array([], log.field(name).type) for name in columns})
    for task in schema.tasks:
        for text in task.expressions():
            if set(parse_expression(text).columns) <= set(empty):
                value = parse_expression(text).evaluate(empty)
                if not _is_number(value.type):
                    raise DataError(f"task {task.name!r}: {text!r} is {value.type}, expected a number or boolean")


def _check_names(log: pa.Schema, columns: list[str]) -> None:
    twice = next((name for name in columns if log.names.count(name) > 1), None)
    if twice is not None:
        number = log.names.count(twice)
        raise DataError(
            f"column {twice!r} is there {number} times: rename or remove the others, and write the file again"
        )


_EXPECTED = {
    "id": "an id: expected integers, strings or binary",
    "sequence": "a sequence: expected a list of integers, strings or binary",
    "dense": "dense: expected a number or boolean",
    "bucket": "bucketised: expected a number or boolean",
}


def _accepts(kind: str, found: pa.DataType) -> bool:
    if pa.types.is_null(found):  # all values of the file are missing
        return True
    if kind in ("dense", "bucket"):
        return _is_number(found)
    if kind == "sequence":
        return is_sequence(found) and (is_id(found.value_type) or pa.types.is_null(found.value_type))
    return is_id(found)


def _is_number(found: pa.DataType) -> bool:
    tests = (pa.types.is_integer, pa.types.is_floating, pa.types.is_boolean, pa.types.is_decimal, pa.types.is_null)
    return any(test(found) for test in tests)
