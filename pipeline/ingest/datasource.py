"""Ray Data source of units: a read task decodes and encodes units, each of which then travels within one Arrow row.

A row cannot be split by Ray's block sizes or its splitter, so no unit is. A rank receives a sequence of parcels: the
start of a segment (a day of a pass), encoded units, blanks, or the error of a bad unit. Small units of one rank share a
row: handing on a block takes Ray some 20 ms, whatever its size.
"""

import contextlib
import functools
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import ray
from ray.data import Datasource
from ray.data.block import BlockMetadata
from ray.data.datasource import ReadTask

from features.columns import one_array
from features.encoded_rows import EncodedRows
from features.encoding import Encoder
from features.errors import DataError
from features.holdout import HoldoutConfig, Rows
from pipeline.ingest.bundles import Bundle, Kind, PlannedParcel
from pipeline.ingest.day_files import first_line, is_bad_file
from pipeline.ingest.deal import row_order
from pipeline.ingest.row_groups import OpenFiles, RowGroupReader
from pipeline.ingest.units import Unit
from pipeline.storage.files import Storage


@dataclass(frozen=True, slots=True)
class Parcel:
    """A unit, or a signal, on its way from a data task to a rank.

    Args:
        kind: `start` of a segment, a `unit`, a `blank`, or a `bad` unit.
        segment: Index of the segment.
        unit: Index into the segment's units; -1 for other kinds.
        text: The segment's header as JSON, or the error of a bad unit.
        rows: Encoded rows of the unit that the model has not seen; empty for other kinds.
        read_at: Time of reading by the data task, in seconds since the epoch.
    """

    kind: Kind
    segment: int
    unit: int = -1
    text: str = ""
    rows: EncodedRows | None = None
    read_at: float = 0.0

    def to_row(self, blank: EncodedRows) -> pa.Table:
        """Return one Arrow row; `blank` gives the columns of a parcel without rows."""
        table = (self.rows or blank).to_arrow()
        head = json.dumps([self.kind, self.segment, self.unit, self.text, time.time()])
        return table.add_column(0, "parcel", pa.array([head]))

    @classmethod
    def from_row(cls, row: pa.Table) -> "Parcel":
        """Read the row that `to_row` wrote; the encoded rows are views of it."""
        kind, segment, unit, text, read_at = json.loads(row["parcel"][0].as_py())
        rows = EncodedRows.from_arrow(row.drop_columns(["parcel"])) if kind == "unit" else None
        return cls(kind, segment, unit, text, rows, read_at)


def pack(parcels: Sequence[Parcel], blank: EncodedRows) -> pa.Table:
    """Return parcels of one rank as a block of one Arrow row, so that nothing can split it.

    Args:
        parcels: At least one.
        blank: Zero rows, which give the columns of a parcel without rows.
    """
    rows = pa.concat_tables([parcel.to_row(blank) for parcel in parcels])
    ends = pa.array([0, len(parcels)], pa.int32())
    columns = {name: pa.ListArray.from_arrays(ends, one_array(rows[name])) for name in rows.column_names}
    return pa.table(columns)


def unpack(block: pa.Table) -> list[Parcel]:
    """Return the parcels of a block that `pack` made; their rows are views of it."""
    assert block.num_rows == 1, f"{block.num_rows} rows in one block"
    rows = pa.table({name: block[name][0].values for name in block.column_names})
    return [Parcel.from_row(rows.slice(place, 1)) for place in range(rows.num_rows)]


@dataclass(frozen=True, slots=True)
class ReadPlan:
    """Common knowledge of all data tasks; put into the object store once. Units are not in it: a task has its own.

    Args:
        logs: Storage of the files.
        encoder: Encoder of rows.
        passes: The pass of each segment.
        seed: The run's seed.
        shuffle_rows: True to shuffle rows within their unit.
        tasks: Tasks of each segment whose labels are read; None: all.
        holdout: Rows that are never trained; None: none.
        rows: Rows with labels: those that are `trained`, or `all`; `held_out` reads the held-out rows only.
        further: References to further encoders, from index 1; a data task fetches those of its own units.
    """

    logs: Storage
    encoder: Encoder
    passes: tuple[int, ...]
    seed: int
    shuffle_rows: bool
    tasks: tuple[frozenset[str] | None, ...] = ()
    holdout: HoldoutConfig | None = None
    rows: Rows = "trained"
    further: tuple[Any, ...] = ()

    @property
    def columns(self) -> list[str]:
        """Names of the log's columns that are read."""
        return read_columns(self.encoder.columns, self.holdout)

    def encoder_at(self, index: int) -> Encoder:
        """Return the encoder of an index."""
        return ray.get(self.further[index - 1]) if index else self.encoder

    def encode(self, columns: dict[str, pa.Array], segment: int, encoder: Encoder) -> EncodedRows:
        """Encode a unit's rows, without the labels that the segment does not train or measure."""
        held = self.holdout.held_out(columns) if self.holdout is not None else None
        if self.rows == "held_out" and held is not None:
            chosen = pa.array(held)
            encoded = encoder.encode({name: column.filter(chosen) for name, column in columns.items()})
            encoded = replace(encoded, rows=np.flatnonzero(held).astype(np.int32))
        else:
            encoded = encoder.encode(columns)
        if self.rows == "trained" and held is not None:
            encoded = replace(_without_labels(encoded, held[:, None]), held=held.astype(np.uint8))
        tasks = self.tasks[segment] if self.tasks else None
        if tasks is not None:
            left_out = [name not in tasks for name in encoder.schema.task_names]
            encoded = _without_labels(encoded, np.array(left_out)[None])
        return encoded


def read_columns(columns: Sequence[str], holdout: HoldoutConfig | None) -> list[str]:
    """Return the log's columns that a run reads: those of the schema, and the column of the hold-out."""
    return list(dict.fromkeys([*columns, *([holdout.column] if holdout else [])]))


def _without_labels(rows: EncodedRows, where: np.ndarray) -> EncodedRows:
    """Return the rows, outside the tasks' spaces if `where`, of a shape that broadcasts to (N, K), is true."""
    weights = None if rows.weights is None else np.where(where, np.float32(1), rows.weights)
    return replace(rows, labels=np.where(where, np.float32(np.nan), rows.labels), weights=weights)


class UnitDatasource(Datasource):
    """Bundles in a fixed order, grouped into read tasks.

    Args:
        plan: Common knowledge of all tasks.
        tasks: Bundles per task, in order.
    """

    def __init__(self, plan: ReadPlan, tasks: Sequence[Sequence[Bundle]]) -> None:
        super().__init__()
        self._plan = plan
        self._tasks = tasks
        self._plan_ref: Any = None

    def estimate_inmemory_data_size(self) -> int | None:
        """Return None: the encoded size depends on the schema."""
        return None

    def get_read_tasks(
        self, parallelism: int, per_task_row_limit: int | None = None, data_context: Any = None
    ) -> list[ReadTask]:
        """Return one read task per group of bundles, for any requested parallelism."""
        if self._plan_ref is None:
            self._plan_ref = ray.put(self._plan)
        return [
            ReadTask(
                functools.partial(_run_task, self._plan_ref, bundles),
                BlockMetadata(num_rows=len(bundles), size_bytes=None, input_files=None, exec_stats=None),
            )
            for bundles in self._tasks
        ]


def _run_task(plan_ref: Any, bundles: Sequence[Bundle]) -> Iterator[pa.Table]:
    plan: ReadPlan = ray.get(plan_ref)
    blank = plan.encoder.empty()
    if plan.holdout is not None and plan.rows == "trained":
        blank = replace(blank, held=np.empty(0, np.uint8))
    yield from read_bundles(plan, bundles, blank)


def read_bundles(plan: ReadPlan, bundles: Sequence[Bundle], blank: EncodedRows) -> Iterator[pa.Table]:
    """Yield the blocks of a task, one for each bundle, in order.

    Args:
        plan: Common knowledge of all tasks.
        bundles: Bundles of the task.
        blank: Zero rows, which give the columns of a parcel without rows.
    """
    made = list(bundles)
    parcels = read_parcels(plan, [entry for bundle in made for entry in bundle])
    for bundle in made:
        yield pack([next(parcels) for _ in bundle], blank)


def read_parcels(plan: ReadPlan, entries: Sequence[PlannedParcel]) -> Iterator[Parcel]:
    """Yield the parcels of a task, in order; a unit that cannot be read becomes a `bad` parcel with the error.

    A unit that follows itself, for another encoder, is decoded once.
    """
    reader: RowGroupReader | None = None
    files = OpenFiles(plan.logs)
    encoder_at = functools.cache(plan.encoder_at)
    decoded: tuple[Unit | None, dict[str, pa.Array]] = (None, {})
    for entry in entries:
        if entry.source is None:
            yield Parcel(entry.kind, entry.segment, text=entry.text)
            continue
        unit = entry.source
        try:
            with named_unit(plan.logs, unit):
                if decoded[0] != unit:
                    decoded = (None, {})  # before the next rows are there
                    if reader is None or not reader.reaches(unit):
                        reader = RowGroupReader(files.open(unit.file), unit, plan.columns)
                    decoded = (unit, reader.read(unit))
                encoded = plan.encode(decoded[1], entry.segment, encoder_at(entry.encoder))
        except DataError as error:
            reader = None  # the position in a broken row group is unknown
            files.forget(unit.file)
            yield Parcel("bad", entry.segment, entry.unit, text=str(error))
            continue
        order = row_order(unit, seed=plan.seed, pass_index=plan.passes[entry.segment], shuffle=plan.shuffle_rows)
        in_order = entry.skip == 0 and not plan.shuffle_rows
        yield Parcel("unit", entry.segment, entry.unit, rows=encoded if in_order else encoded.take(order[entry.skip :]))


def read_unit(logs: Storage, unit: Unit, columns: list[str]) -> dict[str, pa.Array]:
    """Decode one unit.

    Returns:
        Arrays of `unit.num_rows` by column name.

    Raises:
        DataError: The unit cannot be read; names file and row group.
    """
    with named_unit(logs, unit):
        return RowGroupReader(OpenFiles(logs).open(unit.file), unit, columns).read(unit)


def read_forwards(logs: Storage, units: Sequence[Unit], columns: list[str]) -> Iterator[dict[str, pa.Array]]:
    """Yield the columns of each of some units in order; a row group is decoded once for all its units.

    Raises:
        DataError: A unit cannot be read; names file and row group.
    """
    files, reader = OpenFiles(logs), None
    for unit in units:
        with named_unit(logs, unit):
            if reader is None or not reader.reaches(unit):
                reader = RowGroupReader(files.open(unit.file), unit, columns)
            found = reader.read(unit)
        yield found


@contextlib.contextmanager
def named_unit(logs: Storage, unit: Unit) -> Iterator[None]:
    """Add the unit's name to an error of reading or encoding; a storage that does not answer is not a bad unit."""
    try:
        yield
    except Exception as error:
        if not isinstance(error, DataError) and not is_bad_file(error):
            raise
        where = f"{logs.url}/{unit.file}, row group {unit.row_group}, rows from {unit.first_row}"
        raise DataError(f"{where}: {first_line(error)}") from error
