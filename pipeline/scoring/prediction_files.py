"""Predictions in files: the record that `jobs.predict` writes, the files of a day, and the values of their rows."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from features.errors import ConfigError, DataError
from models.ranking_score import LexicographicConfig, ProductConfig, ranking_score
from pipeline.config.ranking import nearest
from pipeline.scoring.written_predictions import PredictionFiles
from pipeline.storage.files import Storage

ROWS_OF_A_BATCH = 2**16


@dataclass(frozen=True, slots=True, kw_only=True)
class Predictions:
    """Part of the record of predictions that this room reads.

    Args:
        keys: Names of the key columns.
        tasks: Kind of each predicted task, by name.
        labels: True if the files have labels.
        days: Entry of each finished day, by ISO date.
        source: Line and checkpoint that predicted.
    """

    keys: tuple[str, ...]
    tasks: dict[str, str]
    labels: bool
    days: dict[str, Any]
    source: dict[str, Any]

    def digest(self, day: str) -> str:
        """Return twelve hexadecimal digits that change with the predictions of a day."""
        content = [self.source, self.keys, self.tasks, self.days[day]]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]


def read_predictions(storage: Storage) -> Predictions:
    """Read the records of predictions.

    Raises:
        ConfigError: There are none, or they are not readable.
        DataError: The record of a day is damaged.
    """
    written = PredictionFiles(storage)
    about = written.about()
    records = {day: written.day(day) for day in written.days()}
    return Predictions(
        keys=about.keys,
        tasks=about.tasks,
        labels=about.labels,
        days={day: record.model_dump(mode="json") for day, record in records.items() if record is not None},
        source={name: getattr(about, name) for name in ("line", "checkpoint", "checkpoint_digest")},
    )


def check_columns(
    predictions: Predictions, ranking: ProductConfig | LexicographicConfig, tasks: Sequence[str], url: str
) -> None:
    """Check that predictions have the tasks and the keys that a ranking score reads.

    Raises:
        ConfigError: One is not there, with the nearest name.
    """
    for task in tasks:
        if task not in predictions.tasks:
            raise ConfigError(f"{url} has no predictions of task {task!r}: {nearest(task, list(predictions.tasks))}")
    columns = {"ranking.top.by": ranking.top.by}
    if isinstance(ranking, ProductConfig) and ranking.duration is not None:
        columns["ranking.duration.column"] = ranking.duration.column
    for key, column in columns.items():
        if column not in predictions.keys:
            raise ConfigError(
                f"{key}: {url} has no key column {column!r}: {nearest(column, predictions.keys)}, or add it to "
                "predictions.keys and predict again"
            )


def files_of(storage: Storage, predictions: Predictions, day: str) -> list[str]:
    """Return the files of a day, in the order of their rows.

    Raises:
        DataError: The day is not among the finished ones, or has no files.
    """
    if day not in predictions.days:
        known = ", ".join(sorted(predictions.days)) or "none"
        raise DataError(f"{storage.url} has no finished predictions of {day}, only of: {known}")
    found = [name for name in sorted(predictions.days[day]["files"]) if storage.exists(name)]
    if not found:
        raise DataError(f"{storage.url}/dt={day} has no files, although the day is complete: predict it again")
    return found


def num_rows_of(storage: Storage, name: str) -> int:
    """Return the number of rows of a file, from its footer."""
    with storage.open_read(name) as file:
        return _opened(file, storage, name).metadata.num_rows


def batches_of(storage: Storage, name: str, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
    """Yield the rows of a file, a bounded number at once.

    Raises:
        DataError: The file is no Parquet, or lacks a column.
    """
    with storage.open_read(name) as file:
        parquet = _opened(file, storage, name)
        for column in columns:
            if column not in parquet.schema_arrow.names:
                known = nearest(column, parquet.schema_arrow.names)
                raise DataError(f"{storage.url}/{name} has no column {column!r}: {known}")
        yield from parquet.iter_batches(ROWS_OF_A_BATCH, columns=list(columns))


def schema_of(storage: Storage, name: str, columns: Sequence[str]) -> pa.Schema:
    """Return the types of some columns of a file."""
    with storage.open_read(name) as file:
        schema = _opened(file, storage, name).schema_arrow
        return pa.schema([schema.field(column) for column in columns])


def names_of(storage: Storage, name: str) -> list[str]:
    """Return the names of a file's columns."""
    with storage.open_read(name) as file:
        return _opened(file, storage, name).schema_arrow.names


def _opened(file: Any, storage: Storage, name: str) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(file)
    except pa.ArrowInvalid as error:
        raise DataError(f"{storage.url}/{name} is no Parquet file ({error}): predict the day again") from error


def columns_to_score(ranking: ProductConfig | LexicographicConfig) -> list[str]:
    """Return the columns that the score of a row reads."""
    if isinstance(ranking, LexicographicConfig):
        return [f"prediction_{entry.task}" for entry in ranking.tasks]
    duration = [ranking.duration.column] if ranking.duration else []
    return [f"prediction_{task}" for task in ranking.tasks] + duration


def numbers(column: pa.Array, name: str) -> np.ndarray:
    """Return a column of numbers as float64; null becomes NaN.

    Raises:
        DataError: The column has no numbers.
    """
    kind = column.type
    if not (pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind)):
        raise DataError(f"column {name!r} has type {kind}, expected numbers")
    return column.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False)


def scores_of(ranking: ProductConfig | LexicographicConfig, columns: dict[str, np.ndarray], place: str) -> np.ndarray:
    """Return the score of each row.

    Args:
        ranking: The declared score.
        columns: The columns of `columns_to_score`, shape (N,) each.
        place: Name of the rows, for the error.

    Returns:
        float64 of shape (N,).

    Raises:
        DataError: A prediction is NaN, null or infinite.
    """
    tensors = {name: torch.from_numpy(np.require(values, requirements="W")) for name, values in columns.items()}
    duration = ranking.duration if isinstance(ranking, ProductConfig) else None
    predictions = {name.removeprefix("prediction_"): values for name, values in tensors.items()}
    scores = ranking_score(ranking, predictions, tensors[duration.column] if duration else None).numpy()
    if num_nan := int(np.isnan(scores).sum()):
        raise DataError(
            f"{place}: {num_nan:,} rows have a prediction that is NaN, null or infinite, which has no rank: look at "
            "the model"
        )
    return scores
