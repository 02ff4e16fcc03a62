"""CPU of encoding a row with ids looked up in vocabularies, over that of a row with hashed ids."""

import statistics
import time
from typing import Any

import numpy as np
import pyarrow as pa

from benchmarks.workload import load, project
from features.columns import id_values
from features.encoding import Encoder
from features.hashing import hash_ids, salt_of
from features.schema import BucketFeature, Schema
from features.tables import TableConfig, VocabularyConfig
from features.vocabulary import RowIndex, Vocabulary
from pipeline.ingest.datasource import read_unit
from pipeline.storage.files import Storage

_ROWS = 2**19
_QUICK_ROWS = 2**17
_TAIL = 10_000
_DAY = "2026-11-05"


def run(quick: bool) -> dict[str, Any]:
    """Encode a day in this process, in turns: hashed, and with vocabularies of several sizes.

    Every id of the day has a row of its own; the other ids of a vocabulary do not occur in the day, and make it larger
    than the processor's caches.

    Args:
        quick: A quarter of the rows, 3 turns, no vocabulary of 10 million ids.
    """
    rows, turns, sizes = (_QUICK_ROWS, 3, (10**5, 10**6)) if quick else (_ROWS, 5, (10**5, 10**6, 10**7))
    with project(rows, 65_536, 20_000) as folder:
        config, hashing, day = load(folder)
        units = [read_unit(Storage(config.logs.path), unit, hashing.columns) for unit in day.units]
    encoders = {"hashing": hashing}
    updates: dict[int, float] = {}
    for size in sizes:
        encoders[f"{size:,} ids"], updates[size] = _with_vocabularies(hashing, units, size)
    seconds = [{name: _cpu_seconds(encoder, units) for name, encoder in encoders.items()} for _ in range(turns)]
    index = encoders[f"{sizes[-1]:,} ids"]._indexes["video"]
    return {
        "unit": "CPU-seconds per million rows of 22 ids and 13 dense features, decoding left out",
        "rows": rows,
        "turns": turns,
        "encode_cpu_s": {name: statistics.median(turn[name] for turn in seconds) * 1e6 / rows for name in encoders},
        "over_hashing": {
            name: statistics.median(turn[name] / turn["hashing"] for turn in seconds)
            for name in encoders
            if name != "hashing"
        },
        "update_cpu_s_per_million_ids": {f"{size:,} ids": updates[size] * 1e6 / size for size in sizes},
        "object_store_bytes_per_id": _bytes_of(index) / sizes[-1],
    }


def _with_vocabularies(hashing: Encoder, units: list[dict[str, pa.Array]], size: int) -> tuple[Encoder, float]:
    """Return an encoder with vocabularies of a size, and the CPU-seconds of the last of the updates that made them."""
    mapping = VocabularyConfig(kind="vocabulary", min_count=1, keep_days=1, tail_rows=_TAIL)
    tables = [
        table.model_copy(update={"num_rows": size + _TAIL, "id_mapping": mapping}) for table in hashing.schema.tables
    ]
    schema = hashing.schema.model_copy(update={"tables": tables})
    vocabularies, spent = {}, 0.0
    for table in tables:
        keys, counts = _keys(schema, table, units, size), np.random.default_rng(1).integers(1, 100, size)
        started, empty = time.process_time(), Vocabulary.empty(table)
        vocabularies[table.name] = empty.update(mapping, _DAY, empty.seen(mapping, keys, counts)).vocabulary
        spent = time.process_time() - started
    return Encoder(schema, hashing.statistics, vocabularies=vocabularies), spent


def _keys(schema: Schema, table: TableConfig, units: list[dict[str, pa.Array]], size: int) -> np.ndarray:
    """Return the keys of a table's ids of the day, filled up with others to a size; increasing."""
    features = [f for f in schema.sparse_features if f.table == table.name and not isinstance(f, BucketFeature)]
    salt = salt_of(schema.hash_salt)
    seen = [hash_ids(id_values(f, unit[f.source])[0], salt) for f in features for unit in units]
    found = np.unique(np.concatenate(seen))
    others = hash_ids(pa.array(np.arange(2**40, 2**40 + size - len(found))), salt)
    return np.sort(np.concatenate((found, others)))


def _cpu_seconds(encoder: Encoder, units: list[dict[str, pa.Array]]) -> float:
    started = time.process_time()
    for unit in units:
        encoder.encode(unit)
    return time.process_time() - started


def _bytes_of(index: RowIndex) -> int:
    return index.keys.nbytes + index.rows.nbytes + index.starts.nbytes
