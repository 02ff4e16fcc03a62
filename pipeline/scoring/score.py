"""Ranking scores of predicted rows as Parquet: score and rank within each request or user, day by day."""

import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from features.errors import ConfigError, DataError
from features.measured_columns import group_hashes
from models.ranking_score import LexicographicConfig, ProductConfig, TopConfig
from pipeline.config.project import Config
from pipeline.scoring.prediction_files import (
    Predictions,
    batches_of,
    check_columns,
    columns_to_score,
    files_of,
    num_rows_of,
    numbers,
    read_predictions,
    schema_of,
    scores_of,
)
from pipeline.scoring.ranks import DayRanks
from pipeline.storage.files import Storage
from pipeline.storage.record import Record, RecordPart

RECORD = "_scores.json"
_WRITING = "_writing"  # readers of data sets leave out names that begin with an underscore
_ADDED = (pa.field("score", pa.float64()), pa.field("rank", pa.int32()))


class ScoredDay(RecordPart):
    """Finished day of ranked rows.

    Args:
        predictions: Checksum of the day's predictions.
        rows: Number of ranked rows.
        kept: Number of written rows; less than `rows` with `ranking.top.k`.
        groups: Number of requests or users.
        zeros: Number of rows whose product is 0, which rank last.
    """

    predictions: str
    rows: int
    kept: int
    groups: int
    zeros: int


class Scores(Record):
    """Record of ranked rows in a directory; a day without an entry is not finished.

    Args:
        ranking: The section `ranking` of the config, with the number of kept rows that the command was given.
        days: The finished days, by ISO date.
    """

    VERSION: ClassVar[int] = 1
    ranking: dict[str, Any]
    days: dict[str, ScoredDay] = {}


@dataclass(frozen=True, slots=True)
class _Scoring:
    """Ranking, predictions and target of all days."""

    ranking: ProductConfig | LexicographicConfig
    source: Storage
    predictions: Predictions
    out: Storage


def write_scores(
    config: Config, days: Sequence[str], predictions: str, out: str, top: int | None = None
) -> dict[str, Any]:
    """Rank the predicted rows of some days, and write the rows of each file to a file of the same name.

    A day appears whole. A finished day is not done again, if the ranking and the predictions are the same.

    Args:
        config: The project's configuration.
        days: ISO dates, in order.
        predictions: Directory or s3:// prefix that `jobs.predict` wrote.
        out: Directory or s3:// prefix without files, or with earlier days of the same ranking.
        top: Number of rows kept of each request or user, instead of `ranking.top.k`.

    Returns:
        The figures of the command's JSON line.

    Raises:
        ConfigError: The config has no ranking, a name is wrong, or the target cannot take the scores.
        DataError: The predictions do not fit the ranking.
    """
    ranking = _with_top(config.ranking, top)
    source = Storage(predictions)
    found = read_predictions(source)
    check_columns(found, ranking, _tasks(ranking), source.url)
    if taken := {field.name for field in _ADDED} & set(found.keys):
        raise ConfigError(
            f"{source.url} has a key column {min(taken)!r}, the name of a column that is added: rename it"
        )
    files = {day: files_of(source, found, day) for day in days}
    scoring = _Scoring(ranking, source, found, Storage(out))
    record = _begun(scoring)
    waiting = [day for day in days if not _is_done(record, day, scoring)]
    scoring.out.check_writable()
    for day in waiting:
        record = _write_day(scoring, record, day, files[day])
    done = [record.days[day] for day in days]
    summed = {name: sum(getattr(day, name) for day in done) for name in ("rows", "kept", "groups", "zeros")}
    named = {"days": list(days), "written": waiting, "out": scoring.out.url, "checkpoint": found.source["checkpoint"]}
    return {"result": "written" if waiting else "nothing to do"} | named | summed


def _with_top(
    ranking: ProductConfig | LexicographicConfig | None, top: int | None
) -> ProductConfig | LexicographicConfig:
    if ranking is None:
        raise ConfigError("the config has no section ranking: declare the score, see docs/ranking.md")
    if top is None:
        return ranking
    if top < 1:
        raise ConfigError(f"--top {top}: expected at least 1")
    return ranking.model_copy(update={"top": TopConfig(by=ranking.top.by, k=top)})


def _tasks(ranking: ProductConfig | LexicographicConfig) -> list[str]:
    return ranking.tasks if isinstance(ranking, ProductConfig) else [entry.task for entry in ranking.tasks]


def _begun(scoring: _Scoring) -> Scores:
    """Return the record of the target, without days if it is empty; refuse a target of another kind."""
    out = scoring.out
    ranking = scoring.ranking.model_dump(mode="json")
    if not out.exists(RECORD):
        if out.names():
            raise ConfigError(f"{out.url} is not empty: name another directory, or remove what is there")
        return Scores(ranking=ranking)
    try:
        record = Scores.from_bytes(out.read(RECORD))
    except ValueError as error:
        raise DataError(f"{out.url}/{RECORD} cannot be read: {error}") from error
    if record.ranking != ranking:
        raise ConfigError(f"{out.url} has scores of another ranking: name another directory, or remove what is there")
    return record


def _is_done(record: Scores, day: str, scoring: _Scoring) -> bool:
    if day not in record.days:
        return False
    if record.days[day].predictions != scoring.predictions.digest(day):
        raise ConfigError(
            f"{scoring.out.url} has scores of {day} from other predictions: name another directory, or remove what is "
            "there"
        )
    return True


def _write_day(scoring: _Scoring, record: Scores, day: str, files: Sequence[str]) -> Scores:
    """Write a day, and then the record that counts it."""
    out, k = scoring.out, scoring.ranking.top.k
    staging = f"{_WRITING}/" if out.is_local else ""  # S3 has no rename: there the record alone tells
    with tempfile.TemporaryDirectory(prefix="counterpoise-scores-") as folder:
        sizes = {name: num_rows_of(scoring.source, name) for name in files}
        scores, ranks = _ranked(scoring, sizes, Path(folder))
        out.write(RECORD, record.to_bytes())  # from here on a command that was cut off can go on
        for leftover in (_WRITING, f"dt={day}"):
            out.remove(leftover)
        counted: dict[str, int] = {"kept": 0, "groups": 0, "zeros": 0}
        begin = 0
        for name, size in sizes.items():
            of_file = scores[begin : begin + size], ranks[begin : begin + size]
            data, written = _file(scoring, name, *of_file, k)
            out.write(staging + name, data)
            found = (written, int((of_file[1] == 1).sum()), int(np.isneginf(of_file[0]).sum()))
            counted = {key: counted[key] + more for key, more in zip(counted, found, strict=True)}
            begin += size
    if staging:
        os.rename(out.path(f"{_WRITING}/dt={day}"), out.path(f"dt={day}"))
        out.remove(_WRITING)
        out.sync()
    entry = ScoredDay(predictions=scoring.predictions.digest(day), rows=begin, **counted)
    record = record.model_copy(update={"days": record.days | {day: entry}})
    out.write(RECORD, record.to_bytes())
    return record


def _ranked(scoring: _Scoring, sizes: Mapping[str, int], folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return score and rank of each row of a day, whose files have these numbers of rows."""
    by, read = scoring.ranking.top.by, columns_to_score(scoring.ranking)
    found = DayRanks(folder, sum(sizes.values()))
    for name in sizes:
        for batch in batches_of(scoring.source, name, list(dict.fromkeys([by, *read]))):
            columns = {column: numbers(batch[column], column) for column in read}
            scores = scores_of(scoring.ranking, columns, f"{scoring.source.url}/{name}")
            found.add(group_hashes(batch[by], by), scores)
    return found.results()


def _file(scoring: _Scoring, name: str, scores: np.ndarray, ranks: np.ndarray, k: int | None) -> tuple[bytes, int]:
    """Return a file's rows with their scores as Parquet, and their number."""
    schema = schema_of(scoring.source, name, scoring.predictions.keys)
    for field in _ADDED:
        schema = schema.append(field)
    sink, written = pa.BufferOutputStream(), 0
    with pq.ParquetWriter(sink, schema, compression="zstd") as writer:
        for batch in _with_ranks(batches_of(scoring.source, name, scoring.predictions.keys), scores, ranks):
            kept = batch if k is None else batch.filter(pa.array(batch["rank"].to_numpy() <= k))
            writer.write_batch(kept.cast(schema))
            written += kept.num_rows
    return sink.getvalue().to_pybytes(), written


def _with_ranks(batches: Iterator[pa.RecordBatch], scores: np.ndarray, ranks: np.ndarray) -> Iterator[pa.RecordBatch]:
    begin = 0
    for batch in batches:
        end = begin + batch.num_rows
        added = pa.array(np.asarray(scores[begin:end])), pa.array(np.asarray(ranks[begin:end]))
        names = [*batch.schema.names, *(field.name for field in _ADDED)]
        yield pa.RecordBatch.from_arrays([*batch.columns, *added], names=names)
        begin = end
