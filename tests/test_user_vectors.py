"""Users' vectors: whose they are, which of a user's rows counts, and who is refused."""

from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from dupn_models import around_of, make_dupn_config, random_batch, ranker_of, schema_of
from train_steps import make_config

from features.errors import ConfigError
from features.ids import id_type
from models.user_item_split import SplitRanker
from pipeline.ingest.cursor import BatchCursor, Span
from pipeline.ingest.units import Unit
from pipeline.scoring.user_vectors import UserVectors, write_user_vectors
from pipeline.storage.files import Storage
from pipeline.trainer.worker_setup import Groups

ROWS, PADDING = 5, 2
# By day, unit and row. 7 comes on both days and in several units, 9 twice in one, None is nobody.
DAYS = [[[7, 8, None, 7, 3], [9, 3, 9, 4, 7]], [[8, 7, 5, 7, 6], [1, 8, 1, None, 5]]]


def _units(day: int) -> list[Unit]:
    return [
        Unit(day=f"2026-01-0{day + 1}", file=f"{day}.parquet", row_group=group, first_row=0, num_rows=ROWS, whole=True)
        for group in range(2)
    ]


def _rows_of(day: int, unit: int) -> Any:
    return random_batch(ROWS + PADDING, seed=1 + 2 * day + unit)


@dataclass(frozen=True)
class Collect:
    """Every rank computes some of the units, in order, and writes its file."""

    logs: str
    out: str

    def __call__(self, rank: int, num_ranks: int) -> int:
        """Returns how many users there are."""
        ranker = ranker_of(schema_of(), around_of())
        found = UserVectors(ranker, Storage(self.logs), "user_id")
        for day in range(2):
            part: Any = SimpleNamespace(log=SimpleNamespace(units=_units(day)))
            found.begin_part(day, part)
            for unit in range(rank, 2, num_ranks):
                outputs = ranker(*_rows_of(day, unit))
                spans = tuple(Span(unit, 0, rows) for rows in (np.arange(2), np.arange(2, ROWS)))
                batch: Any = SimpleNamespace(cursor=BatchCursor(0, spans, np.zeros(4, np.int64)))
                found.update(outputs, batch)
        assert found.problem is None
        return found.write(Storage(self.out), Groups.create(60).control)


@pytest.mark.parametrize("num_ranks", [1, 2])
@pytest.mark.parametrize(
    ("kinds", "expected"),
    [
        ((pa.int64(), pa.int64()), pa.int64()),
        ((pa.int64(), pa.int32()), pa.int64()),
        ((pa.uint64(), pa.int8()), pa.int64()),
        ((pa.uint64(), pa.uint64()), pa.uint64()),
        ((pa.string(), pa.dictionary(pa.int8(), pa.string())), pa.large_string()),
        ((pa.binary(), pa.string()), pa.large_binary()),
    ],
)
def test_the_last_row_of_a_user_counts(
    run_ranks: Any, tmp_path: Path, num_ranks: int, kinds: tuple[pa.DataType, pa.DataType], expected: pa.DataType
) -> None:
    """Catches a vector of another row or user, of padding, or of an earlier row that another rank has seen later."""
    logs, out = tmp_path / "logs", tmp_path / "out"
    logs.mkdir()
    for day, units in enumerate(DAYS):
        users = pa.array([user for unit in units for user in unit], pa.int64())
        if id_type(kinds[day]) == "text":
            users = users.cast(pa.string())
        table = pa.table({"user_id": users.cast(kinds[day])})
        pq.write_table(table, logs / f"{day}.parquet", row_group_size=ROWS)
    split = SplitRanker(ranker_of(schema_of(), around_of()))
    first: dict[int, Any] = {}
    last: dict[int, Any] = {}
    for day, units in enumerate(DAYS):
        for unit, of_unit in enumerate(units):
            vectors = split.vectors(*_rows_of(day, unit))
            for user, vector in zip(of_unit, vectors.tolist(), strict=False):
                if user is not None:
                    first.setdefault(user, vector)
                    last[user] = vector
    assert run_ranks(Collect(str(logs), str(out)), num_ranks) == [len(last)] * num_ranks
    tables = [pq.read_table(path) for path in sorted(out.iterdir())]
    assert len(tables) == num_ranks
    written = pa.concat_tables(tables)  # refuses files of different types
    assert written.schema.field("vector").type == pa.list_(pa.float32(), split.width)
    assert written.schema.field("user_id").type == expected
    got = dict(zip(map(int, written["user_id"].to_pylist()), written["vector"].to_pylist(), strict=True))
    assert len(written) == len(got)
    assert sorted(got) == sorted(last)
    for user, vector in last.items():
        torch.testing.assert_close(torch.tensor(got[user]), torch.tensor(vector), rtol=0, atol=1e-6)
    # Shows that the comparison can fail: the first row of a user has another vector.
    assert np.abs(np.array(got[7]) - np.array(first[7])).max() > 1e-3


def test_a_column_without_ids_is_a_problem(tmp_path: Path) -> None:
    """Catches a traceback on every worker where users are floats, as pandas makes integers with gaps."""
    pq.write_table(pa.table({"user_id": pa.array([1.0] * 2 * ROWS)}), tmp_path / "0.parquet", row_group_size=ROWS)
    ranker = ranker_of(schema_of(), around_of())
    found = UserVectors(ranker, Storage(str(tmp_path)), "user_id")
    part: Any = SimpleNamespace(log=SimpleNamespace(units=_units(0)))
    found.begin_part(0, part)
    batch: Any = SimpleNamespace(cursor=BatchCursor(0, (Span(0, 0, np.arange(2)),), np.zeros(4, np.int64)))
    found.update(ranker(*_rows_of(0, 0)), batch)
    assert found.problem is not None
    assert "0.parquet" in found.problem
    assert "column 'user_id' is double, users have integers or texts" in found.problem


def test_what_cannot_be_written_is_refused(tmp_path: Path) -> None:
    """Catches vectors of a model that has none, and files that are mixed with those of another checkpoint."""
    with pytest.raises(ConfigError, match=r"no section model\.user"):
        write_user_vectors(make_config(), ["2026-01-01"], str(tmp_path / "new"), "user_id")
    (tmp_path / "part-00000.parquet").write_bytes(b"")
    with pytest.raises(ConfigError, match="is not empty: name another directory"):
        write_user_vectors(make_dupn_config(), ["2026-01-01"], str(tmp_path), "user_id")
