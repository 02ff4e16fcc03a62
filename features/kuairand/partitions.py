"""Day partitions of KuaiRand-Pure that jobs/configs/kuairand.yaml reads.

A day is read, joined with the features of its users and videos and with its past, written, and added to the past.
Memory holds one day, one entry per user, video and (video, tab), and the feature files.

Rows that occur twice in the log (2.4 %, nearly all in tab 6, upstream too) are kept: published figures count them, and
the weight of a tab is the log's own. The past counts them once.
"""

import logging
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from features.errors import DataError
from features.kuairand.entities import KuairandEntities, read_users, read_videos
from features.kuairand.past import Past, impressions_of
from features.kuairand.source import LOG_COLUMNS, Source, find_source, read_log
from features.whole_days import published_whole, refuse_days_that_are_there, write_parts

logger = logging.getLogger(__name__)

_HOUR_MS = 3_600_000
_CHINA_HOURS = 8  # ahead of UTC, all year
_ROW_GROUP_ROWS = 2048  # a day has 13,000 to 90,000 rows, and several workers want a part of it


@dataclass(frozen=True, slots=True)
class ImportedKuairand:
    """Counts of the rows that an import wrote.

    Args:
        rows: Rows by day, ISO dates in order.
        num_repeated: Number of rows whose impression occurs earlier in the same day's log.
    """

    rows: dict[str, int]
    num_repeated: int


def import_kuairand(source: str | Path, logs: str | Path, *, with_random: bool = False) -> ImportedKuairand:
    """Write the log as `dt=YYYY-MM-DD/part-00000.parquet`, all days or, if anything fails, none.

    Args:
        source: Directory with the data set's files.
        logs: Local directory of the days; created if absent.
        with_random: True to import the impressions of randomly exposed videos too, `is_rand` = 1.

    Raises:
        ConfigError: The source is missing, or a day exists already; it is never replaced.
        DataError: A file is missing or not as published; names file and column.
    """
    files = find_source(source, with_random=with_random)
    users, videos = read_users(files.users), read_videos(files.videos)
    rows: dict[str, int] = {}
    num_repeated = 0
    with published_whole(Path(logs)) as staging:
        days = _split_by_day(files, staging)
        refuse_days_that_are_there(days, Path(logs))
        past = _past_before(days[0], files, videos)
        for day in days:
            log = _read_day(staging, day)
            impressions = impressions_of(log, videos)
            past.begin_day(int(impressions.time_ms[0]))
            table = _join(log, day, users, videos, past.columns(impressions))
            past.add_day(impressions)
            rows[day.isoformat()] = write_parts([table], staging / f"dt={day}", _ROW_GROUP_ROWS, "zstd")
            num_repeated += len(table) - len(np.unique(impressions.keys))
            logger.info("%s: %d rows", day, len(table))
    return ImportedKuairand(rows, num_repeated)


def _join(
    log: pa.Table, day: date, users: KuairandEntities, videos: KuairandEntities, past: dict[str, pa.Array]
) -> pa.Table:
    of_user, of_video = (
        entities.look_up(log[name].to_numpy()) for entities, name in ((users, "user_id"), (videos, "video_id"))
    )
    since_1970 = pa.scalar((day - date(1970, 1, 1)).days, pa.int32())
    # The hour is that of time_ms: `hourmin` is the time of the report.
    hour = (log["time_ms"].to_numpy() // _HOUR_MS + _CHINA_HOURS) % 24
    columns = {name: log[name] for name in LOG_COLUMNS if name != "date"}
    columns |= {"hour": pa.array(hour.astype(np.int8))}
    columns |= {name: of_user[name] for name in of_user.column_names}
    columns |= {name: of_video[name] for name in of_video.column_names if name != "upload_day"}
    columns |= {"video_age_days": pc.subtract(since_1970, of_video["upload_day"])}
    return pa.table(columns | past)


def _past_before(first: date, files: Source, videos: KuairandEntities) -> Past:
    past = Past(videos)
    if files.sequences is not None:
        last_ms = past.add_sequences(files.sequences)
        last = (datetime.fromtimestamp(last_ms / 1000, UTC) + timedelta(hours=_CHINA_HOURS)).date()
        if last >= first:
            raise DataError(
                f"{files.sequences}: column 'last_time_ms' reaches {last}, the log begins on {first}: sequences would "
                "leak the predicted days; remove them, or the days of the log that they cover"
            )
    return past


def _split_by_day(files: Source, spill: Path) -> list[date]:
    """Sort the rows of all files into one Arrow file per day, each read once; upstream is in order of users."""
    writers: dict[date, pa.ipc.RecordBatchFileWriter] = {}
    with ExitStack() as open_files:
        for path in files.logs:
            for block in read_log(path):
                for number in np.unique(block["date"].to_numpy()).tolist():
                    day = _day_of(number, path)
                    if day not in writers:
                        file = pa.ipc.new_file(_spilled(spill, day), block.schema)
                        writers[day] = open_files.enter_context(file)
                    writers[day].write_table(block.filter(pc.equal(block["date"], number)))
    if not writers:
        raise DataError(f"{files.logs[0]} has no rows, nor has any other file of the log")
    return sorted(writers)


def _day_of(number: int, path: Path) -> date:
    try:
        return datetime.strptime(str(number), "%Y%m%d").date()
    except ValueError as error:
        raise DataError(f"{path}: column 'date' has {number}, expected yyyymmdd") from error


def _spilled(spill: Path, day: date) -> Path:
    return spill / f"{day}.arrow"


def _read_day(spill: Path, day: date) -> pa.Table:
    """Return the day's rows in order of time; delete the spilled file."""
    with pa.ipc.open_file(_spilled(spill, day)) as reader:
        log = reader.read_all()
    _spilled(spill, day).unlink()
    return log.take(np.argsort(log["time_ms"].to_numpy(), kind="stable")).combine_chunks()
