"""From a lane's encoded units to batches of one fixed size, as a function of the lane and the cursor alone."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from features.encoded_rows import EncodedRows
from features.schema import Schema
from models.batch import LogBatch
from pipeline.ingest.cursor import BatchCursor, Span
from pipeline.ingest.datasource import Parcel
from pipeline.ingest.units import Units


@dataclass(slots=True)
class _OpenUnit:
    unit: int
    rows: EncodedRows
    taken: int = 0

    @property
    def left(self) -> int:
        return len(self.rows) - self.taken


class Batcher:
    """Cutter of a lane into batches.

    A batch mixes the first `interleave` unfinished units of the lane in equal shares. The cursor determines these
    units, so a resumed lane continues with the same batches as without the stop.

    Args:
        schema: Names of the sparse features and tasks.
        units: The day's units.
        parcels: The lane's units, in order; those without rows are passed over, and named in a batch's cursor.
        batch_size: Rows of every batch; one that has fewer is padded.
        interleave: Open units to mix.
        tasks: Names of the only tasks that batches have; None: all of the schema's.
    """

    def __init__(
        self,
        schema: Schema,
        units: Units,
        parcels: Iterator[Parcel],
        batch_size: int,
        interleave: int,
        tasks: Sequence[str] | None = None,
    ) -> None:
        self._schema = schema
        self._units = units
        self._parcels = parcels
        self._batch_size = batch_size
        self._interleave = interleave
        self._places = [schema.task_names.index(name) for name in tasks or schema.task_names]
        self._open: list[_OpenUnit] = []
        self._bad: dict[int, str] = {}

    def next_batch(self, step: int) -> LogBatch:
        """Return the next batch; all padding when the lane has run dry.

        Args:
            step: The step that it is for.
        """
        pieces: list[tuple[_OpenUnit, int, int]] = []
        needed = self._batch_size
        while needed and self._open_units():
            share = -(-needed // len(self._open))
            for opened in self._open:
                count = min(share, needed, opened.left)
                pieces.append((opened, opened.taken, opened.taken + count))
                opened.taken += count
                needed -= count
            self._open = [opened for opened in self._open if opened.left]
        spans = tuple(
            Span(opened.unit, self._units[opened.unit].salt, opened.rows.rows[start:stop])
            for opened, start, stop in pieces
            if stop > start
        )
        slices = [(opened.rows, start, stop) for opened, start, stop in pieces if stop > start]
        batch = collate(self._schema, slices, self._batch_size).of_tasks(self._places)
        held = sum(int(rows.held[start:stop].sum()) for rows, start, stop in slices if rows.held is not None)
        bad, self._bad = self._bad, {}
        batch.cursor = BatchCursor(step, spans, batch.in_space.sum(0).numpy(), held, bad)
        return batch

    def _open_units(self) -> bool:
        while len(self._open) < self._interleave:
            parcel = next(self._parcels, None)
            if parcel is None:
                break
            if parcel.rows is None:
                self._bad[parcel.unit] = parcel.text
            elif len(parcel.rows):
                self._open.append(_OpenUnit(parcel.unit, parcel.rows))
        return bool(self._open)


def collate(schema: Schema, slices: list[tuple[EncodedRows, int, int]], batch_size: int) -> LogBatch:
    """Copy slices of encoded units into one batch.

    Args:
        schema: Names of the sparse features and tasks.
        slices: (rows, start, stop); together at most `batch_size` rows.
        batch_size: B; the rest is padding: empty bags, in no task's space.
    """
    columns = {
        "labels": np.full((batch_size, len(schema.tasks)), np.nan, np.float32),
        "dense": np.zeros((batch_size, len(schema.dense_features)), np.float32),
        "weights": np.ones((batch_size, len(schema.tasks)), np.float32),
        "slots": np.full(batch_size, -1, np.int32),
        "truth": np.full((batch_size, len(schema.tasks)), np.nan, np.float32),
        "users": np.zeros(batch_size, np.int64),
        "groups": np.zeros(batch_size, np.int64),
    }
    first = slices[0][0] if slices else None
    if first is not None and first.slices is not None:
        columns["slices"] = np.zeros((batch_size, first.slices.shape[1]), np.int64)
    filled = 0
    for rows, start, stop in slices:
        for name, column in columns.items():
            source = getattr(rows, name)
            if source is not None:
                column[filled : filled + stop - start] = source[start:stop]
        filled += stop - start
    in_space = ~np.isnan(columns["labels"])

    def asked_for(name: str) -> torch.Tensor | None:
        return None if first is None or getattr(first, name) is None else torch.from_numpy(columns[name])

    return LogBatch(
        sparse=_collate_sparse(schema, slices, batch_size),
        dense=torch.from_numpy(columns["dense"]),
        labels=torch.from_numpy(np.where(in_space, columns["labels"], np.float32(0))),
        in_space=torch.from_numpy(in_space),
        weight=torch.from_numpy(columns["weights"]),
        slot=torch.from_numpy(columns["slots"]),
        truth=asked_for("truth"),
        users=asked_for("users"),
        groups=asked_for("groups"),
        slices=asked_for("slices"),
        slice_texts=tuple(rows.slice_texts for rows, _, _ in slices if rows.slice_texts is not None),
    )


def _collate_sparse(schema: Schema, slices: list[tuple[EncodedRows, int, int]], batch_size: int) -> KeyedJaggedTensor:
    keys = [feature.name for feature in schema.sparse_features]
    lengths = np.zeros((len(keys), batch_size), np.int32)
    values: list[np.ndarray] = []
    for index in range(len(keys)):
        filled = 0
        for rows, start, stop in slices:
            offsets = rows.offsets[index][start : stop + 1]
            np.subtract(offsets[1:], offsets[:-1], out=lengths[index, filled : filled + stop - start])
            values.append(rows.ids[index][offsets[0] : offsets[-1]])
            filled += stop - start
    flat = np.empty(sum(map(len, values)), np.int64)
    if values:
        np.concatenate(values, out=flat, casting="safe")
    return KeyedJaggedTensor(keys=keys, values=torch.from_numpy(flat), lengths=torch.from_numpy(lengths.reshape(-1)))
