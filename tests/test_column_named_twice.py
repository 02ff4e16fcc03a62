"""A Parquet file with two columns of one name, as a join writes it: nobody can know which of them is meant."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from features.errors import DataError
from features.schema import Schema
from pipeline.ingest.units import check_days
from pipeline.storage.files import Storage

DAY = "2026-01-01"
SCHEMA = Schema.model_validate(
    {
        "tables": [{"name": "user", "num_rows": 100, "dim": 4}],
        "features": [{"kind": "id", "name": "user_id", "table": "user"}],
        "tasks": [{"name": "ctr", "label": "click"}],
    }
)


def write(folder: Path, names: list[str]) -> None:
    (folder / f"dt={DAY}").mkdir()
    columns = [pa.array([1, 0], pa.int64()) for _ in names]
    pq.write_table(pa.Table.from_arrays(columns, names), folder / f"dt={DAY}" / "part-0.parquet")


@pytest.mark.parametrize("twice", ["user_id", "click"])
def test_a_column_that_is_read_is_refused(tmp_path: Path, twice: str) -> None:
    """Catches a KeyError of pyarrow, exit code 1, where a person has to write the file again."""
    write(tmp_path, ["user_id", "click", twice])
    with pytest.raises(DataError, match=rf"part-0.parquet: column '{twice}' is there 2 times: rename or remove"):
        check_days(Storage(str(tmp_path)), [DAY], 1000, SCHEMA, ["user_id", "click"])


def test_a_column_that_nobody_reads_is_none_of_our_business(tmp_path: Path) -> None:
    """Catches a refusal of a good log for columns that are not read."""
    write(tmp_path, ["user_id", "click", "other", "other"])
    (day,) = check_days(Storage(str(tmp_path)), [DAY], 1000, SCHEMA, ["user_id", "click"])
    with pq.ParquetFile(tmp_path / next(iter(day.files))) as file:
        assert file.read_row_group(0, columns=["user_id", "click"]).num_rows == 2
