"""Parcels: what the data tasks read, in which order and in which tasks, and what becomes of units that are bad."""

import io
import itertools
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_units import DAY, alone, numbers_of, planned, read_plan_of, unit_entries

from features.encoding import Encoder
from features.errors import DataError
from pipeline.ingest.bundles import PlannedParcel, group_bundles
from pipeline.ingest.datasource import Parcel, read_bundles, read_parcels, read_unit, unpack
from pipeline.ingest.deal import row_order
from pipeline.ingest.units import list_days
from pipeline.storage.files import Storage

WriteLog = Callable[..., Storage]
_COLUMNS = ["number", "history", "liked", "video"]


# --- Reading ---


@given(data=st.data(), sizes=st.lists(st.integers(1, 40), min_size=1, max_size=3), max_rows=st.integers(1, 45))
def test_ranges_of_row_groups(data: st.DataObject, sizes: list[int], max_rows: int, write_log: WriteLog):
    """A range begins a row too early, or what is skipped before it shifts it; nulls and lists move along."""
    logs = write_log([[sizes]])
    (day,) = list_days(logs, [DAY], max_rows)
    written = pq.read_table(io.BytesIO(logs.read(day.units[0].file)))
    starts = np.concatenate(([0], np.cumsum(sizes)))
    for unit in data.draw(st.permutations(day.units)):
        columns = read_unit(logs, unit, _COLUMNS)
        assert list(columns) == _COLUMNS
        expected = written.slice(starts[unit.row_group] + unit.first_row, unit.num_rows)
        for name, column in columns.items():
            assert column.equals(expected[name].combine_chunks())
    other = read_unit(logs, day.units[0], _COLUMNS)  # negative control
    assert len(day.units) == 1 or not other["number"].equals(read_unit(logs, day.units[-1], _COLUMNS)["number"])


@pytest.mark.parametrize("where", ["local", "s3"])
def test_a_task_reads_forwards_and_skips(
    where: str, write_log: WriteLog, tiny_encoder: Encoder, request: pytest.FixtureRequest
):
    """Ranges that a resumed day no longer needs are read as those that it does, or a reader cannot go back."""
    root = None if where == "local" else f"{request.getfixturevalue('s3_root')}/ranges"
    plan, units = read_plan_of(write_log([[[23, 9], [5]]], root), tiny_encoder, max_rows=4)
    order = [1, 2, 5, 8, 7, 0, 3, 9, 6]  # forwards, backwards, and into other row groups and files
    parcels = list(read_parcels(plan, unit_entries(units, order)))
    first = [0, 4, 8, 12, 16, 20, 23, 27, 31, 32, 36]
    assert [numbers_of(parcel)[0] for parcel in parcels] == [first[index] for index in order]
    assert [len(numbers_of(parcel)) for parcel in parcels] == [4, 4, 3, 1, 4, 4, 4, 4, 4]


def test_the_end_of_a_large_row_group(write_log: WriteLog, tiny_encoder: Encoder, monkeypatch: pytest.MonkeyPatch):
    """A resume that needs a last range of one row skips all before it one row at a time."""
    plan, units = read_plan_of(write_log([[[30_001]]]), tiny_encoder, max_rows=15_000)
    read = 0
    iterate = pq.ParquetFile.iter_batches

    def counted(*arguments: Any, **keywords: Any) -> Any:
        nonlocal read
        for batch in iterate(*arguments, **keywords):
            read += 1
            yield batch

    monkeypatch.setattr(pq.ParquetFile, "iter_batches", counted)
    (parcel,) = read_parcels(plan, unit_entries(units, [2]))
    assert numbers_of(parcel) == [30_000]
    assert read < 10


@given(skip=st.integers(0, 12), max_rows=st.sampled_from([5, 12, 20]), shuffle=st.booleans(), segment=st.integers(0, 1))
def test_rows_that_were_seen_are_skipped_in_row_order(
    skip: int, max_rows: int, shuffle: bool, segment: int, write_log: WriteLog, tiny_encoder: Encoder
):
    """A resume skips the first rows of the file, not the first of the order in which they were trained."""
    plan, units = read_plan_of(write_log([[[12]]]), tiny_encoder, max_rows=max_rows, passes=2, shuffle=shuffle)
    unit = units[-1]
    skip = min(skip, unit.num_rows)
    (parcel,) = read_parcels(plan, [PlannedParcel("unit", segment, len(units) - 1, unit, skip=skip)])
    order = row_order(unit, seed=5, pass_index=segment, shuffle=shuffle)
    assert numbers_of(parcel) == [unit.first_row + row for row in order[skip:]]
    assert parcel.rows is not None
    assert parcel.rows.rows.tolist() == order[skip:].tolist()
    if shuffle and unit.num_rows == 12 and skip < 10:
        assert order[skip:].tolist() != list(range(skip, 12))  # negative control


def test_a_parcel_travels_as_one_row(write_log: WriteLog, tiny_encoder: Encoder):
    """Ray joins or splits blocks: starts, blanks, units and bad units differ in their columns or types."""
    plan, units = read_plan_of(write_log([[[6], [4]]]), tiny_encoder, shuffle=True)
    plan.logs.write(units[1].file, b"")
    entries = [
        PlannedParcel("start", 0, text='{"day": "ü"}'),
        *unit_entries(units),
        PlannedParcel("blank", 0),
        PlannedParcel("unit", 0, 0, units[0], skip=6),
    ]
    parcels = list(read_parcels(plan, entries))
    assert [parcel.kind for parcel in parcels] == ["start", "unit", "bad", "blank", "unit"]
    blocks = [parcel.to_row(tiny_encoder.empty()) for parcel in parcels]
    assert all(block.schema.equals(blocks[0].schema) for block in blocks)
    together = pa.concat_tables(blocks).combine_chunks()
    assert together.num_rows == len(parcels)
    for index, (parcel, block) in enumerate(zip(parcels, blocks, strict=True)):
        for received in (Parcel.from_row(block), Parcel.from_row(together.slice(index, 1))):
            assert received.read_at > 1.7e9
            assert replace(received, rows=None, read_at=0.0) == replace(parcel, rows=None)
            if parcel.rows is None:
                assert received.rows is None
                continue
            assert received.rows is not None
            assert numbers_of(received) == numbers_of(parcel)
            for name in ("labels", "slots", "rows"):
                np.testing.assert_array_equal(getattr(received.rows, name), getattr(parcel.rows, name))
            for name in ("ids", "offsets"):
                for ours, theirs in zip(getattr(received.rows, name), getattr(parcel.rows, name), strict=True):
                    np.testing.assert_array_equal(ours, theirs)
    assert parcels[4].rows is not None
    assert len(parcels[4].rows) == 0


# --- Bad units ---


def _spoilt(logs: Storage, name: str, change: Callable[[bytes], bytes]) -> None:
    logs.write(name, change(logs.read(name)))


def _flip_middle(data: bytes) -> bytes:
    middle = int.from_bytes(data[-8:-4], "little")  # the footer's length: before it are pages
    middle = (len(data) - 8 - middle) // 2
    return data[:middle] + bytes([data[middle] ^ 0x10]) + data[middle + 1 :]


def _with_label(value: Any, kind: pa.DataType) -> Callable[[bytes], bytes]:
    """Gives the row 2 of the second row group a label."""

    def change(data: bytes) -> bytes:
        table = pq.read_table(io.BytesIO(data))
        labels = [*table["click"].to_pylist()[:8], value, *table["click"].to_pylist()[9:]]
        written = io.BytesIO()
        pq.write_table(table.set_column(3, "click", pa.array(labels, kind)), written, row_group_size=6)
        return written.getvalue()

    return change


_BAD = [
    ("truncated", lambda data: data[: len(data) // 2], "Parquet magic bytes not found"),
    ("empty", lambda data: b"", "Parquet file size is 0 bytes"),
    ("csv", lambda data: b"number,click\n1,0\n" * 99, "Parquet magic bytes not found"),
    ("flipped bit", _flip_middle, ".*CRC checksum verification failed"),
    ("vanished", None, ".*No such file"),
    ("label 2", _with_label(2, pa.int8()), r"task 'ctr': label 'click' is 2 at row 2 \(1 such rows\), expected 0 or 1"),
    ("label infinite", _with_label(float("inf"), pa.float64()), "task 'ctr': label 'click' is inf at row 2"),
]


@pytest.mark.parametrize(("change", "message"), [case[1:] for case in _BAD], ids=[case[0] for case in _BAD])
@pytest.mark.parametrize("max_rows", [1000, 4])
def test_a_bad_unit_is_named(
    change: Callable[[bytes], bytes] | None, message: str, max_rows: int, write_log: WriteLog, tiny_encoder: Encoder
):
    """A bad unit is trained, or ends the data task with a traceback, or takes good ones along."""
    logs = write_log([[[5], [6, 6], [5]]])
    plan, units = read_plan_of(logs, tiny_encoder, max_rows=max_rows)
    file = f"dt={DAY}/part-1.parquet"
    before = list(read_parcels(plan, unit_entries(units)))
    assert {parcel.kind for parcel in before} == {"unit"}  # negative control
    if change is None:
        logs.remove(file)
    else:
        _spoilt(logs, file, change)
    after = [
        parcel
        for task in group_bundles(planned(alone(unit_entries(units))))
        for block in read_bundles(plan, task, tiny_encoder.empty())
        for parcel in unpack(block)
    ]
    assert [parcel.unit for parcel in after] == [parcel.unit for parcel in before]
    bad = []
    for then, now in zip(before, after, strict=True):
        if now.kind == "unit":
            assert numbers_of(now) == numbers_of(then)
            continue
        unit = units[now.unit]
        bad.append((unit.row_group, unit.first_row))
        assert re.match(rf"{logs.url}/{file}, row group {bad[-1][0]}, rows from {bad[-1][1]}: {message}", now.text)
        assert "\n" not in now.text
    if message.startswith("task"):
        assert bad == [(1, 0)]
    elif change is not _flip_middle:
        assert bad == [(unit.row_group, unit.first_row) for unit in units if unit.file == file]
    assert bad


def test_one_bad_range_says_why_in_each_range_after_it(write_log: WriteLog, tiny_encoder: Encoder):
    """After a broken page, the ranges behind it blame the footer, or end the task."""
    logs = write_log([[[40]]])
    plan, units = read_plan_of(logs, tiny_encoder, max_rows=10)
    _spoilt(logs, units[0].file, _flip_middle)
    texts = [parcel.text for parcel in read_parcels(plan, unit_entries(units))]
    assert all("CRC checksum verification failed" in text for text in texts)
    assert len(texts) == 4


@given(where=st.integers(4, 10_000), bit=st.integers(0, 7))
def test_a_flipped_bit_is_found_or_does_no_harm(where: int, bit: int, write_log: WriteLog, tiny_encoder: Encoder):
    """A flipped bit is another id or label: three of four were read without a word, without the pages' checksums."""
    logs = write_log([[[50]]])
    plan, units = read_plan_of(logs, tiny_encoder)
    (before,) = read_parcels(plan, unit_entries(units))
    data = bytearray(logs.read(units[0].file))
    where = 4 + where % (len(data) - 12 - int.from_bytes(data[-8:-4], "little"))
    data[where] ^= 1 << bit
    Path(logs.path(units[0].file)).write_bytes(data)
    (after,) = read_parcels(plan, unit_entries(units))
    assert before.rows is not None
    if after.rows is not None:
        assert numbers_of(after) == numbers_of(before)
        np.testing.assert_array_equal(after.rows.labels, before.rows.labels)
        for ours, theirs in zip(after.rows.ids, before.rows.ids, strict=True):
            np.testing.assert_array_equal(ours, theirs)


def test_a_file_that_was_written_again(write_log: WriteLog, tiny_encoder: Encoder):
    """The file that is read is not the one whose footer was: rows or columns are missing, hours into the day."""
    logs = write_log([[[6]]])
    plan, units = read_plan_of(logs, tiny_encoder)
    other = write_log([[[5]]])
    logs.write(units[0].file, other.read(units[0].file))
    (parcel,) = read_parcels(plan, unit_entries(units))
    assert parcel.text.endswith(": 5 rows where the footer said 6: write the file again")
    data = io.BytesIO()
    pq.write_table(pa.table({"number": range(6)}), data)
    logs.write(units[0].file, data.getvalue())
    (parcel,) = read_parcels(plan, unit_entries(units))
    assert re.search(r": no column '\w+', which was there when the day was listed", parcel.text)
    with pytest.raises(DataError, match="no column"):
        read_unit(logs, units[0], tiny_encoder.columns)


@pytest.mark.parametrize("error", [PermissionError("no"), TimeoutError(), OSError(5, "disk")])
def test_a_storage_that_does_not_answer_makes_no_bad_unit(
    error: Exception, write_log: WriteLog, tiny_encoder: Encoder, monkeypatch: pytest.MonkeyPatch
):
    """An outage puts every unit of the day into quarantine."""
    plan, units = read_plan_of(write_log([[[6]]]), tiny_encoder)

    def fail(*_: Any, **__: Any) -> Any:
        raise error

    monkeypatch.setattr(pq, "ParquetFile", fail)
    with pytest.raises(type(error)):
        list(read_parcels(plan, unit_entries(units)))


def test_a_day_on_s3(s3_root: str, write_log: WriteLog, tiny_encoder: Encoder):
    """Catches S3 that gives other rows than the disk."""
    sizes = [[[10, 3], [8]]]
    read = []
    for logs in (write_log(sizes), write_log(sizes, f"{s3_root}/day")):
        plan, units = read_plan_of(logs, tiny_encoder, max_rows=4, shuffle=True)
        read.append([numbers_of(parcel) for parcel in read_parcels(plan, unit_entries(units))])
    assert read[0] == read[1]
    assert sorted(itertools.chain(*read[0])) == list(range(21))
    file = f"dt={DAY}/part-0.parquet"
    _spoilt(logs, file, lambda data: data[: len(data) // 2])
    assert [parcel.kind for parcel in read_parcels(plan, unit_entries(units))] == ["bad"] * 4 + ["unit"] * 2
    logs.remove(file)
    text = next(read_parcels(plan, unit_entries(units))).text
    assert text.startswith(f"{s3_root}/day/{file}, row group 0, rows from 0: ")
