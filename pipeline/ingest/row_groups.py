"""Row groups of Parquet files, read forwards by ranges, and the few files that a task has open."""

from collections.abc import Iterator
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq

from features.columns import contiguous
from features.errors import DataError
from pipeline.ingest.units import Unit
from pipeline.storage.files import Storage
from pipeline.storage.ranged_file import RangedFile

_SKIP_ROWS = 8192  # minimum number of rows per read
_OPEN_FILES = 4  # of a read task; beyond, small units of many files would hold all their footers
_BUFFER_BYTES = 1 << 20  # bytes of a column, read ahead from a local file


@dataclass(frozen=True, slots=True)
class OpenFile:
    """An open Parquet file.

    Args:
        parquet: pyarrow's reader of it.
        remote: File on S3 from which it reads; None: a local one.
    """

    parquet: pq.ParquetFile
    remote: RangedFile | None

    def fetch(self, row_group: int, columns: list[str]) -> None:
        """Fetch columns of a row group from S3, in few requests at once; pyarrow asks for one column at a time."""
        if self.remote is None or row_group >= self.parquet.metadata.num_row_groups:  # pyarrow says what is wrong
            return
        group = self.parquet.metadata.row_group(row_group)
        chunks = [group.column(index) for index in range(group.num_columns)]
        wanted = [chunk for chunk in chunks if chunk.path_in_schema.partition(".")[0] in columns]
        begins = [chunk.dictionary_page_offset or chunk.data_page_offset for chunk in wanted]
        self.remote.fetch(
            (begin, begin + chunk.total_compressed_size) for begin, chunk in zip(begins, wanted, strict=True)
        )

    def close(self) -> None:
        """Close it."""
        self.parquet.close(force=True)


class OpenFiles:
    """The newest files of a task: successive units often share one, and its footer may have megabytes."""

    def __init__(self, logs: Storage) -> None:
        self._logs = logs
        self._files: dict[str, OpenFile] = {}

    def open(self, file: str) -> OpenFile:
        """Return a file, opened anew if it is not among the newest."""
        found = self._files.pop(file, None) or self._opened(file)
        while len(self._files) >= _OPEN_FILES:
            self.forget(next(iter(self._files)))
        self._files[file] = found  # the newest last
        return found

    def forget(self, file: str) -> None:
        """Close a file, if it is open."""
        found = self._files.pop(file, None)
        if found is not None:
            found.close()

    def _opened(self, file: str) -> OpenFile:
        # Without the optional checksums of a page, most flipped bytes are read as other values.
        if not self._logs.is_local:
            remote = RangedFile(self._logs, file)
            return OpenFile(pq.ParquetFile(remote, page_checksum_verification=True), remote)
        # A memory map of a file that is truncated would end the process with a SIGBUS; a read ends with an error.
        path, buffers = self._logs.path(file), {"pre_buffer": False, "buffer_size": _BUFFER_BYTES}
        return OpenFile(pq.ParquetFile(path, page_checksum_verification=True, **buffers), None)


class RowGroupReader:
    """Reader of a row group, forwards, by ranges."""

    def __init__(self, file: OpenFile, unit: Unit, columns: list[str]) -> None:
        file.fetch(unit.row_group, columns)
        self._file = file.parquet
        self._of = (unit.file, unit.row_group)
        self._columns = columns
        self._batches: Iterator[pa.RecordBatch] = iter(())
        if not unit.whole:  # the first range may be a last, short one: do not skip by its length
            rows = max(unit.num_rows, _SKIP_ROWS)
            self._batches = self._file.iter_batches(
                rows, row_groups=[unit.row_group], columns=columns, use_threads=False
            )
        self._pending: list[pa.RecordBatch] = []
        self._next_row = 0

    def reaches(self, unit: Unit) -> bool:
        """Return True if the unit lies ahead in the same row group."""
        return (unit.file, unit.row_group) == self._of and unit.first_row >= self._next_row

    def read(self, unit: Unit) -> dict[str, pa.Array]:
        """Return the unit's rows, by column."""
        if unit.whole:
            table = self._file.read_row_group(unit.row_group, columns=self._columns, use_threads=False)
        else:
            self._advance(unit.first_row - self._next_row)
            batches = self._advance(unit.num_rows)
            table = pa.Table.from_batches(batches) if batches else pa.table({})
        if table.num_rows != unit.num_rows:
            raise DataError(f"{table.num_rows} rows where the footer said {unit.num_rows}: write the file again")
        for name in self._columns:
            if name not in table.column_names:
                raise DataError(f"no column {name!r}, which was there when the day was listed: write the file again")
        return contiguous({name: table[name] for name in self._columns})

    def _advance(self, num_rows: int) -> list[pa.RecordBatch]:
        """Return the next rows of the row group; fewer at its end."""
        taken = []
        while num_rows > 0:
            batch = self._pending.pop() if self._pending else next(self._batches, None)
            if batch is None:
                break
            if batch.num_rows > num_rows:
                self._pending.append(batch.slice(num_rows))
                batch = batch.slice(0, num_rows)
            taken.append(batch)
            num_rows -= batch.num_rows
            self._next_row += batch.num_rows
        return taken
