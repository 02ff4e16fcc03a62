"""Deterministic generator of short-video logs with known probabilities: rows, and day-partitioned Parquet files.

`make_part` is a pure function of (config, day, part), so a day needs no earlier day and a large day is made file by
file. Every column draws from a random stream of its own, so a new column changes no other. The columns `true_*` hold
the result of `features.synthetic.outcomes.true_columns`: no model may read them, and none can beat them.
"""

from datetime import UTC, date, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa

from features.synthetic.dense import user_counters, video_counters
from features.synthetic.history import history_columns
from features.synthetic.outcomes import DEVICES, SCENES, Impressions, outcomes, true_columns
from features.synthetic.streams import ColumnStreams, Floats, Ints, keyed_uniform
from features.synthetic.world import SyntheticConfig, Users, catalogue, cell_affinity, user_latents, user_shares
from features.whole_days import write_whole_day

NUM_SLOTS = 10
_CHUNK_ROWS = 16_384
_DAY_MS = 86_400_000
_SCENE_SHARES = (0.4, 0.38, 0.13, 0.09)
_DEVICE_SHARES = (0.5, 0.3, 0.12, 0.08)
_SLOT_SHARES = tuple(0.93**slot for slot in range(NUM_SLOTS))
_AWAY_FROM_OWN_DEVICE = 0.15
# Weight of the user's taste in the choice of videos, by scene: strongest in search.
_SCENE_CHOICE = np.array([0.2, 0.3, 0.8, 0.5])
_HOURS = np.arange(25)
_TRAFFIC = np.concatenate([[0.0], np.cumsum(1.0 + 0.7 * np.cos(2.0 * np.pi * (_HOURS[:24] - 20) / 24.0))])

SCHEMA = pa.schema(
    [
        *((name, pa.int64()) for name in ("user_id", "video_id", "author_id", "request_time_ms")),
        ("hour", pa.int8()),
        ("device", pa.string()),
        ("scene", pa.string()),
        ("slot", pa.int8()),
        ("category", pa.int32()),
        ("user_age_days", pa.float32()),
        *((f"user_{name}", pa.int64()) for name in ("active_days_30d", "watch_ms_7d", "clicks_7d", "shares_30d")),
        ("user_follows", pa.int64()),
        ("duration_ms", pa.int64()),
        ("video_age_hours", pa.float32()),
        ("video_plays_7d", pa.int64()),
        ("video_like_rate_7d", pa.float32()),
        ("video_completion_rate_7d", pa.float32()),
        ("video_comments_7d", pa.int64()),
        ("author_followers", pa.int64()),
        ("history_video_id", pa.list_(pa.int64())),
        ("history_author_id", pa.list_(pa.int64())),
        ("history_type", pa.list_(pa.int8())),
        ("history_scene", pa.list_(pa.int8())),
        ("history_age_s", pa.list_(pa.int32())),
        ("click", pa.int8()),
        ("played", pa.int8()),
        ("play_ms", pa.int64()),
        *((name, pa.int8()) for name in ("share", "comment", "cart", "wish", "buy", "follow", "favourite")),
        ("rating", pa.float32()),
        *((f"true_{task}", pa.float32()) for task in ("ctr", "vtr", "vcr", "shr", "cmr", "cart", "wish", "buy")),
        *((f"true_{task}", pa.float32()) for task in ("follow", "favourite", "rating")),
    ]
)


def make_day(config: SyntheticConfig, day: date) -> pa.Table:
    """Return all rows of a day in order of time, with the columns of SCHEMA."""
    return pa.concat_tables([make_part(config, day, part) for part in range(config.files_per_day)])


def make_part(config: SyntheticConfig, day: date, part: int) -> pa.Table:
    """Return the rows of one file of a day.

    Args:
        config: The configuration of the world.
        day: The day of the log.
        part: Number of the file, from 0.

    Returns:
        Table with the columns of SCHEMA, in order of time.

    Raises:
        ConfigError: The day precedes the first one.
        ValueError: The day has no such file.
    """
    day_index = config.day_index(day)
    if not 0 <= part < config.files_per_day:
        raise ValueError(f"part {part} of day {day}: files_per_day is {config.files_per_day}, counted from 0")
    streams = ColumnStreams(config.seed, day, part)
    first, end = (config.rows_per_day * (part + edge) // config.files_per_day for edge in (0, 1))
    # Chunks fit the processor's caches, and bound the memory of a part beyond its own columns.
    chunks = [
        _make_rows(config, day_index, streams, np.arange(start, min(start + _CHUNK_ROWS, end)))
        for start in range(first, end, _CHUNK_ROWS)
    ]
    return pa.concat_tables(chunks).combine_chunks()


def write_day(config: SyntheticConfig, day: date, directory: str | Path) -> list[Path]:
    """Write a day, all of it or nothing; see `features.whole_days.write_whole_day`."""
    parts = (make_part(config, day, part) for part in range(config.files_per_day))
    return write_whole_day(parts, day, Path(directory), config.row_group_rows)


def _make_rows(config: SyntheticConfig, day_index: int, streams: ColumnStreams, number: Ints) -> pa.Table:
    """Return the rows with the given numbers in the day, the next ones of the streams."""
    in_day_ms = _request_times(config, streams, number)
    time_days = day_index + in_day_ms / _DAY_MS
    rows = _impressions(config, day_index, streams, in_day_ms // 3_600_000)
    truth = true_columns(config, rows)
    first_ms = int(datetime.combine(config.first_day, datetime.min.time(), UTC).timestamp()) * 1000
    columns = {
        "user_id": rows.users.user_id,
        "video_id": rows.videos.video_id,
        "author_id": rows.videos.author_id,
        "request_time_ms": first_ms + day_index * _DAY_MS + in_day_ms,
        "hour": rows.hour,
        "device": pa.array(DEVICES).take(pa.array(rows.device)),
        "scene": pa.array(SCENES).take(pa.array(rows.scene)),
        "slot": rows.slot,
        "category": rows.videos.category,
        **user_counters(config, rows.users, day_index, time_days),
        **video_counters(config, rows.videos, day_index, time_days),
        **history_columns(config, rows.users, day_index, time_days),
        **outcomes(config, rows, truth, streams),
        **truth,
    }
    return pa.table([_typed(columns[field.name], field.type) for field in SCHEMA], schema=SCHEMA)


def _typed(values: np.ndarray | pa.Array, kind: pa.DataType) -> pa.Array:
    return values.cast(kind) if isinstance(values, pa.Array) else pa.array(values).cast(kind)


def _impressions(config: SyntheticConfig, day_index: int, streams: ColumnStreams, hour: Ints) -> Impressions:
    """Draw the user, video, scene, slot and device of each impression."""
    num_rows = len(hour)
    user_id = np.searchsorted(user_shares(config, day_index), streams["user_id"].random(num_rows), side="right")
    users = user_latents(config, user_id)
    scene = _choose(_SCENE_SHARES, streams["scene"].random(num_rows))
    preference = np.exp(_SCENE_CHOICE[scene, None] * cell_affinity(config, users.taste))
    shown = catalogue(config, day_index)
    video_id = shown.draw(preference, np.arange(num_rows), *streams["video_id"].random((2, num_rows)))
    return Impressions(
        users=users,
        videos=shown.videos.take(video_id),
        day_index=day_index,
        hour=hour,
        scene=scene,
        device=_devices(config, users, streams),
        slot=_choose(_SLOT_SHARES, streams["slot"].random(num_rows)),
    )


def _devices(config: SyntheticConfig, users: Users, streams: ColumnStreams) -> Ints:
    """Draw each row's device: mostly the user's own."""
    own = keyed_uniform(config.seed, "user/device", users.user_id)
    away, other = streams["device"].random((2, len(own)))
    return _choose(_DEVICE_SHARES, np.where(away < _AWAY_FROM_OWN_DEVICE, other, own))


def _request_times(config: SyntheticConfig, streams: ColumnStreams, number: Ints) -> Ints:
    """Return milliseconds since midnight of the rows with the given numbers, rising, dense in the evening."""
    quantile = (number + streams["request_time_ms"].random(len(number))) / config.rows_per_day
    hours = np.interp(quantile, _TRAFFIC / _TRAFFIC[-1], _HOURS)
    return np.minimum(hours * 3_600_000, _DAY_MS - 1).astype(np.int64)


def _choose(weights: tuple[float, ...], uniform: Floats) -> Ints:
    """Draw indices with the given weights, one per uniform number."""
    shares = np.cumsum(weights) / np.sum(weights)
    return np.minimum(np.searchsorted(shares, uniform, side="right"), len(shares) - 1)
