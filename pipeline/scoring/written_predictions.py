"""Files of predictions: one per file of the log, with the same rows in the same order.

    OUT/_predictions.json                what the predictions are of, written first
    OUT/_parts/<day>/<name>.parquet      rows of one unit, written whole; removed when the day is complete
    OUT/dt=<day>/<file>                  predictions of a file of the log, made of its parts
    OUT/_days/<day>.json                 written last: the day is complete

A part has the name of its unit and of the fingerprint of the unit's file. So parts count only for the log that they
were computed from, and a command that was killed goes on with the units that have no part.
"""

import hashlib
import io
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq

from features.errors import ConfigError, DataError
from pipeline.ingest.day_files import folder_of, is_hidden
from pipeline.ingest.units import DayLog, Unit
from pipeline.storage.files import Storage
from pipeline.storage.record import Record

_ABOUT = "_predictions.json"


class AboutPredictions(Record):
    """Record of what predictions are of.

    Args:
        line: Line of the checkpoint.
        checkpoint: Name of the checkpoint on that line.
        checkpoint_digest: Checksum of its manifest.
        keys: Columns that are copied from the log.
        tasks: Kind by name of each predicted task.
        labels: True if the labels are there too.
    """

    VERSION = 1

    line: str
    checkpoint: str
    checkpoint_digest: str
    keys: tuple[str, ...]
    tasks: dict[str, str]
    labels: bool


class PredictedDay(Record):
    """Record of a day whose predictions are complete.

    Args:
        day: ISO date.
        rows: Number of predicted rows.
        left_out: Reason by key of each unit that could not be read.
        files: Size and fingerprint by path of each file of the log.
    """

    VERSION = 1

    day: str
    rows: int
    left_out: dict[str, str]
    files: dict[str, str]


@dataclass(frozen=True, slots=True)
class PredictionFiles:
    """Predictions below a directory or an s3:// prefix.

    Args:
        storage: The directory.
    """

    storage: Storage

    def about(self) -> AboutPredictions:
        """Return what the predictions are of.

        Raises:
            ConfigError: There are no predictions, or another version wrote them.
        """
        try:
            return AboutPredictions.from_bytes(self.storage.read(_ABOUT))
        except (FileNotFoundError, NotADirectoryError) as error:
            raise ConfigError(
                f"{self.storage.url} has no {_ABOUT}: name the directory that jobs.predict wrote"
            ) from error
        except ValueError as error:
            raise ConfigError(f"{self.storage.url}/{_ABOUT} is not readable: {error}") from error

    def begin(self, about: AboutPredictions) -> None:
        """Write what the predictions will be of, or find the same.

        Raises:
            ConfigError: The directory has something else, or cannot be written.
        """
        self.storage.check_writable()
        if not self.storage.exists(_ABOUT):
            if self.storage.names():
                raise ConfigError(f"{self.storage.url} is not empty: name another --out, or remove what is there")
            self.storage.create(_ABOUT, about.to_bytes())
        found = self.about()
        differing = [name for name in AboutPredictions.model_fields if getattr(found, name) != getattr(about, name)]
        if differing:
            name = differing[0]
            raise ConfigError(
                f"{self.storage.url} has predictions with {name} {getattr(found, name)!r}, asked for is "
                f"{getattr(about, name)!r}: name another --out, or remove what is there"
            )

    def day(self, day: str) -> PredictedDay | None:
        """Return the record of a complete day; None for another.

        Raises:
            DataError: The record is damaged.
        """
        try:
            return PredictedDay.from_bytes(self.storage.read(f"_days/{day}.json"))
        except FileNotFoundError:
            return None
        except ValueError as error:
            raise DataError(
                f"{self.storage.url}/_days/{day}.json is damaged ({error}): remove it, and the day is predicted again"
            ) from error

    def days(self) -> list[str]:
        """Return the complete days, ISO dates in order."""
        return [name.removesuffix(".json") for name in self.storage.names("_days")]

    def is_done(self, log: DayLog) -> bool:
        """Return True if the predictions of a day's log are complete.

        Raises:
            DataError: The day is complete, and its log has changed since.
        """
        found = self.day(log.day)
        if found is not None and found.files != dict(log.files):
            raise DataError(
                f"{self.storage.url} has predictions of {log.day} of another log than there is now: name another "
                f"--out, or remove {self.storage.url}/_days/{log.day}.json to predict the day again"
            )
        return found is not None

    def parts(self, log: DayLog) -> set[int]:
        """Return the units of a day that have a part, by their numbers."""
        names = set(self.storage.names(_folder(log.day)))
        return {number for number, unit in enumerate(log.units) if _part_name(log, unit) in names}

    def write_part(self, log: DayLog, unit: Unit, rows: pa.Table) -> None:
        """Write the rows of a unit, all or nothing."""
        self.storage.write(f"{_folder(log.day)}/{_part_name(log, unit)}", _parquet([rows]))

    def join(self, log: DayLog, units: Sequence[Unit], keys: Iterator[pa.Table]) -> int:
        """Write the predictions of a file of the log from its parts; return the number of their rows.

        Args:
            log: The day's log.
            units: Units of the file that have a part, in order.
            keys: Key columns of each of these units.
        """
        tables = []
        for unit, columns in zip(units, keys, strict=True):
            table = self._read_part(log, unit)
            for name in reversed(columns.column_names):
                table = table.add_column(0, columns.schema.field(name), columns[name])
            tables.append(table)
        if tables:
            self.storage.write(units[0].file, _parquet(tables))
        return sum(len(table) for table in tables)

    def _read_part(self, log: DayLog, unit: Unit) -> pa.Table:
        table = pq.read_table(io.BytesIO(self.storage.read(f"{_folder(log.day)}/{_part_name(log, unit)}")))
        assert len(table) == unit.num_rows, (unit.key, len(table))
        return table

    def complete(self, record: PredictedDay, written: Collection[str]) -> None:
        """Write the record of a complete day, and remove its parts and what an earlier log has left.

        Args:
            record: The record.
            written: Paths of the day's files.
        """
        folder = folder_of(record.day)
        for name in self.storage.files_below(folder, is_hidden):
            if f"{folder}/{name}" not in written:
                self.storage.remove(f"{folder}/{name}")
        self.storage.write(f"_days/{record.day}.json", record.to_bytes())
        self.remove_parts(record.day)

    def remove_parts(self, day: str) -> None:
        """Remove the parts of a complete day."""
        self.storage.remove(_folder(day))
        if not self.storage.names("_parts"):
            self.storage.remove("_parts")


def _folder(day: str) -> str:
    return f"_parts/{day}"


def _part_name(log: DayLog, unit: Unit) -> str:
    """Return a name that depends on the unit and on the contents of its file."""
    return f"{hashlib.sha256(f'{unit.key} {log.files[unit.file]}'.encode()).hexdigest()[:32]}.parquet"


def _parquet(tables: Sequence[pa.Table]) -> bytes:
    """Return a Parquet file with a row group per table."""
    data = io.BytesIO()
    with pq.ParquetWriter(data, tables[0].schema, compression="zstd") as writer:
        for table in tables:
            writer.write_table(table)
    return data.getvalue()
